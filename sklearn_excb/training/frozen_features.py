"""Batches of a fit with a frozen backbone: rows of its features, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.sources import Rows
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.neighborhoods import constant_of, neighborhoods
from sklearn_excb.training.teacher_outputs import outputs
from sklearn_excb.views.batches import ViewBatches
from sklearn_excb.views.row_views import row_recipe

Features = npt.NDArray[np.float32]


def features_of(
    networks: StudentTeacher,
    batches: ViewBatches,
    settings: Settings,
    sample: npt.NDArray[np.int64],
    count: Callable[[int], object] = int,
) -> Features:
    """Compute the features (len(sample), d) of some whole images with the frozen backbone.

    Parameters
    ----------
    networks : StudentTeacher
        Networks on the device of the batches.
    batches : ViewBatches
        Batches of the images.
    settings : Settings
        Settings of the fit.
    sample : ndarray of int
        Indices of the images in the source.
    count : callable, optional
        Function that is called with the number of images of each batch.
    """
    found = np.empty((len(sample), networks.n_features), np.float32)
    inputs = batches.whole(settings.inference_batch, sample)
    done = 0
    for rows in outputs(networks.teacher, inputs, "backbone"):
        found[done : done + len(rows)] = rows.cpu().numpy()
        done += len(rows)
        count(len(rows))
    return found


def feature_batches(
    networks: StudentTeacher,
    batches: ViewBatches,
    settings: Settings,
    features: Features,
    *,
    goes_on: bool = False,
) -> ViewBatches:
    """Return batches of views of features, which replace the batches of images.

    Unlike the rows of a fit on feature vectors, these features are not centred and scaled in the
    batches. The projector does so, because in inference it gets plain features too.

    Parameters
    ----------
    networks : StudentTeacher
        Networks on the device of the batches.
    batches : ViewBatches
        Batches of the images.
    settings : Settings
        Settings of the fit.
    features : ndarray of shape (n_samples, d)
        Features of all images.
    goes_on : bool, default=False
        Whether the fit resumes. If not, the projector gets the statistics of the features.

    Raises
    ------
    ValueError
        If a feature is not finite.
    """
    sound = np.isfinite(features.max(axis=1)) & np.isfinite(features.min(axis=1))
    unsound = np.flatnonzero(~sound)
    if len(unsound):
        raise ValueError(
            f"The frozen backbone returns NaN or infinity for {len(unsound)} of {len(features)} "
            f"images, first for image {unsound[0]}. Check its weights and its input images."
        )
    rows = Rows(features)
    recipe = row_recipe(
        rows.load,
        len(rows),
        n_clusters=settings.K,
        n_global=settings.n_global,
        n_local=settings.n_local,
    )
    recipe = batches.ranks.broadcast(recipe)
    batches = replace(batches, source=rows, recipe=recipe, n_ahead=0)
    constant = constant_of(batches, settings)
    if not goes_on:
        networks.set_feature_statistics(constant, recipe.mean, recipe.scale)
    found = neighborhoods(
        networks, batches, constant, settings, standardized=False, goes_on=goes_on
    )
    as_they_are = replace(
        recipe, mean=np.zeros_like(recipe.mean), scale=1.0, noise=recipe.noise * recipe.scale
    )
    return replace(batches, recipe=as_they_are, neighbors=found)
