"""Methods and cells of the study, and the cells of each table in docs/results.md.

A cell is one fit, with a data set, a method, a seed, and parameters that differ from the defaults.
Its result is one JSON file, named by a hash of its configuration. A cell counts as missing if the
"auto" rules now give other settings than those it was measured with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.data_sets import AS_EMBEDDINGS, AS_ROWS, MORE_HELD_OUT, parts_of
from benchmarks.stored import hashed
from sklearn_excb import ExCBEstimator
from sklearn_excb.settings.resolve import Facts, Settings, resolve

RESULTS = Path(__file__).parent / "results"
SEEDS, _OTHERS = (0, 1, 2), (3, 4, 5)

# All methods use the learning rate of the rule and a teacher temperature of .04; ``--study tuning``
# tries other values. In this study, lightly's DINO did better with a slower teacher, which was once
# the rule for ExCB: at the start, the teacher is an average over a twentieth of the run.
METHODS: dict[str, dict[str, Any]] = {
    "ExCB": {},
    "centering": {"balancing": "centering"},
    "Sinkhorn": {"balancing": "sinkhorn"},
    "no balancing": {"balancing": "none"},
    "untrained": {"epochs": 0},
    "raw pixels": {},
    "k-means": {},
    "k-means, settled": {},
    "lightly DINO": {},
    "lightly DINO, slower teacher": {"teacher_lag": 1 / 20},
    "lightly SwAV": {},
    "solo-learn DINO": {},
    "solo-learn SwAV": {},
}
K_MEANS = ("k-means", "k-means, settled")
# Increase a revision if a change of the code changes the results of a method but not its settings.
REVISIONS = dict.fromkeys(METHODS, 2) | dict.fromkeys(("raw pixels", *K_MEANS), 1)

# Number of drawn images, four fifths of them for training: a small collection of photos.
DRAWN = {"packed_clothing_short160": 2000}

# Settings that were added after cells were measured, with the values that fits had before.
_LATER: dict[str, Any] = {"freeze_backbone": False, "size_tolerance": 1.0, "n_starts": 1}
_LATER_VIEWS = {"images": "crops", "rows": "noise"}


@dataclass(frozen=True)
class Cell:
    """One fit of the study.

    Attributes
    ----------
    data : str
        Name of a data set, as for :func:`benchmarks.data_sets.load`. With the suffix
        " as embeddings", the data are the embeddings that ExCB with the same seed computes.
    method : str
        Name of the method, one of METHODS.
    seed : int
        Seed of the fit.
    changed : dict
        Parameters of the estimator in addition to those of the method. "rate" is a factor on the
        learning rate of the rule. "teacher_lag" is the averaging time of the teacher as a share of
        the run.
    validation : bool
        Whether a part of the training images is used instead of the held-out ones.
    """

    data: str
    method: str
    seed: int
    changed: dict[str, Any] = field(default_factory=dict)
    validation: bool = False

    @property
    def path(self) -> Path:
        """Path of the result."""
        key = asdict(self) | {"revision": REVISIONS[self.method]}
        images, made = parts_of(self.data)
        if images in DRAWN:
            key["drawn"] = DRAWN[images]
        if made == "embeddings":
            key["embedding_revision"] = REVISIONS["ExCB"]
        return RESULTS / f"{hashed(key)[:16]}.json"

    def parameters(self, facts: Facts) -> dict[str, Any]:
        """Return the parameters of the estimator."""
        chosen = METHODS[self.method] | self.changed
        if rate := chosen.pop("rate", None):
            by_rule = resolved(ExCBEstimator(**chosen), facts).learning_rate
            chosen["learning_rate"] = rate * by_rule
        if lag := chosen.pop("teacher_lag", None):
            settings = resolved(ExCBEstimator(**chosen), facts)
            steps = settings.epochs * settings.steps_per_epoch(facts.n_samples)
            chosen["teacher_momentum"] = 1 - 1 / (lag * steps)
        return chosen

    def states(self, settings: Settings) -> Path:
        """Return the folder for checkpoints of the fit; it depends on the resolved settings."""
        return self.path.with_suffix(f".{hashed(settings.as_dict())[:8]}.states")

    @property
    def result(self) -> dict[str, Any] | None:
        """Result of the cell; None if it is missing or its "auto" settings have changed."""
        if not self.path.exists():
            return None
        result = json.loads(self.path.read_text())
        if not _by_todays_rules(self.parameters(Facts(**result["facts"])), result):
            return None
        origin = result.get("origin")
        return result if origin is None or _by_todays_rules({}, origin) else None

    def __str__(self) -> str:
        changed = "".join(f", {name}={value}" for name, value in self.changed.items())
        part = ", validation" if self.validation else ""
        return f"{self.data}{part}: {self.method}{changed}, seed {self.seed}"


def _by_todays_rules(parameters: dict[str, Any], result: dict[str, Any]) -> bool:
    """Return whether parameters resolve to the settings of a result, apart from its precision."""
    now = resolved(ExCBEstimator(**parameters), Facts(**result["facts"])).as_dict()
    now["precision"] = result["settings"]["precision"]
    then = _LATER | {"views": _LATER_VIEWS[result["facts"]["kind"]]} | result["settings"]
    return json.loads(json.dumps(now)) == then


def resolved(excb: ExCBEstimator, facts: Facts) -> Settings:
    """Resolve all parameters by the current rules; all backbones here have BatchNorm."""
    return resolve(excb.get_params(), facts, has_batch_norm=True)


def study(name: str) -> list[Cell]:
    """Return the cells of a study, or of all methods on a data set, in the order of the runs."""
    return list(STUDIES[name]() if name in STUDIES else _main(name, _ALL))


def _main(data: str, methods: tuple[str, ...], seeds: tuple[int, ...] = SEEDS) -> Iterator[Cell]:
    for seed in seeds:
        for method in methods:
            yield Cell(data, method, seed)


def _robustness() -> Iterator[Cell]:
    """Yield five seeds, three batch sizes and three K on digits (n = 1,437): does any collapse?"""
    for seed in range(5):
        for batch_size in (16, 64, 256):
            for K in (14, 74, 287):
                yield Cell("digits", "ExCB", seed, {"K": K, "batch_size": batch_size})


def _ablations() -> Iterator[Cell]:
    """Yield single changes on digits: Table 1 of the paper, and details that its sources omit."""
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
        yield Cell("digits", "lightly DINO", seed, {"precision": "32"})


def _fresh_seeds() -> Iterator[Cell]:
    """Yield more seeds for comparisons that depend on one to four held-out images.

    On MNIST, more images are held out, too.
    """
    yield from _main("digits", ("ExCB", "lightly SwAV", "Sinkhorn"), _OTHERS)
    yield from _main("mnist10k_npm" + MORE_HELD_OUT, ("ExCB", "lightly SwAV"), _OTHERS)


def _larger_network() -> Iterator[Cell]:
    """Yield cells with the backbone of larger photo collections, on a small collection."""
    for seed in SEEDS:
        yield Cell("packed_clothing_short160", "ExCB", seed, {"backbone": "resnet18"})


def _tuning() -> Iterator[Cell]:
    """Yield five settings per method (four without a teacher), one change at a time, on digits.

    The cells use a validation part of the training images. "rate" is a factor on the learning rate
    of the rule. Factors are tried at the (initial) temperature of the paper of the method. One more
    cell has another temperature, for DINO the rising one of its paper, and one has a slower
    teacher, for methods with a teacher.
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
    """Yield Sinkhorn with settling, to separate the effects of training and settling."""
    for data in ("digits", "packed_clothing_short160"):
        for seed in SEEDS:
            yield Cell(data, "Sinkhorn", seed, {"settle_passes": 10})


def _rows() -> Iterator[Cell]:
    """Yield cells on vectors: pixels and embeddings, with more seeds to resolve .02 of NMI."""
    methods = ("ExCB", *K_MEANS)
    yield from _main("digits" + AS_ROWS, methods)
    yield from _main("digits" + AS_EMBEDDINGS, methods, (*SEEDS, *_OTHERS))
    yield from _main("mnist10k_npm" + AS_ROWS, methods)


_ON_DIGITS = ("no balancing", "solo-learn DINO", "solo-learn SwAV")
_ALL = tuple(method for method in METHODS if method not in (*_ON_DIGITS, *K_MEANS))
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
