"""Embeddings of augmented images by a fitted estimator, as training data of a linear probe.

The published protocol of linear evaluation shows the frozen network a new crop of each image in
every epoch, perhaps mirrored, without the other augmentations of training. The crop is a function
of (seed, epoch, row), as in a fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_excb.data.sources import Rows
from sklearn_excb.data.unusable_images import skipped_of
from sklearn_excb.inference.devices import inference_device
from sklearn_excb.inference.samples import open_samples
from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.training.teacher_outputs import Embedding, embed
from sklearn_excb.views.batches import ViewBatches
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.reading import n_ahead, number_of_jobs

if TYPE_CHECKING:
    from sklearn_excb.estimator import ExCBEstimator

__all__ = ["AugmentedViews", "augmented_views"]


@dataclass(frozen=True)
class AugmentedViews:
    """Callable that embeds augmented images; see :func:`augmented_views`."""

    _teacher: ClusterNetwork
    _embedding: Embedding
    _n_features: int
    _batches: ViewBatches

    def __call__(self, epoch: int, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Embed a new view of some images.

        Parameters
        ----------
        epoch : int
            Number of the epoch, from 0. Each epoch has its own views.
        rows : array-like of shape (m,), int
            Indices of the images in the data set, in any order.

        Returns
        -------
        ndarray of shape (m, d), float32
            Embeddings of the views; NaN for images that were skipped.
        """
        indices = np.asarray(rows, dtype=np.int64)
        if not len(indices):
            return np.empty((0, self._n_features), np.float32)
        size = min(self._batches.batch_size, len(indices))
        batches = replace(self._batches, batch_size=size)
        self._teacher.to(batches.device)
        padded = np.empty((len(indices) + -len(indices) % size, self._n_features), np.float32)
        embed(self._teacher, _views(batches, epoch, indices), self._embedding, out=padded)
        out = padded[: len(indices)]
        skipped = [image.index for image in skipped_of(batches.source)]
        out[np.isin(indices, skipped)] = np.nan
        return out


@torch.inference_mode(False)  # threads outside of inference mode write to the memory made here
def _views(batches: ViewBatches, epoch: int, rows: npt.NDArray[np.int64]) -> Iterator[Tensor]:
    """Yield the views of each batch, (B, c, size, size)."""
    for batch in batches.of_rows(epoch, rows):
        yield batch.groups[0]


def augmented_views(
    estimator: ExCBEstimator,
    X: Any,
    *,
    smallest_area: float = 0.08,
    flip: float | None = None,
    random_state: int = 0,
) -> AugmentedViews:
    """Prepare embeddings of augmented images, for a linear probe to train on.

    Parameters
    ----------
    estimator : ExCBEstimator
        Estimator fitted on images. Its parameter ``embedding`` chooses the kind of embeddings; use
        "backbone" for probes.
    X : array, tensor, list, path or data set
        Images, as in :meth:`ExCBEstimator.fit`. They are opened here and read in every epoch.
    smallest_area : float, default=0.08
        Smallest share of the image's area that a crop takes, in (0, 1]. The share is uniform from
        here to 1, and the aspect ratio lies between 3 : 4 and 4 : 3. The published share is .08.
    flip : float, optional
        Probability that a view is mirrored, in [0, 1]. The default is the probability of the fit,
        by default .5 for images with three channels and 0 for others.
    random_state : int, default=0
        Seed of all random draws.

    Returns
    -------
    AugmentedViews
        Callable; ``views(epoch, rows)`` returns embeddings (len(rows), d). It holds the images and
        the network, and computes when it is called.

    Raises
    ------
    ValueError
        If ``X`` or a parameter cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_excb import ExCBEstimator, augmented_views
    >>> images = load_digits().images[:100] / 16
    >>> excb = ExCBEstimator(K=10, epochs=0, embedding="backbone", random_state=0).fit(images)
    >>> views = augmented_views(excb, images)
    >>> views(1, np.arange(100)).shape == excb.transform(images).shape
    True
    """
    check_is_fitted(estimator)
    if not 0 < smallest_area <= 1:
        raise ValueError(
            f"smallest_area={smallest_area!r} cannot be used: it must be a number in (0, 1]."
        )
    if flip is not None and not 0 <= flip <= 1:
        raise ValueError(f"flip={flip!r} cannot be used: it must be a probability in [0, 1].")
    source = open_samples(estimator, X, fitting=False)
    fitted = estimator._fitted
    if isinstance(source, Rows):
        raise ValueError(
            "X holds 2-D rows, but augmented views need images. Train the probe on the rows "
            "themselves."
        )
    own = cast(ViewRecipe, fitted.recipe)
    recipe = replace(
        own,
        n_global=1,
        n_local=0,
        smallest_global=(smallest_area, smallest_area),
        jitter=0.0,
        gray=0.0,
        flip=own.flip if flip is None else flip,
    )
    device = inference_device(estimator.device)
    n_jobs = number_of_jobs(estimator.n_jobs, source)
    batches = ViewBatches(
        source,
        recipe,
        fitted.settings.inference_batch,
        1,
        random_state,
        n_jobs,
        device,
        n_ahead(source, n_jobs, device),
    )
    embedding = cast(Embedding, estimator.embedding)
    return AugmentedViews(fitted.teacher, embedding, estimator._n_features_out, batches)
