"""Weighted k-nearest-neighbour classification as a scikit-learn estimator."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .._arrays import for_sklearn, without_torch
from .._checks import check_count, check_positive
from .search import Backend, Index
from .voting import TOGETHER, predicted_codes, votes_of


class KNNClassifier(ClassifierMixin, BaseEstimator):
    """Weighted k-nearest-neighbour classifier for embeddings.

    Each of the ``n_neighbors`` training rows of highest cosine similarity votes
    ``exp(similarity / temperature)`` for its class. Neighbours are exact. Among equal similarities,
    the lowest training row comes first; among equal votes, the first class in sorted order wins.

    Parameters
    ----------
    n_neighbors : int, default=20
        Number of neighbours that vote, at most the number of training rows.
    temperature : float, default=0.07
        Temperature of the votes, above 0. Lower values give more weight to the nearest neighbours.
        DINO uses 0.07.
    backend : {"auto", "faiss", "torch"}, default="auto"
        Search library, see `nearest_neighbors`. It does not change the result.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, sorted.
    n_features_in_ : int
        Number of features seen by ``fit``.
    feature_names_in_ : ndarray of shape (n_features,)
        Column names of ``X``, if they are strings.

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
        """Store the training rows.

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
        check_positive(self.temperature, "temperature")
        X, y = for_sklearn(X), without_torch(y)
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        self._k(len(X))
        self.classes_, self._codes = np.unique(y, return_inverse=True)
        self._rows = X
        return self

    def predict(self, X: Any) -> NDArray:
        """Return the class with the most votes for each row.

        Parameters
        ----------
        X : array-like of shape (n_queries, d)
            Real, finite rows. They are processed in batches, so that memory is bounded.

        Returns
        -------
        y : ndarray of shape (n_queries,)
        """
        X = self._checked(X)
        predicted = np.empty(len(X), self.classes_.dtype)
        k = [self._k(len(self._rows))]
        codes = predicted_codes(X, self._rows, self._codes, k, self.temperature, self.backend)
        for positions, winners in codes:
            predicted[positions] = self.classes_[winners[0]]
        return predicted

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
        X = self._checked(X)
        shares = np.empty((len(X), len(self.classes_)))
        index = Index.of(self._rows, metric="cosine", backend=self.backend)
        for start in range(0, len(X), TOGETHER):
            positions = np.arange(start, min(start + TOGETHER, len(X)))
            queries = index.prepare(X[positions], "X", positions)
            similarities, indices = index.search(queries, self._k(len(self._rows)))
            votes = votes_of(
                similarities, self._codes[indices], len(self.classes_), self.temperature
            )
            shares[positions] = votes / votes.sum(axis=1, keepdims=True)
        return shares

    def _k(self, n_rows: int) -> int:
        n_neighbors = check_count(self.n_neighbors, "n_neighbors")
        if n_neighbors > n_rows:
            raise ValueError(
                f"n_neighbors={n_neighbors} exceeds n_samples={n_rows}. Lower n_neighbors, or fit "
                "more rows."
            )
        return n_neighbors

    def _checked(self, X: Any) -> NDArray:
        check_is_fitted(self)
        return validate_data(self, for_sklearn(X), dtype=[np.float32, np.float64], reset=False)
