"""Does it learn, and do clusters stay filled? ExCB against its rivals, cell by cell.

    python -m benchmarks.learning run --study digits            # what is not there yet
    python -m benchmarks.learning run --study all --data DIR    # sets are files or folders in DIR
    python -m benchmarks.learning run --study NAME --data DIR   # yours, by its name in DIR
    python -m benchmarks.learning run --study NAME --methods ExCB --seeds 0 2
    python -m benchmarks.learning list --study all              # what there is and what is missing
    python -m benchmarks.results                                # tables and plots into docs

A cell is one fit: a data set, a method, a seed, and parameters that differ from the defaults. Each
leaves one JSON file, named by a hash of its configuration, so that a study can be stopped at any
time and goes on where it was, in the middle of a fit too if it is ExCBEstimator's. Only the seed
changes between the cells of a row, and in training nothing but the balancing between ExCB,
centering and Sinkhorn. ``--study tuning`` tries the same changes for every method, on a validation
part of the training images of digits; ``--study rows`` clusters vectors, pixels and embeddings.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import lightly_methods, solo_methods
from benchmarks.data_sets import AS_ROWS, MOST, Split, load
from benchmarks.figures import Outcome, figures
from sklearn_excb import ExCBEstimator, __version__
from sklearn_excb.devices import resolve_precision
from sklearn_excb.images import open_source
from sklearn_excb.preparing import facts_of
from sklearn_excb.settings import Facts, Settings, resolve

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)

# all at the rule's rate and a teacher's temperature of .04; ``--study tuning`` tries others, and
# found that lightly's DINO does better with a teacher that lags behind by a twentieth of the run
METHODS: dict[str, dict[str, Any]] = {
    "ExCB": {},
    "centering": {"balancing": "centering"},
    "Sinkhorn": {"balancing": "sinkhorn"},
    "no balancing": {"balancing": "none"},
    "untrained": {"epochs": 0},
    "raw pixels": {},
    "lightly DINO": {},
    "lightly DINO, slower teacher": {"teacher_lag": 1 / 20},
    "lightly SwAV": {},
    "solo-learn DINO": {},
    "solo-learn SwAV": {},
}
# to be raised when code changes what a method gives and its settings do not show it
REVISIONS = dict.fromkeys(METHODS, 2) | {"raw pixels": 1}

# images that are drawn, four fifths of them to learn from: a small collection of photos
DRAWN = {"packed_clothing_short160": 2000}

# embeddings of its images in place of the images, after the name of a data set
EMBEDDED = " as embeddings"

# settings that came after cells were measured, and what a fit was before it had them
_LATER: dict[str, Any] = {"freeze_backbone": False}


@dataclass(frozen=True)
class Cell:
    """One fit.

    Attributes
    ----------
    data : str
        As in :func:`benchmarks.data_sets.load`; with EMBEDDED after it, what ExCB of the same seed
        makes of it.
    method : str
        One of METHODS.
    seed : int
        Of the fit.
    changed : dict
        Parameters of the estimator that are not the method's; "rate" times the rule's learning
        rate; or the "teacher_lag" in shares of the run.
    validation : bool
        Whether a part of the training images takes the place of the held-out ones.
    """

    data: str
    method: str
    seed: int
    changed: dict[str, Any] = field(default_factory=dict)
    validation: bool = False

    @property
    def path(self) -> Path:
        """Where the result lies."""
        key = asdict(self) | {"revision": REVISIONS[self.method]}
        if self.data in DRAWN:
            key["drawn"] = DRAWN[self.data]
        return RESULTS / f"{_hash(key)[:16]}.json"

    def parameters(self, facts: Facts) -> dict[str, Any]:
        """Parameters of the estimator."""
        chosen = METHODS[self.method] | self.changed
        if rate := chosen.pop("rate", None):
            by_rule = _resolved(ExCBEstimator(**chosen), facts).learning_rate
            chosen["learning_rate"] = rate * by_rule
        if lag := chosen.pop("teacher_lag", None):
            settings = _resolved(ExCBEstimator(**chosen), facts)
            steps = settings.epochs * settings.steps_per_epoch(facts.n_samples)
            chosen["teacher_momentum"] = 1 - 1 / (lag * steps)
        return chosen

    def states(self, settings: Settings) -> Path:
        """Folder of the states of a fit that is under way; another one once a rule has changed."""
        return self.path.with_suffix(f".{_hash(settings.as_dict())[:8]}.states")

    @property
    def result(self) -> dict[str, Any] | None:
        """What was measured, or None; also where a rule of "auto" has changed since."""
        if not self.path.exists():
            return None
        result = json.loads(self.path.read_text())
        facts, measured = Facts(**result["facts"]), result["settings"]
        now = _resolved(ExCBEstimator(**self.parameters(facts)), facts).as_dict()
        now["precision"] = measured["precision"]  # that of the processor
        return result if json.loads(json.dumps(now)) == _LATER | measured else None

    def __str__(self) -> str:
        changed = "".join(f", {name}={value}" for name, value in self.changed.items())
        part = ", validation" if self.validation else ""
        return f"{self.data}{part}: {self.method}{changed}, seed {self.seed}"


def _hash(configuration: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def study(name: str) -> list[Cell]:
    """Cells of a study, or of all methods on a data set, in the order in which they are run."""
    return list(STUDIES[name]() if name in STUDIES else _main(name, _ALL))


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
            {"precision": "32"},
        ):
            yield Cell("digits", "ExCB", seed, changed)


def _fresh_seeds() -> Iterator[Cell]:
    """On digits SEEDS left ExCB two standard errors below a rival; what do others say?"""
    for seed in (3, 4, 5):
        for method in ("ExCB", "lightly SwAV"):
            yield Cell("digits", method, seed)


def _larger_network() -> Iterator[Cell]:
    """What larger collections of photos have, on few of them."""
    for seed in SEEDS:
        yield Cell("packed_clothing_short160", "ExCB", seed, {"backbone": "resnet18"})


def _tuning() -> Iterator[Cell]:
    """The same tries for every method, five or, without a teacher, four, on a part of digits.

    "rate" is times the rule's learning rate, tried at the temperature that the method's paper has,
    or begins with; one more cell has another temperature, for DINO its paper's rise, and one a
    slower teacher, where there is one.
    """
    dino: dict[str, Any] = {"teacher_temperature": [0.04, 0.07]}
    swav: dict[str, Any] = {"teacher_temperature": 0.05}
    slower: dict[str, Any] = {"teacher_momentum": 0.974}
    for seed in (0, 1):
        for method, published, *others in (
            ("ExCB", {}, {"teacher_temperature": 0.05}, slower),
            ("centering", {}, dino, slower),
            ("Sinkhorn", swav, {}, slower),
            ("lightly DINO", {}, dino, slower),
            ("lightly SwAV", swav, {}),
        ):
            rates = published | {"rate": 0.5}, published | {"rate": 2.0}
            for changed in (published, *rates, *others):
                yield Cell("digits", method, seed, changed, validation=True)


def _settling() -> Iterator[Cell]:
    """How much of ExCB's evenness is training, how much what comes after it? A rival with both."""
    for data in ("digits", "packed_clothing_short160"):
        for seed in SEEDS:
            yield Cell(data, "Sinkhorn", seed, {"settle_passes": 10})


def _rows() -> Iterator[Cell]:
    """Vectors: pixels, and what ``transform`` gave. "raw pixels" is k-means on these."""
    for data in ("digits" + AS_ROWS, "mnist10k_npm" + AS_ROWS, "digits" + EMBEDDED):
        yield from _main(data, ("ExCB", "raw pixels"))


_ON_DIGITS = ("no balancing", *solo_methods.METHODS)
_ALL = tuple(method for method in METHODS if method not in _ON_DIGITS)
_SETS = ("packed_cifar10", "mnist10k_npm", "packed_clothing_short160")
STUDIES: dict[str, Any] = {
    "tuning": _tuning,
    "digits": lambda: _main("digits", (*_ALL, *_ON_DIGITS)),
    **{name: (lambda name=name: _main(name, _ALL)) for name in _SETS},
    "fresh-seeds": _fresh_seeds,
    "larger-network": _larger_network,
    "settling": _settling,
    "rows": _rows,
    "ablations": _ablations,
    "robustness": _robustness,
}
STUDIES["all"] = lambda: (cell for name in list(STUDIES) if name != "all" for cell in study(name))


def measure(cell: Cell, split: Split) -> dict[str, Any]:
    """Run a cell."""
    facts = facts_of(open_source(split.train, None))
    excb = ExCBEstimator(random_state=cell.seed, **cell.parameters(facts))
    states = cell.states(_resolved(excb, facts))
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
        "n_test": len(split.y_test),
        "images_seen": 0 if cell.method == "raw pixels" else per_epoch * settings.epochs,
        "seconds": round(seconds, 1),
        "history": history,
        **figures(outcome, split, settings.K, cell.seed),
    }


def split_of(cell: Cell, data: Path | None) -> Split:
    """Images of a cell, or the embeddings of a fit to them."""
    name, *embedded = cell.data.split(EMBEDDED)
    if embedded:
        return _embeddings(name, data, cell.seed)
    return _images(name, data, cell.validation)


@functools.cache
def _images(name: str, data: Path | None, validation: bool = False) -> Split:
    return load(name, data, most=DRAWN.get(name, MOST), validation=validation)


@functools.cache
def _embeddings(name: str, data: Path | None, seed: int) -> Split:
    split = _images(name, data)
    excb = ExCBEstimator(random_state=seed).fit(split.train)
    return split._replace(train=excb.transform(split.train), test=excb.transform(split.test))


def _resolved(excb: ExCBEstimator, facts: Facts) -> Settings:
    """Every parameter, by today's rules; all backbones here have BatchNorm."""
    return resolve(excb.get_params(), facts, has_batch_norm=True)


def _outcome(
    cell: Cell, split: Split, facts: Facts, excb: ExCBEstimator, states: Path
) -> tuple[Settings, Outcome, list[dict[str, Any]]]:
    """Settings, what the method makes of the images, and what it says of itself."""
    if cell.method == "raw pixels":
        rows = raw_pixels(split.train), raw_pixels(split.test)
        return _resolved(excb, facts), Outcome(None, rows, rows), []
    if method := (lightly_methods.METHODS | solo_methods.METHODS).get(cell.method):
        return lightly_methods.fit(method, split, cell.seed, excb)
    excb.set_params(checkpoint_dir=states).fit(split.train)
    labels = excb.labels_, excb.predict(split.test)
    projections = excb.transform(split.train), excb.transform(split.test)
    excb.set_params(embedding="backbone")
    features = excb.transform(split.train), excb.transform(split.test)
    return excb._fitted.settings, Outcome(labels, projections, features), excb.history_


def raw_pixels(images: Any) -> np.ndarray:
    """Pixels as rows, and rows as they are; of large photos, the pixels of 32 x 32 thumbnails."""
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
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="these only")
    parser.add_argument("--seeds", nargs="+", type=int, help="these only")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no cell later")
    arguments = parser.parse_args()
    stop = time.monotonic() + 60 * arguments.minutes
    for cell in study(arguments.study):
        if cell.method not in arguments.methods:
            continue
        if arguments.seeds is not None and cell.seed not in arguments.seeds:
            continue
        elsewhere = not cell.data.startswith("digits") and arguments.data is None
        absent = arguments.study in ("all", "rows") and elsewhere
        wanted = arguments.command == "run" and cell.result is None and not absent
        if wanted and time.monotonic() < stop:
            write(cell, measure(cell, split_of(cell, arguments.data)))
        print(f"{cell}: {summary(cell.result)}", flush=True)


def write(cell: Cell, result: dict[str, Any]) -> None:
    """Put a result in its place, whole or not at all."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(_finite(result), sort_keys=True, allow_nan=False)
    beside = cell.path.with_suffix(f".{os.getpid()}.partial")
    beside.write_text(text + "\n")
    beside.replace(cell.path)
    for states in RESULTS.glob(f"{cell.path.stem}.*.states"):
        shutil.rmtree(states)


def _finite(value: Any) -> Any:
    """What has no measurement is null."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def clusters_of(result: dict[str, Any]) -> dict[str, Any]:
    """Figures of the method's clusters; where it has none, those of k-means."""
    return result if "empty" in result else result["kmeans"]


def seconds_of(result: dict[str, Any]) -> float:
    """What a fit took; nan of one that was stopped and went on."""
    return float("nan") if result["seconds"] is None else result["seconds"]


def summary(result: dict[str, Any] | None) -> str:
    """One line of a cell."""
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
