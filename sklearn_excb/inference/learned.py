"""The learned attributes of a fitted estimator."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from sklearn_excb.data.sources import Skipped
from sklearn_excb.inference.fitted import Fitted
from sklearn_excb.runtime.process_state import usual_modes
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
    """An online training, which continues with each call of ``partial_fit``."""

    def fitted(self) -> Fitted:
        """Return the result of the training so far."""
        ...


if TYPE_CHECKING:
    _Base = BaseEstimator
else:
    _Base = object  # the estimator inherits BaseEstimator itself, last


class LearnedAttributes(_Base):
    """Attributes that a fit sets, or that are computed from its result."""

    embedding: str
    steps_per_epoch: int | str
    freeze_backbone: bool
    n_jobs: int | str | None
    device: str | torch.device
    devices: int | str
    random_state: Any
    checkpoint_dir: str | os.PathLike[str] | None
    image_shape_: tuple[int, int]
    n_channels_: int
    skipped_: list[Skipped]
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
            if places is None:  # the estimator comes from a checkpoint
                places = self.cluster_centers_
            has_samples = len(self._fitted.labels) > 0
            sizes = self.relative_cluster_sizes_ if has_samples else np.ones(len(places))
            self._linkage = merge_tree(places, sizes)
        return self._linkage

    @cached_property
    def _fitted(self) -> Fitted:
        """Result of the last fit. After partial_fit, it is computed on first use."""
        with usual_modes():
            return self._online.fitted()

    def _set_fitted(self, fitted: Fitted, resolved: dict[str, Any]) -> None:
        """Set the result of a fit and the attributes that follow from it."""
        self._forget()
        self.__dict__.pop("_online", None)
        self._fitted = fitted
        self.resolved_params_, self.history_ = resolved, fitted.history
        if fitted.settings.K:
            self.cluster_centers_ = fitted.teacher.centroids.unit().detach().cpu().numpy()

    def _set_learning(
        self, online: Learning, resolved: dict[str, Any], history: list[dict[str, Any]]
    ) -> None:
        """Set the attributes of partial_fit so far; others are computed on first use."""
        self._forget()
        self._online = online
        self.resolved_params_, self.history_ = resolved, history

    def _forget(self) -> None:
        for name in ("_fitted", "cluster_centers_"):
            self.__dict__.pop(name, None)
        self._linkage: npt.NDArray[np.float64] | None = None

    def _of_training(self, name: str) -> npt.NDArray[np.int64]:
        """Return the labels of the training samples; raise if the attribute ``name`` has none."""
        check_is_fitted(self)
        if not len(self._fitted.labels):
            raise NotFittedError(
                f"This {type(self).__name__} has no {name}, because it comes from a checkpoint or "
                "from partial_fit, without training samples. Use predict(X)."
            )
        return self._fitted.labels

    def _need_clusters(self, wanted: str) -> None:
        """Raise if there is only a backbone, without the clusters that ``wanted`` needs."""
        if not self._fitted.settings.K:
            raise NotFittedError(
                f"This {type(self).__name__} has no clusters, which {wanted} needs, because it "
                "comes from a checkpoint of a backbone alone. Read the full checkpoint, or use "
                'transform(X) with embedding="backbone".'
            )

    @property
    def _n_features_out(self) -> int:
        """Number of columns of :meth:`transform`, from which scikit-learn names the features."""
        return self._width(self.embedding)

    def _width(self, embedding: str) -> int:
        """Return the number of columns of an embedding."""
        if embedding == "backbone":
            return self._fitted.n_backbone_features
        self._need_clusters(f"embedding={embedding!r}")
        K, D = self.cluster_centers_.shape
        return K if embedding == "similarity" else D
