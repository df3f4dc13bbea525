"""Quality of embeddings and occupancy of clusters: ExCB against other methods, cell by cell.

    python -m benchmarks.learning run --study digits            # runs the missing cells
    python -m benchmarks.learning run --study all --data DIR    # DIR has the data sets
    python -m benchmarks.learning run --study NAME --data DIR   # your data set, by its name in DIR
    python -m benchmarks.learning run --study NAME --methods ExCB --seeds 0 2
    python -m benchmarks.learning list --study all              # lists results and missing cells
    python -m benchmarks.results                                # writes tables and plots into docs

A cell is one fit, with a data set, a method, a seed, and parameters that differ from the defaults.
Each cell writes one JSON file, named by a hash of its configuration, so that a study can be stopped
at any time and resumed. Fits of ExCBEstimator resume from checkpoints. The cells of a row differ
only in the seed. ExCB, centering and Sinkhorn differ in training only in the balancing.
``--study tuning`` tries four or five changes per method, one at a time, on a validation part of the
training images of digits. ``--study rows`` clusters vectors: pixels, and embeddings of images. The
fit that computes the embeddings is not resumed.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import lightly_methods, solo_methods
from benchmarks.cells import DRAWN, K_MEANS, METHODS, STUDIES, Cell, resolved, study
from benchmarks.data_sets import MOST, Split, load, parts_of
from benchmarks.figures import Outcome, figures, k_means, settled_k_means
from benchmarks.stored import store
from sklearn_excb import ExCBEstimator, __version__
from sklearn_excb.data.open_source import are_rows, open_source
from sklearn_excb.data.sources import Rows
from sklearn_excb.runtime.devices import resolve_precision
from sklearn_excb.settings.resolve import Facts, Settings
from sklearn_excb.training.build import facts_of

NO_NETWORK = ("raw pixels", *K_MEANS)


def measure(cell: Cell, split: Split) -> dict[str, Any]:
    """Run a cell."""
    facts = _facts(split.train)
    excb = ExCBEstimator(random_state=cell.seed, **cell.parameters(facts))
    states = cell.states(resolved(excb, facts))
    start = float("nan") if states.exists() else time.perf_counter()
    settings, outcome, history = _outcome(cell, split, facts, excb, states)
    seconds = time.perf_counter() - start
    precision = resolve_precision(settings.precision, lightly_methods.DEVICE)
    per_epoch = settings.batch_size * settings.steps_per_epoch(len(split.y_train))
    return {
        "cell": asdict(cell),
        "facts": asdict(facts),
        "settings": settings.as_dict() | {"precision": precision},
        "version": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "origin": split.origin,
        "n_test": len(split.y_test),
        "images_seen": 0 if cell.method in NO_NETWORK else per_epoch * settings.epochs,
        "seconds": round(seconds, 1),
        "history": history,
        **figures(outcome, split, settings.K, cell.seed),
    }


def _facts(X: Any) -> Facts:
    """Return the facts about images or rows that the "auto" rules use."""
    return facts_of(Rows(X) if are_rows(X) else open_source(X, None))


def split_of(cell: Cell, data: Path | None) -> Split:
    """Return the images of a cell, their pixels as rows, or their embeddings by a fit."""
    images, made = parts_of(cell.data)
    if made != "embeddings":
        return _loaded(cell.data, data, cell.validation)
    if cell.validation:
        raise ValueError("A cell on embeddings cannot use validation=True.")
    return _embeddings(images, data, cell.seed)


@functools.cache
def _loaded(name: str, data: Path | None, validation: bool) -> Split:
    return load(name, data, most=DRAWN.get(parts_of(name)[0], MOST), validation=validation)


@functools.cache
def _embeddings(name: str, data: Path | None, seed: int) -> Split:
    split = _loaded(name, data, False)
    excb = ExCBEstimator(random_state=seed).fit(split.train)
    facts = _facts(split.train)
    origin = {"facts": asdict(facts), "settings": resolved(excb, facts).as_dict()}
    return split._replace(
        train=excb.transform(split.train), test=excb.transform(split.test), origin=origin
    )


def _outcome(
    cell: Cell, split: Split, facts: Facts, excb: ExCBEstimator, states: Path
) -> tuple[Settings, Outcome, list[dict[str, Any]]]:
    """Fit the method; return its settings, its outcome and its history."""
    if cell.method in NO_NETWORK:
        settings, rows = resolved(excb, facts), (raw_pixels(split.train), raw_pixels(split.test))
        labels = None
        if cell.method == "k-means":
            labels = k_means(*rows, settings.K, cell.seed)
        elif cell.method == "k-means, settled":
            labels = settled_k_means(*rows, settings, cell.seed)
        return settings, Outcome(labels, rows, rows), []
    if method := (lightly_methods.METHODS | solo_methods.METHODS).get(cell.method):
        return lightly_methods.fit(method, split, cell.seed, excb)
    excb.set_params(checkpoint_dir=states).fit(split.train)
    labels = excb.labels_, excb.predict(split.test)
    projections = excb.transform(split.train), excb.transform(split.test)
    excb.set_params(embedding="backbone")
    features = excb.transform(split.train), excb.transform(split.test)
    return excb._fitted.settings, Outcome(labels, projections, features), excb.history_


def raw_pixels(images: Any) -> np.ndarray:
    """Return pixels as rows, or given rows; for large photos, the pixels of 32 x 32 thumbnails."""
    if isinstance(images, np.ndarray) and (images.ndim == 2 or images.shape[1] <= 64):
        return images.reshape(len(images), -1).astype(np.float32)
    thumbnails = [Image.fromarray(np.asarray(image)).resize((32, 32)) for image in images]
    return np.stack([np.asarray(small, np.float32).ravel() for small in thumbnails])


def main() -> None:
    """Run or list the cells of a study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "list"])
    parser.add_argument(
        "--study", default="digits", help=f"{', '.join(STUDIES)}, or a data set in --data"
    )
    parser.add_argument("--data", type=Path, help="folder of the data sets; digits need none")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, help="methods to run"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to run (default: all)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no cell later")
    arguments = parser.parse_args()
    stop = time.monotonic() + 60 * arguments.minutes
    cells = study(arguments.study)
    reached = [parts_of(cell.data)[0] == "digits" or arguments.data is not None for cell in cells]
    for cell, there in zip(cells, reached, strict=True):
        if cell.method not in arguments.methods:
            continue
        if arguments.seeds is not None and cell.seed not in arguments.seeds:
            continue
        # a study of several data sets skips missing ones; a study of one reports an error
        wanted = arguments.command == "run" and cell.result is None and (there or not any(reached))
        if wanted and time.monotonic() < stop:
            write(cell, measure(cell, split_of(cell, arguments.data)))
        print(f"{cell}: {summary(cell.result)}", flush=True)


def write(cell: Cell, result: dict[str, Any]) -> None:
    """Write a result, and delete the checkpoints of its fit."""
    store(cell.path, result)
    for states in cell.path.parent.glob(f"{cell.path.stem}.*.states"):
        shutil.rmtree(states)


def clusters_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return the scores of the method's clusters, or those of k-means if it has none."""
    return result if "empty" in result else result["kmeans"]


def seconds_of(result: dict[str, Any]) -> float:
    """Return the seconds of a fit; NaN if it was interrupted and resumed, or nothing is fitted."""
    if result["seconds"] is None or result["cell"]["method"] == "raw pixels":
        return float("nan")
    return result["seconds"]


def summary(result: dict[str, Any] | None) -> str:
    """Return one line about a cell."""
    if result is None:
        return "missing"
    clusters = clusters_of(result)
    return (
        f"empty {clusters['empty']:.1%}, largest {clusters['largest']:.1f}, "
        f"NMI {clusters['nmi']:.3f}, k-NN {result['knn']:.3f}, probe {result['probe']:.3f}, "
        f"{seconds_of(result):.0f} s"
    )


if __name__ == "__main__":
    main()
