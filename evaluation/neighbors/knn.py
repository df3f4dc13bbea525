"""The weighted k-nearest-neighbour protocol: how well neighbours predict a class.

As in DINO and the work before it (Wu et al., "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination", CVPR 2018): the k most similar training rows by cosine each vote
exp(similarity / temperature) for their class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import (
    check_1d,
    check_choice,
    check_comparable,
    check_count,
    check_positive,
    check_rows,
    check_same_length,
    missing_rows,
)
from .knn_classifier import KNNClassifier
from .search import Backend
from .voting import predicted_codes

__all__ = ["KNNClassifier", "KNNScores", "knn_accuracy", "knn_scores"]

PROTOCOL = (10, 20, 100, 200)
"""Numbers of neighbours that DINO reports."""


@dataclass(frozen=True)
class KNNScores:
    """How well neighbours predict a class; see `knn_scores`.

    Attributes
    ----------
    accuracy : dict of int to float
        Share of test images whose class is predicted, in [0, 1], for each number of neighbours.
    n_train : int
        Training images used. In leave-one-out, each chooses among the others.
    n_test : int
        Test images scored.
    n_skipped : int
        Images of either set left out, because their row is NaN.
    n_unseen : int
        Test images scored wrong whatever their neighbours are: no training image that they choose
        among has their class.
    n_classes : int
        Classes of the training images.
    """

    accuracy: dict[int, float]
    n_train: int
    n_test: int
    n_skipped: int
    n_unseen: int
    n_classes: int


def knn_scores(
    train: ArrayLike,
    y_train: ArrayLike,
    test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    *,
    k: int | Sequence[int] | None = None,
    temperature: float = 0.07,
    backend: Backend = "auto",
) -> KNNScores:
    """Measure weighted k-nearest-neighbour classification, and count what it rests on.

    Parameters
    ----------
    train : array-like of shape (n_train, d)
        Embeddings of the training images. Rows that are NaN throughout, as skipped images have,
        are left out and counted.
    y_train : array-like of shape (n_train,)
        Their classes, integers or strings.
    test : array-like of shape (n_test, d), optional
        Embeddings of the test images, read in batches, so a memory map works. Without them the
        training rows are classified, each by its neighbours among the others (leave-one-out).
    y_test : array-like of shape (n_test,), optional
        Their classes. A class that ``y_train`` lacks counts as wrong, and in ``n_unseen``.
    k : int or sequence of int, optional
        Number of neighbours; several cost one search. By default those of 10, 20, 100 and 200, the
        numbers of DINO, for which there are rows enough.
    temperature : float, default=0.07
        Each neighbour votes exp(similarity / temperature).
    backend : {"auto", "faiss", "torch"}, default="auto"
        See `nearest_neighbors`; it does not change the result.

    Returns
    -------
    KNNScores

    Raises
    ------
    ValueError
        If shapes disagree, no row is left, a row holds NaN or infinity among numbers, or a ``k``
        asked for exceeds the rows to choose from.

    Notes
    -----
    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021; Wu et
    al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018.

    With one class only every prediction is that class: the accuracy is the share of test images
    that have it, and tells nothing.

    Examples
    --------
    >>> from evaluation import knn_scores
    >>> scores = knn_scores([[1, 0], [0, 1]], ["cat", "dog"], [[2, 1], [1, 3]], ["cat", "cow"], k=1)
    >>> scores.accuracy, scores.n_unseen
    ({1: 0.5}, 1)
    """
    ks = None if k is None else _checked_ks(k)
    temperature = check_positive(temperature, "temperature")
    check_choice(backend, "backend", ("auto", "faiss", "torch"))
    if (test is None) != (y_test is None):
        missing, given = ("test", "y_test") if test is None else ("y_test", "test")
        raise ValueError(
            f"{given} came without {missing}: needed both, or neither for leave-one-out."
        )
    train, y_train, seen = _checked_set(train, y_train, "train")
    ignored = int((~seen).sum())
    alone = test is None
    if alone:
        test, y_test, looked_up = train, y_train, seen
    else:
        test, y_test, looked_up = _checked_set(test, y_test, "test")  # pyright: ignore[reportArgumentType]
        ignored += int((~looked_up).sum())
        check_comparable(train, y_train, test, y_test)
    if ignored:
        train, y_train, y_test = train[seen], y_train[seen], y_test[looked_up]
    ks = _that_fit(ks, len(train), alone)

    classes, codes, sizes = np.unique(y_train, return_inverse=True, return_counts=True)
    own = np.searchsorted(classes, y_test).clip(max=len(classes) - 1)
    # By leave-one-out an image must share its class with another one.
    known = (classes[own] == y_test) & (sizes[own] > int(alone))
    right = dict.fromkeys(ks, 0)
    rows = np.flatnonzero(looked_up)
    found = predicted_codes(test, train, codes, ks, temperature, backend, rows=rows, alone=alone)
    for positions, winners in found:
        for each, winner in zip(ks, winners, strict=True):
            right[each] += int((known[positions] & (winner == own[positions])).sum())
    return KNNScores(
        accuracy={each: count / len(rows) for each, count in right.items()},
        n_train=len(train),
        n_test=len(rows),
        n_skipped=ignored,
        n_unseen=int((~known).sum()),
        n_classes=len(classes),
    )


@overload
def knn_accuracy(
    train: ArrayLike,
    y_train: ArrayLike,
    test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    *,
    k: int = 20,
    temperature: float = 0.07,
    backend: Backend = "auto",
) -> float: ...
@overload
def knn_accuracy(
    train: ArrayLike,
    y_train: ArrayLike,
    test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    *,
    k: Sequence[int],
    temperature: float = 0.07,
    backend: Backend = "auto",
) -> dict[int, float]: ...
def knn_accuracy(
    train: ArrayLike,
    y_train: ArrayLike,
    test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    *,
    k: int | Sequence[int] = 20,
    temperature: float = 0.07,
    backend: Backend = "auto",
) -> float | dict[int, float]:
    """Measure the accuracy of weighted k-nearest-neighbour classification.

    Parameters
    ----------
    train : array-like of shape (n_train, d)
        Embeddings of the training images. Rows that are NaN throughout, as skipped images have,
        are left out; `knn_scores` counts them.
    y_train : array-like of shape (n_train,)
        Their classes.
    test : array-like of shape (n_test, d), optional
        Embeddings of the test images. Without them the training rows are classified, each by its
        neighbours among the others (leave-one-out).
    y_test : array-like of shape (n_test,), optional
        Their classes. A class that ``y_train`` lacks counts as wrong.
    k : int or sequence of int, default=20
        Number of neighbours. Several, such as (10, 20, 100, 200), cost one search.
    temperature : float, default=0.07
        Each neighbour votes exp(similarity / temperature).
    backend : {"auto", "faiss", "torch"}, default="auto"
        See `nearest_neighbors`; it does not change the result.

    Returns
    -------
    accuracy : float or dict of int to float
        In [0, 1]: a float for one ``k``, else a dictionary ``{k: accuracy}`` in the order given.

    Raises
    ------
    ValueError
        If shapes disagree, a set is empty, or ``k`` exceeds the rows to choose from.

    Examples
    --------
    >>> from evaluation import knn_accuracy
    >>> knn_accuracy([[1, 0], [0, 1]], ["cat", "dog"], [[2, 1]], ["cat"], k=1)
    1.0
    """
    scores = knn_scores(train, y_train, test, y_test, k=k, temperature=temperature, backend=backend)
    several = isinstance(k, Sequence | np.ndarray)
    return scores.accuracy if several else next(iter(scores.accuracy.values()))


def _checked_ks(k: Any) -> list[int]:
    """Return the numbers of neighbours asked for."""
    ks = [check_count(each, "k") for each in (k if isinstance(k, Sequence | np.ndarray) else [k])]
    if not ks:
        raise ValueError("k is an empty sequence, needed at least one number of neighbours.")
    return list(dict.fromkeys(ks))


def _that_fit(ks: list[int] | None, n_train: int, alone: bool) -> list[int]:
    """Return the numbers of neighbours to use, each at most the rows there are to choose from."""
    available, others = n_train - alone, " other" if alone else ""
    if ks is None:
        ks = [each for each in PROTOCOL if each <= available]
        if not ks:
            raise ValueError(
                f"There are {available}{others} rows to choose neighbours from, needed at least "
                f"{PROTOCOL[0]}. Pass a smaller k, or more rows."
            )
    elif max(ks) > available:
        raise ValueError(
            f"k={max(ks)} exceeds the {available}{others} rows to choose from. Lower k, or pass "
            "more training rows."
        )
    return ks


def _checked_set(
    x: ArrayLike, y: ArrayLike, name: str
) -> tuple[NDArray, NDArray, NDArray[np.bool_]]:
    """Return rows, classes, and which rows are there, (n,)."""
    y, x = check_1d(y, f"y_{name}"), check_rows(x, name)
    check_same_length(x, y, name, f"y_{name}")
    there = ~missing_rows(x)
    if not there.any():
        raise ValueError(f"All {len(x)} rows of {name} are NaN (skipped), needed at least one.")
    if y.dtype.kind == "f" and np.isnan(y[there]).any():
        raise ValueError(f"y_{name} holds NaN, needed a class for every image that has a row.")
    return x, y, there
