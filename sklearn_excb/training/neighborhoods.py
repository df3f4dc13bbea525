"""Neighbourhood views of the rows of a fit, and the projector that starts from the same space."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sklearn_excb.data.sources import Rows
from sklearn_excb.networks.heads import PROJECTION_DIM
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.views.batches import ViewBatches
from sklearn_excb.views.neighbor_views import NeighborViews, neighbor_views, principal_coordinates
from sklearn_excb.views.row_views import RowRecipe, constant_feature, standardize


def neighborhoods(
    networks: StudentTeacher,
    batches: ViewBatches,
    constant: float,
    settings: Settings,
    *,
    standardized: bool,
    goes_on: bool,
) -> NeighborViews | None:
    """Return the neighbourhoods of all rows, or None if the settings want no views of them.

    A linear projector starts from the principal directions in which neighbours are compared.

    Parameters
    ----------
    networks : StudentTeacher
        Networks of the fit.
    batches : ViewBatches
        Batches of the rows, with the recipe that standardises them.
    constant : float
        Constant feature of the projector.
    settings : Settings
        Settings of the fit.
    standardized : bool
        Whether views are standardised rows. If not, the projector standardises them.
    goes_on : bool
        Whether the fit resumes, and the projector stays as it is.
    """
    if settings.views != "neighbours":
        return None
    rows, recipe, ranks = batches.source, batches.recipe, batches.ranks
    assert isinstance(rows, Rows)
    assert isinstance(recipe, RowRecipe)
    n_features = len(recipe.mean)
    coordinates = principal_coordinates(
        lambda some: standardize(rows.load(some), recipe).numpy(),
        len(rows),
        n_features,
        PROJECTION_DIM - 1,
        ranks,
    )
    linear = settings.freeze_backbone or not settings.has_backbone
    if linear and not goes_on and n_features >= PROJECTION_DIM:  # with fewer, it keeps distances
        networks.set_directions(coordinates.directions, constant, batches.seed)
    return neighbor_views(
        coordinates,
        constant,
        n_clusters=settings.K,
        n_global=settings.n_global,
        mean=np.zeros(n_features) if standardized else recipe.mean,
        scale=1.0 if standardized else recipe.scale,
        ranks=ranks,
    )


def row_batches(
    networks: StudentTeacher, batches: ViewBatches, settings: Settings, *, goes_on: bool = False
) -> ViewBatches:
    """Return batches of rows, with views of their neighbourhoods if the settings want these.

    Parameters
    ----------
    networks, batches, settings, goes_on
        As for :func:`neighborhoods`.
    """
    if settings.views != "neighbours":
        return batches
    constant = constant_of(batches, settings)
    found = neighborhoods(networks, batches, constant, settings, standardized=True, goes_on=goes_on)
    return replace(batches, neighbors=found)


def constant_of(batches: ViewBatches, settings: Settings) -> float:
    """Return the constant feature of linear projectors, the same on all ranks."""
    rows, recipe = batches.source, batches.recipe
    assert isinstance(rows, Rows)
    assert isinstance(recipe, RowRecipe)
    return batches.ranks.broadcast(
        constant_feature(rows.load, len(rows), recipe, views=settings.views)
    )
