"""Does it learn, and do clusters stay filled? ExCB against its rivals, cell by cell.

    python -m benchmarks.learning run --study digits            # what is not there yet
    python -m benchmarks.learning run --study all --data DIR    # sets are files or folders in DIR
    python -m benchmarks.learning list --study all              # what there is and what is missing
    python -m benchmarks.results                                # tables and plots into docs

A cell is one fit: a data set, a method, a seed, and parameters that differ from the defaults. Each
leaves one JSON file, named by a hash of its configuration, so that a study can be stopped at any
time and goes on where it was. Only the seed changes between the cells of a row, and nothing but the
balancing between ExCB, centering and Sinkhorn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import lightly_methods
from benchmarks.data_sets import Split, load
from benchmarks.figures import Outcome, figures
from sklearn_excb import ExCBEstimator, __version__
from sklearn_excb.auto import Facts, Settings, resolve
from sklearn_excb.devices import resolve_precision
from sklearn_excb.fitting import facts_of
from sklearn_excb.images import open_source

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)

METHODS: dict[str, dict[str, Any]] = {
    "ExCB": {},
    "centering": {"balancing": "centering"},
    "Sinkhorn": {"balancing": "sinkhorn"},
    "no balancing": {"balancing": "none"},
    "untrained": {"epochs": 0},
}
OTHERS = ("raw pixels", "lightly DINO", "lightly SwAV")


@dataclass(frozen=True)
class Cell:
    """One fit.

    Attributes
    ----------
    data : str
        As in :func:`benchmarks.data_sets.load`.
    method : str
        One of METHODS or OTHERS.
    seed : int
        Of the fit.
    changed : dict
        Parameters of the estimator that are not the method's.
    """

    data: str
    method: str
    seed: int
    changed: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the result lies."""
        text = json.dumps(asdict(self), sort_keys=True)
        return RESULTS / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the estimator."""
        return METHODS.get(self.method, {}) | self.changed

    @property
    def result(self) -> dict[str, Any] | None:
        """What was measured, or None; also where a rule of "auto" has changed since."""
        if not self.path.exists():
            return None
        result = json.loads(self.path.read_text())
        now = _settings(self, Facts(**result["facts"]))
        return result if json.loads(json.dumps(now)) == result["settings"] else None

    def __str__(self) -> str:
        changed = "".join(f", {name}={value}" for name, value in self.changed.items())
        return f"{self.data}: {self.method}{changed}, seed {self.seed}"


def study(name: str) -> list[Cell]:
    """Cells of a study, in the order in which they are run."""
    return list(STUDIES[name]())


def _main(data: str, methods: tuple[str, ...]) -> Iterator[Cell]:
    for seed in SEEDS:
        for method in methods:
            yield Cell(data, method, seed)


def _robustness() -> Iterator[Cell]:
    """Five seeds, three batch sizes, three K on digits (n = 1,437): does any collapse?"""
    for seed in range(5):
        for batch_size in (16, 64, 256):
            for K in (14, 74, 287):
                yield Cell("digits", "ExCB", seed, {"K": K, "batch_size": batch_size})


def _ablations() -> Iterator[Cell]:
    """One change at a time on digits: Table 1 of the paper, and what its sources leave open."""
    for seed in SEEDS:
        for changed in (
            {"balancing": "exponential"},
            {"count_labels": "plain"},
            {"local_in_loss_h": False},
            {"batch_size": 32},
            {"batch_size": 128},
            {"batch_size": 512},
        ):
            yield Cell("digits", "ExCB", seed, changed)
        for method in ("centering", "Sinkhorn"):
            for changed in RIVALS_TUNED:
                yield Cell("digits", method, seed, changed)


# what the rivals were tuned over, on digits; learning rates are half and twice the rule's
RIVALS_TUNED: tuple[dict[str, Any], ...] = (
    {"teacher_temperature": [0.04, 0.07]},
    {"teacher_temperature": 0.06},
    {"learning_rate": 0.0375},
    {"learning_rate": 0.15},
)

_ALL = ("ExCB", "centering", "Sinkhorn", "untrained", *OTHERS)
_SETS = ("packed_cifar10", "mnist10k_npm", "packed_clothing_short160")
STUDIES: dict[str, Any] = {
    "digits": lambda: _main("digits", (*_ALL, "no balancing")),
    "robustness": _robustness,
    "ablations": _ablations,
    **{name: (lambda name=name: _main(name, _ALL)) for name in _SETS},
}
STUDIES["all"] = lambda: (cell for name in list(STUDIES) if name != "all" for cell in study(name))


def measure(cell: Cell, split: Split) -> dict[str, Any]:
    """Run a cell."""
    start = time.perf_counter()
    settings, outcome, history = _outcome(cell, split)
    seconds = time.perf_counter() - start
    facts = facts_of(open_source(split.train, None))
    per_epoch = settings.batch_size * settings.steps_per_epoch(len(split.y_train))
    return {
        "cell": asdict(cell),
        "facts": asdict(facts),
        "settings": _settings(cell, facts),
        "version": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "precision": resolve_precision(settings.precision, lightly_methods.DEVICE),
        "n_test": len(split.y_test),
        "images_seen": 0 if cell.method == "raw pixels" else per_epoch * settings.epochs,
        "seconds": round(seconds, 1),
        "history": history,
        **figures(outcome, split, settings.K, cell.seed),
    }


def _settings(cell: Cell, facts: Facts) -> dict[str, Any]:
    """Every parameter of a cell, resolved by today's rules; all backbones here have BatchNorm."""
    parameters = ExCBEstimator(**cell.parameters).get_params()
    return resolve(parameters, facts, has_batch_norm=True).as_dict()


def _outcome(cell: Cell, split: Split) -> tuple[Settings, Outcome, list[dict[str, Any]]]:
    """Settings, what the method makes of the images, and what it says of itself."""
    if cell.method == "raw pixels":
        facts = facts_of(open_source(split.train, None))
        settings = resolve(ExCBEstimator(precision="32").get_params(), facts, has_batch_norm=True)
        rows = raw_pixels(split.train), raw_pixels(split.test)
        return settings, Outcome(None, rows, rows), []
    if cell.method in lightly_methods.METHODS:
        return *lightly_methods.fit(cell.method, split, cell.seed, cell.changed), []
    excb = ExCBEstimator(random_state=cell.seed, **cell.parameters)
    excb.fit(split.train)
    labels = excb.labels_, excb.predict(split.test)
    projections = excb.transform(split.train), excb.transform(split.test)
    excb.set_params(embedding="backbone")
    features = excb.transform(split.train), excb.transform(split.test)
    return excb._fitted.settings, Outcome(labels, projections, features), excb.history_


def raw_pixels(images: Any) -> np.ndarray:
    """Pixels as rows; of photos of several sizes, those of 32 x 32 thumbnails."""
    if isinstance(images, np.ndarray) and images.shape[1] <= 64:
        return images.reshape(len(images), -1).astype(np.float32)
    thumbnails = [Image.fromarray(np.asarray(image)).resize((32, 32)) for image in images]
    return np.stack([np.asarray(small, np.float32).ravel() for small in thumbnails])


def main() -> None:
    """Run or list the cells of a study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "list"])
    parser.add_argument("--study", choices=list(STUDIES), default="digits")
    parser.add_argument("--data", type=Path, help="folder of the data sets; digits need none")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no cell later")
    arguments = parser.parse_args()
    stop = time.monotonic() + 60 * arguments.minutes
    splits: dict[str, Split] = {}
    for cell in study(arguments.study):
        if arguments.command == "run" and cell.result is None and time.monotonic() < stop:
            if cell.data not in splits:
                splits[cell.data] = load(cell.data, arguments.data)
            result = measure(cell, splits[cell.data])
            RESULTS.mkdir(exist_ok=True)
            cell.path.write_text(json.dumps(result, sort_keys=True) + "\n")
        print(f"{cell}: {summary(cell.result)}", flush=True)


def summary(result: dict[str, Any] | None) -> str:
    """One line of a cell."""
    if result is None:
        return "missing"
    clusters = result if "empty" in result else result["kmeans"]
    return (
        f"empty {clusters['empty']:.1%}, largest {clusters['largest']:.1f}, "
        f"NMI {clusters['nmi']:.3f}, k-NN {result['knn']:.3f}, probe {result['probe']:.3f}, "
        f"{result['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
