"""The learned attributes of a fitted estimator."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from sklearn_excb.inference.fitted import Fitted
from sklearn_excb.training.coarse_groups import merge_tree

INPUT_FACTS = (
    "n_features_in_",
    "feature_names_in_",
    "image_shape_",
    "n_channels_",
    "sample_names_",
    "skipped_",
    "ignored_files_",
)


class Learning(Protocol):
    """A training that goes on between two calls of ``partial_fit``."""

    def fitted(self) -> Fitted:
        """Return what it has learned so far."""
        ...


class LearnedAttributes(BaseEstimator):
    """Attributes that a fit sets, or that follow from what it learned."""

    embedding: str
    _online: Learning

    @property
    def labels_(self) -> npt.NDArray[np.int64]:
        """Clusters of the training samples; see the class."""
        return self._of_training("labels_")

    @property
    def relative_cluster_sizes_(self) -> npt.NDArray[np.float64]:
        """Sizes of the clusters by ``labels_``; see the class."""
        labels, K = self._of_training("relative_cluster_sizes_"), self._fitted.settings.K
        labelled = labels[labels >= 0]
        counts = np.bincount(labelled, minlength=K).astype(np.float64)
        return counts * (K / len(labelled))

    @cached_property
    def cluster_centers_(self) -> npt.NDArray[np.float32]:
        """Unit centroids; see the class."""
        check_is_fitted(self)
        self._need_clusters("cluster_centers_")
        return self._fitted.teacher.centroids.unit().detach().cpu().numpy()

    @property
    def cluster_gains_(self) -> npt.NDArray[np.float32]:
        """Factors of the similarities; see the class."""
        check_is_fitted(self)
        gain = self._fitted.teacher.centroids.gain
        if gain is None:
            raise AttributeError(f"No cluster of this {type(self).__name__} has a gain of its own.")
        return gain.cpu().numpy()

    @property
    def linkage_(self) -> npt.NDArray[np.float64]:
        """Tree of the clusters; see the class."""
        check_is_fitted(self)
        self._need_clusters("linkage_")
        if self._linkage is None:
            places = self._fitted.group_centroids
            if places is None:  # of a checkpoint
                places = self.cluster_centers_
            has_samples = len(self._fitted.labels) > 0
            sizes = self.relative_cluster_sizes_ if has_samples else np.ones(len(places))
            self._linkage = merge_tree(places, sizes)
        return self._linkage

    @cached_property
    def _fitted(self) -> Fitted:
        """What was learned: assigned by a fit, and after partial_fit made when it is asked for."""
        return self._online.fitted()

    def _set_fitted(self, fitted: Fitted, resolved: dict[str, Any]) -> None:
        """Set everything that a fit learned."""
        self._forget()
        self.__dict__.pop("_online", None)
        self._fitted = fitted
        self.resolved_params_, self.history_ = resolved, fitted.history
        if fitted.settings.K:
            self.cluster_centers_ = fitted.teacher.centroids.unit().detach().cpu().numpy()

    def _set_learning(
        self, online: Learning, resolved: dict[str, Any], history: list[dict[str, Any]]
    ) -> None:
        """Set what partial_fit learned so far; the rest is computed when it is asked for."""
        self._forget()
        self._online = online
        self.resolved_params_, self.history_ = resolved, history

    def _forget(self) -> None:
        for name in ("_fitted", "cluster_centers_"):
            self.__dict__.pop(name, None)
        self._linkage: npt.NDArray[np.float64] | None = None

    def _of_training(self, name: str) -> npt.NDArray[np.int64]:
        """Labels of the training samples, needed for an attribute of that name."""
        check_is_fitted(self)
        if not len(self._fitted.labels):
            raise NotFittedError(
                f"This {type(self).__name__} has no {name}: it comes from a checkpoint or "
                "from partial_fit, without training samples. Use predict(X)."
            )
        return self._fitted.labels

    def _need_clusters(self, wanted: str) -> None:
        """Refuse what a backbone alone cannot give."""
        if not self._fitted.settings.K:
            raise NotFittedError(
                f"This {type(self).__name__} has no clusters, which {wanted} needs: it comes from "
                "a checkpoint of a backbone alone. Read the full checkpoint, or use "
                'transform(X) with embedding="backbone".'
            )

    @property
    def _n_features_out(self) -> int:
        """Columns of :meth:`transform`, for the names of features."""
        return self._width(self.embedding)

    def _width(self, embedding: str) -> int:
        """Return the number of columns of an embedding."""
        if embedding == "backbone":
            return self._fitted.n_backbone_features
        self._need_clusters(f"embedding={embedding!r}")
        K, D = self.cluster_centers_.shape
        return K if embedding == "similarity" else D
