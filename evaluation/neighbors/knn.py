"""Weighted k-nearest-neighbour evaluation: how well the neighbours of an image predict its class.

The protocol is that of DINO and of Wu et al., "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination", CVPR 2018. Each of the k training rows with the highest cosine similarity
votes exp(similarity / temperature) for its class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import (
    check_choice,
    check_classes,
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
    """Accuracy of weighted k-nearest-neighbour classification; see `knn_scores`.

    Attributes
    ----------
    accuracy : dict of int to float
        Share of test images whose class is predicted correctly, in [0, 1], for each number of
        neighbours.
    n_train : int
        Number of training images. In leave-one-out, the neighbours of an image are chosen among
        the others.
    n_test : int
        Number of scored test images.
    n_skipped : int
        Number of images of both sets left out because their row is NaN or their class is missing.
    n_unseen : int
        Number of test images that cannot be right because no training image (in leave-one-out, no
        other image) has their class. They count as wrong.
    n_classes : int
        Number of classes of the training images.
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
    """Measure the accuracy of weighted k-nearest-neighbour classification, with image counts.

    Parameters
    ----------
    train : array-like of shape (n_train, d)
        Embeddings of the training images. Rows of NaN, which mark skipped images, are left out and
        counted.
    y_train : array-like of shape (n_train,)
        Class labels of the training images, integers or strings. Images without a class (None, NaN)
        are left out and counted in ``n_skipped``, here and in ``y_test``.
    test : array-like of shape (n_test, d), optional
        Embeddings of the test images. They are read in batches and may be a memory map. Without
        ``test``, each training row is classified by the others (leave-one-out).
    y_test : array-like of shape (n_test,), optional
        Class labels of the test images. Images of a class that is not in ``y_train`` count as wrong
        and are counted in ``n_unseen``.
    k : int or sequence of int, optional
        Number of neighbours. Several numbers need only one search. By default 10, 20, 100 and 200,
        the numbers of DINO, without those that exceed the available rows.
    temperature : float, default=0.07
        Temperature of the votes: each neighbour votes exp(similarity / temperature).
    backend : {"auto", "faiss", "torch"}, default="auto"
        Search library, see `nearest_neighbors`. It does not change the result.

    Returns
    -------
    KNNScores

    Raises
    ------
    ValueError
        If shapes disagree, all rows are skipped, a row is partly NaN or holds infinity, or ``k``
        exceeds the available rows.

    Notes
    -----
    The protocol is that of Caron et al., "Emerging Properties in Self-Supervised Vision
    Transformers", ICCV 2021, and Wu et al., "Unsupervised Feature Learning via Non-Parametric
    Instance Discrimination", CVPR 2018.

    With a single class, every prediction is this class. The accuracy is then the share of test
    images of this class and carries no information.

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
            f"{given} came without {missing}. Pass both, or neither for leave-one-out."
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
    # In leave-one-out, another image must have the same class.
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
        Embeddings of the training images. Rows of NaN, which mark skipped images, are left out;
        `knn_scores` counts them.
    y_train : array-like of shape (n_train,)
        Class labels of the training images.
    test : array-like of shape (n_test, d), optional
        Embeddings of the test images. Without ``test``, each training row is classified by the
        others (leave-one-out).
    y_test : array-like of shape (n_test,), optional
        Class labels of the test images. Images of a class that is not in ``y_train`` count as
        wrong.
    k : int or sequence of int, default=20
        Number of neighbours. Several numbers, such as (10, 20, 100, 200), need only one search.
    temperature : float, default=0.07
        Temperature of the votes: each neighbour votes exp(similarity / temperature).
    backend : {"auto", "faiss", "torch"}, default="auto"
        Search library, see `nearest_neighbors`. It does not change the result.

    Returns
    -------
    accuracy : float or dict of int to float
        Accuracy in [0, 1]: a float for one ``k``, a dictionary ``{k: accuracy}`` in the given order
        for several.

    Raises
    ------
    ValueError
        If shapes disagree, a set is empty, or ``k`` exceeds the available rows.

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
    """Return ``k`` as a list of distinct integers."""
    ks = [check_count(each, "k") for each in (k if isinstance(k, Sequence | np.ndarray) else [k])]
    if not ks:
        raise ValueError("k is an empty sequence, expected at least one number of neighbours.")
    return list(dict.fromkeys(ks))


def _that_fit(ks: list[int] | None, n_train: int, alone: bool) -> list[int]:
    """Return the numbers of neighbours to use, each at most the number of available rows."""
    available, others = n_train - alone, " other" if alone else ""
    if ks is None:
        ks = [each for each in PROTOCOL if each <= available]
        if not ks:
            raise ValueError(
                f"There are {available}{others} rows to choose neighbours from, expected at least "
                f"{PROTOCOL[0]} for the default k. Pass a smaller k, or more rows."
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
    """Return rows, class labels, and a mask of the rows that have a class and were not skipped."""
    (classes, known), x = check_classes(y, f"y_{name}"), check_rows(x, name)
    check_same_length(x, classes, name, f"y_{name}")
    there = known & ~missing_rows(x)
    if not there.any():
        with_class = "" if known.all() else " that have a class"
        raise ValueError(
            f"All {known.sum()} rows of {name}{with_class} are NaN (skipped), expected at least "
            "one."
        )
    return x, classes, there
