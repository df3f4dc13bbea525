"""The weighted k-nearest-neighbour protocol: how well neighbours predict a class.

As in DINO and the work before it (Wu et al., "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination", CVPR 2018): the k most similar training rows by cosine each vote
exp(similarity / temperature) for their class.
"""

from collections.abc import Sequence
from typing import Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from evaluation._checks import check_1d, check_count, check_positive, check_rows, check_same_length
from evaluation.neighbors import Backend, Floats, nearest_neighbors

__all__ = ["KNNClassifier", "knn_accuracy", "nearest_neighbors"]

_BLOCK = 2**22  # votes (rows x classes) held at once while predicting


class KNNClassifier(ClassifierMixin, BaseEstimator):
    """Weighted k-nearest-neighbour classifier for embeddings.

    Each of the ``n_neighbors`` training rows of highest cosine similarity votes
    ``exp(similarity / temperature)`` for its class. Neighbours are exact; equal similarities are
    taken lowest training row first, and equal votes go to the first class in sorted order.

    Parameters
    ----------
    n_neighbors : int, default=20
        Number of voters, at most the number of training rows.
    temperature : float, default=0.07
        Above 0. Lower values trust the nearest neighbour more; DINO uses 0.07.
    backend : {"auto", "faiss", "torch"}, default="auto"
        See `nearest_neighbors`; it does not change the result.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, sorted.
    n_features_in_ : int
        Number of features seen by ``fit``.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Column names, when ``X`` has string ones.

    Examples
    --------
    >>> from evaluation import KNNClassifier
    >>> X, y = [[1, 0], [0.9, 0.1], [0, 1]], ["cat", "cat", "dog"]
    >>> KNNClassifier(n_neighbors=2).fit(X, y).predict([[1, 0.2]])
    array(['cat'], dtype='<U3')
    """

    def __init__(
        self, n_neighbors: int = 20, temperature: float = 0.07, backend: Backend = "auto"
    ) -> None:
        self.n_neighbors = n_neighbors
        self.temperature = temperature
        self.backend: Backend = backend

    def fit(self, X: Any, y: Any) -> Self:
        """Remember the training rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, d)
            Real, finite rows.
        y : array-like of shape (n_samples,)
            Class labels, integers or strings.

        Returns
        -------
        self : KNNClassifier

        Raises
        ------
        ValueError
            If there are fewer rows than neighbours, or a parameter is out of range.
        """
        n_neighbors = check_count(self.n_neighbors, "n_neighbors")
        check_positive(self.temperature, "temperature")
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        if n_neighbors > len(X):
            raise ValueError(
                f"n_neighbors={n_neighbors} exceeds n_samples={len(X)}: each neighbour is a "
                "different training row. Lower n_neighbors, or fit more rows."
            )
        self.classes_, self._codes = np.unique(y, return_inverse=True)
        self._rows = X
        return self

    def predict(self, X: Any) -> NDArray:
        """Return the class with most votes for each row.

        Parameters
        ----------
        X : array-like of shape (n_queries, d)
            Real, finite rows.

        Returns
        -------
        y : ndarray of shape (n_queries,)
        """
        similarities, codes = self._neighbors(X)
        return self.classes_[_winners(similarities, codes, len(self.classes_), self.temperature)]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return each class's share of the votes.

        Parameters
        ----------
        X : array-like of shape (n_queries, d)
            Real, finite rows.

        Returns
        -------
        shares : ndarray of shape (n_queries, n_classes), float64
            Rows sum to 1; columns follow ``classes_``.
        """
        similarities, codes = self._neighbors(X)
        votes = _votes(similarities, codes, len(self.classes_), self.temperature)
        return votes / votes.sum(axis=1, keepdims=True)

    def _neighbors(self, X: Any) -> tuple[Floats, NDArray[np.intp]]:
        """Similarities and class codes of the neighbours of each row, both (n_queries, k)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        similarities, indices = nearest_neighbors(
            X, self._rows, self.n_neighbors, backend=self.backend
        )
        return similarities, self._codes[indices]


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
        Embeddings of the training images.
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
    several = isinstance(k, Sequence | np.ndarray)
    ks = [check_count(each, "k") for each in (k if several else [k])]
    if not ks:
        raise ValueError("k is an empty sequence, needed at least one number of neighbours.")
    temperature = check_positive(temperature, "temperature")
    if (test is None) != (y_test is None):
        missing, given = ("test", "y_test") if test is None else ("y_test", "test")
        raise ValueError(
            f"{given} came without {missing}: needed both, or neither for leave-one-out."
        )
    y_train, train = check_1d(y_train, "y_train"), check_rows(train, "train")
    check_same_length(train, y_train, "train", "y_train")
    if test is None:
        test, y_test = train, y_train
        alone = True
    else:
        test, alone = check_rows(test, "test"), False
    y_test = check_1d(y_test, "y_test")  # pyright: ignore[reportArgumentType]
    check_same_length(test, y_test, "test", "y_test")
    if (y_train.dtype.kind in "US") != (y_test.dtype.kind in "US"):
        raise ValueError(
            f"y_train has dtype {y_train.dtype} and y_test {y_test.dtype}: needed classes named "
            "the same way in both."
        )

    similarities, indices = nearest_neighbors(
        test, train, max(ks), backend=backend, exclude_self=alone
    )
    classes, codes = np.unique(y_train, return_inverse=True)
    accuracies = {}
    for each in ks:
        near = similarities[:, :each], codes[indices[:, :each]]
        predicted = classes[_winners(*near, len(classes), temperature)]
        accuracies[each] = float(np.mean(predicted == y_test))
    return accuracies if several else accuracies[ks[0]]


def _votes(
    similarities: Floats, codes: NDArray[Any], n_classes: int, temperature: float
) -> NDArray[np.float64]:
    """Sum the votes for each class, (rows, n_classes), scaled so that the nearest votes 1."""
    logits = similarities.astype(np.float64) / temperature
    weights = np.exp(logits - logits[:, :1])  # neighbours are sorted: the first is the largest
    cells = np.arange(len(codes))[:, None] * n_classes + codes
    # bincount returns integers when there is nothing to count
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(codes) * n_classes)
    return votes.astype(np.float64, copy=False).reshape(len(codes), n_classes)


def _winners(
    similarities: Floats, codes: NDArray[Any], n_classes: int, temperature: float
) -> NDArray[np.intp]:
    """Code of the class with most votes, (rows,)."""
    winners = np.empty(len(codes), np.intp)
    step = max(1, _BLOCK // n_classes)
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        votes = _votes(similarities[part], codes[part], n_classes, temperature)
        winners[part] = votes.argmax(axis=1)
    return winners
