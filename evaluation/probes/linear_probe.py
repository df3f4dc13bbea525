"""Linear evaluation: the accuracy of a linear classifier on frozen embeddings.

The classifier is trained on all training rows or on few-shot samples with several seeds, and on
fixed embeddings or, as in the published protocol, on newly augmented images in every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.multiclass import check_classification_targets

from .._checks import (
    LARGEST_SEED,
    check_classes,
    check_comparable,
    check_count,
    check_finite,
    check_rows,
    check_same_length,
    missing_rows,
)
from .classifier import LinearProbe, Solver
from .settings import Views
from .stratified import few_shot

__all__ = ["LinearProbe", "ProbeScores", "linear_probe_scores"]

_TOP = 5
_FEW_SHOT_SEEDS = (0, 1, 2, 3, 4)
_BLOCK = 2**22  # logits held at once while scoring


@dataclass(frozen=True)
class ProbeScores:
    """Accuracy of a linear probe over several seeds; see `linear_probe_scores`.

    Attributes
    ----------
    top1 : float
        Share of the test rows whose class has the highest logit, in [0, 1]; mean over the seeds.
    top5 : float
        Share of the test rows whose class is among the ``k`` highest logits, in [0, 1]; mean over
        the seeds.
    top1_std, top5_std : float
        Sample standard deviations over the seeds (divisor n - 1); NaN for a single seed.
    k : int
        5, or the number of classes if it is smaller.
    fraction : float
        Share of the training rows of each class that was used.
    seeds : tuple of int
        Seeds of the runs.
    top1_of_seeds, top5_of_seeds : tuple of float
        Accuracies of the runs, one per seed.
    learning_rates : tuple of float
        Chosen learning rates, one per seed; NaN for "lbfgs".
    solver : str
        Solver that was used, "lbfgs" or "sgd".
    n_train, n_test : int
        Number of training and test rows in each run.
    n_classes : int
        Number of classes in the training rows.
    n_skipped_train, n_skipped_test : int
        Number of rows left out because they are NaN, which marks skipped images, or because their
        class is missing.
    n_unseen : int
        Number of test rows of a class that is not in the training rows. They count as wrong.
    """

    top1: float
    top5: float
    top1_std: float
    top5_std: float
    k: int
    fraction: float
    seeds: tuple[int, ...]
    top1_of_seeds: tuple[float, ...]
    top5_of_seeds: tuple[float, ...]
    learning_rates: tuple[float, ...]
    solver: str
    n_train: int
    n_test: int
    n_classes: int
    n_skipped_train: int
    n_skipped_test: int
    n_unseen: int


@overload
def linear_probe_scores(
    train: ArrayLike,
    y_train: ArrayLike,
    test: ArrayLike,
    y_test: ArrayLike,
    *,
    fraction: float = 1.0,
    seeds: int | Sequence[int] | None = None,
    views: Views | None = None,
    solver: Solver = "auto",
    **parameters: Any,
) -> ProbeScores: ...
@overload
def linear_probe_scores(
    train: ArrayLike,
    y_train: ArrayLike,
    test: ArrayLike,
    y_test: ArrayLike,
    *,
    fraction: Sequence[float],
    seeds: int | Sequence[int] | None = None,
    views: Views | None = None,
    solver: Solver = "auto",
    **parameters: Any,
) -> dict[float, ProbeScores]: ...
def linear_probe_scores(
    train: ArrayLike,
    y_train: ArrayLike,
    test: ArrayLike,
    y_test: ArrayLike,
    *,
    fraction: float | Sequence[float] = 1.0,
    seeds: int | Sequence[int] | None = None,
    views: Views | None = None,
    solver: Solver = "auto",
    **parameters: Any,
) -> ProbeScores | dict[float, ProbeScores]:
    """Measure the accuracy of a linear classifier trained on embeddings.

    The learning rate is chosen by held-out training rows. The test rows are used only for the
    final accuracy.

    Parameters
    ----------
    train : array-like of shape (n_train, d)
        Embeddings of the training images. Rows of NaN, which mark skipped images, are left out
        with their labels, and counted.
    y_train : array-like of shape (n_train,)
        Class labels of the training images, of at least two classes. Images without a class (None,
        NaN) are left out and counted, here and in ``y_test``.
    test : array-like of shape (n_test, d)
        Embeddings of the test images. Rows of NaN are left out and counted, too.
    y_test : array-like of shape (n_test,)
        Class labels of the test images. Images of a class that is not in ``y_train`` count as wrong
        and are counted in ``n_unseen``.
    fraction : float or sequence of float, default=1.0
        Shares of the training rows to train on, in (0, 1], such as (0.01, 0.1, 1.0). The rows are
        drawn class by class, at least one of each class.
    seeds : int or sequence of int, optional
        Seeds of the drawn rows and of the probe, with one training per seed. The default is 0 for a
        fraction of 1, and 0 to 4 for smaller fractions.
    views : callable, optional
        Function ``views(epoch, rows)`` that returns embeddings (len(rows), d) of augmented training
        images, by their positions in ``train``; see `LinearProbe.fit_views`. ``train`` is then used
        only to standardise features and to choose the learning rate.
    solver : {"auto", "lbfgs", "sgd"}, default="auto"
        Solver, see `LinearProbe`.
    **parameters
        Further parameters of `LinearProbe`.

    Returns
    -------
    scores : ProbeScores or dict of float to ProbeScores
        Scores for a single ``fraction``, or a dictionary ``{fraction: scores}`` in the given order.

    Raises
    ------
    ValueError
        If shapes disagree, a set is empty, a row is partly NaN or holds infinity, the training rows
        have only one class, or a parameter is out of range.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from evaluation import linear_probe_scores
    >>> X, y = load_digits(return_X_y=True)
    >>> scores = linear_probe_scores(X[:1000], y[:1000], X[1000:], y[1000:], fraction=(0.1, 1.0))
    >>> scores[0.1].n_train, scores[0.1].top5 > 0.9, scores[1.0].top1 > scores[0.1].top1
    (100, True, True)
    """
    several = isinstance(fraction, Sequence | np.ndarray)
    fractions = [_check_fraction(each) for each in (fraction if several else [fraction])]  # pyright: ignore[reportGeneralTypeIssues]
    if not fractions:
        raise ValueError("fraction is an empty sequence, expected at least one share of the rows.")
    if "random_state" in parameters:
        raise ValueError("random_state cannot be passed here. Use seeds, an integer or several.")
    if seeds is not None:
        seeds = [seeds] if not isinstance(seeds, Sequence | np.ndarray) else seeds
        seeds = [check_count(seed, "seeds", minimum=0) for seed in seeds]
        if not seeds:
            raise ValueError("seeds is an empty sequence, expected at least one seed.")
        if max(seeds) > LARGEST_SEED:
            raise ValueError(f"seeds={max(seeds)}, expected integers of at most {LARGEST_SEED}.")
    x, y, kept = _usable(train, y_train, "train")
    x_test, y_test, kept_test = _usable(test, y_test, "test")
    check_comparable(x, y, x_test, y_test)
    data = _Data(x, y, np.flatnonzero(kept), x_test, y_test, len(kept), len(kept_test))

    scores = {
        each: _scores(
            data,
            each,
            tuple(seeds or (_FEW_SHOT_SEEDS if each < 1 else (0,))),
            views,
            LinearProbe(solver, **parameters),
        )
        for each in fractions
    }
    return scores if several else scores[fractions[0]]


@dataclass(frozen=True)
class _Data:
    """Usable rows and classes, positions of the training rows, and the numbers of given rows."""

    x: NDArray
    y: NDArray
    places: NDArray[np.intp]
    x_test: NDArray
    y_test: NDArray
    n_train_given: int
    n_test_given: int


def _scores(
    data: _Data, fraction: float, seeds: tuple[int, ...], views: Views | None, probe: LinearProbe
) -> ProbeScores:
    """Train and test once per seed."""
    classes, codes = np.unique(data.y, return_inverse=True)
    k = min(_TOP, len(classes))
    found, rates, n_train = [], [], 0
    for seed in seeds:
        rows = few_shot(codes, fraction, np.random.default_rng(seed))
        n_train = len(rows)
        probe.set_params(random_state=seed)
        x, y = (data.x, data.y) if n_train == len(data.x) else (data.x[rows], data.y[rows])
        if views is None:
            probe.fit(x, y)
        else:
            places = data.places[rows]
            probe.fit_views(lambda epoch, some, of=places: views(epoch, of[some]), x, y)
        ranks = _ranks(probe, data.x_test, data.y_test)
        found.append([np.mean(ranks < 1), np.mean(ranks < k)])
        rates.append(float(probe.learning_rate_))
    found = np.array(found)
    mean = found.mean(axis=0)
    spread = found.std(axis=0, ddof=1) if len(seeds) > 1 else np.full(2, np.nan)
    return ProbeScores(
        *map(float, (*mean, *spread)),
        k=k,
        fraction=fraction,
        seeds=seeds,
        top1_of_seeds=tuple(found[:, 0].tolist()),
        top5_of_seeds=tuple(found[:, 1].tolist()),
        learning_rates=tuple(rates),
        solver=probe.solver_,
        n_train=n_train,
        n_test=len(data.x_test),
        n_classes=len(classes),
        n_skipped_train=data.n_train_given - len(data.x),
        n_skipped_test=data.n_test_given - len(data.x_test),
        n_unseen=int((~np.isin(data.y_test, classes)).sum()),
    )


def _ranks(probe: LinearProbe, x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Count the classes ranked before the true one, (n,); infinite if it was not in training.

    Equal logits are ranked in the order of the classes, because ``predict`` returns the first.
    """
    classes = probe.classes_
    codes = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    seen = classes[codes] == y
    ranks = np.full(len(x), np.inf)
    size = max(1, _BLOCK // len(classes))
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        logits = probe.decision_function(x[part])
        if logits.ndim == 1:
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
        of_class = np.take_along_axis(logits, codes[part, None], axis=1)
        earlier = np.arange(len(classes)) < codes[part, None]
        ranks[part] = ((logits > of_class) | (earlier & (logits == of_class))).sum(axis=1)
    return np.where(seen, ranks, np.inf)


def _usable(x: ArrayLike, y: ArrayLike, name: str) -> tuple[NDArray, NDArray, NDArray[np.bool_]]:
    """Return rows and classes of images that have both, and a mask of the kept rows, (n_given,)."""
    (labels, known), rows = check_classes(y, f"y_{name}"), check_rows(x, name)
    check_same_length(rows, labels, name, f"y_{name}")
    kept = known & ~missing_rows(rows)
    if not kept.any():
        with_class = "" if known.all() else " where a class is known"
        raise ValueError(
            f"{name} holds NaN only{with_class}, expected at least one row of an image that was "
            "not "
            "skipped."
        )
    check_classification_targets(labels[kept])
    # a row that is partly NaN is an error; the message gives its number in the whole array
    check_finite(np.where(kept[:, None], rows, 0) if not kept.all() else rows, name)
    return (rows, labels, kept) if kept.all() else (rows[kept], labels[kept], kept)


def _check_fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= 1:
        raise ValueError(f"fraction={value!r}, expected a share of the training rows in (0, 1].")
    return float(value)
