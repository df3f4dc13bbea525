"""Batches of a fit whose backbone is frozen: its features, computed once, as rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.sources import Rows
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.teacher_outputs import embed
from sklearn_excb.views.batches import ViewBatches
from sklearn_excb.views.row_views import constant_feature, row_recipe

Features = npt.NDArray[np.float32]


def features_of(
    networks: StudentTeacher,
    batches: ViewBatches,
    settings: Settings,
    sample: npt.NDArray[np.int64],
) -> Features:
    """Compute what the frozen backbone makes of some whole images, (len(sample), d).

    Parameters
    ----------
    networks : StudentTeacher
        On the device of the batches.
    batches : ViewBatches
        Of the images.
    settings : Settings
        Of the fit.
    sample : ndarray of int
        Rows of the source.
    """
    found = np.empty((len(sample), networks.n_features), np.float32)
    inputs = batches.whole(settings.inference_batch, sample)
    embed(networks.teacher, inputs, "backbone", out=found)
    return found


def feature_batches(
    networks: StudentTeacher,
    batches: ViewBatches,
    settings: Settings,
    features: Features,
    *,
    goes_on: bool = False,
) -> ViewBatches:
    """Batches of views of features, in the place of those of the images that they are of.

    Rows of a fit are centred and scaled for their networks; features are not: it is the projector
    that does it, for what inference gives it are features as they are. Unless the fit goes on, it
    is told how.

    Raises
    ------
    ValueError
        If a feature is not finite.
    """
    sound = np.isfinite(features.max(axis=1)) & np.isfinite(features.min(axis=1))
    unsound = np.flatnonzero(~sound)
    if len(unsound):
        raise ValueError(
            f"The frozen backbone gives NaN or infinity for {len(unsound)} of {len(features)} "
            f"images, first for number {unsound[0]}. Look at its weights, and how it wants images."
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
    if not goes_on:
        constant = batches.ranks.broadcast(constant_feature(rows.load, len(rows), recipe))
        networks.set_feature_statistics(constant, recipe.mean, recipe.scale)
    as_they_are = replace(
        recipe, mean=np.zeros_like(recipe.mean), scale=1.0, noise=recipe.noise * recipe.scale
    )
    return replace(batches, source=rows, recipe=as_they_are, n_ahead=0)
