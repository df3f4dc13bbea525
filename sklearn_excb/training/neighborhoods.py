"""Neighbourhood views of the rows of a fit, and the projector that starts from the same space."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sklearn_excb.data.sources import Rows
from sklearn_excb.networks.heads import PROJECTION_DIM
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.views.batches import ViewBatches
from sklearn_excb.views.neighbor_views import NeighborViews, neighbor_views, principal_coordinates
from sklearn_excb.views.row_views import RowRecipe, constant_feature, standardize


def neighborhoods(
    rows: Rows,
    recipe: RowRecipe,
    constant: float,
    settings: Settings,
    ranks: Ranks,
    *,
    standardized: bool,
) -> NeighborViews:
    """Find the neighbourhoods of all rows.

    Parameters
    ----------
    rows : Rows
        Rows of the fit, or features of its images.
    recipe : RowRecipe
        Recipe with the mean and the scale of the rows.
    constant : float
        Constant feature of the projector.
    settings : Settings
        Settings of the fit.
    ranks : Ranks
        Ranks that share the search.
    standardized : bool
        Whether views are standardised rows. If not, the projector standardises them.
    """
    n_features = len(recipe.mean)
    coordinates = principal_coordinates(
        lambda some: standardize(rows.load(some), recipe).numpy(),
        len(rows),
        n_features,
        PROJECTION_DIM - 1,
        ranks,
    )
    return neighbor_views(
        coordinates,
        constant,
        n_clusters=settings.K,
        n_global=settings.n_global,
        mean=np.zeros(n_features) if standardized else recipe.mean,
        scale=1.0 if standardized else recipe.scale,
        ranks=ranks,
    )


def start_from_principal_directions(
    networks: StudentTeacher, views: NeighborViews, constant: float, seed: int
) -> None:
    """Let linear projectors start as the space in which neighbours were compared.

    With fewer features than dimensions, they keep all distances already.
    """
    if networks.n_features < PROJECTION_DIM:
        return
    unit = views.directions / np.linalg.norm(views.directions, axis=1, keepdims=True)
    networks.set_directions(unit, constant, seed)


def row_batches(
    networks: StudentTeacher, batches: ViewBatches, settings: Settings, *, goes_on: bool = False
) -> ViewBatches:
    """Return batches of rows, with their neighbourhoods if the settings want these.

    Parameters
    ----------
    networks : StudentTeacher
        Networks on the device of the batches.
    batches : ViewBatches
        Batches of the rows.
    settings : Settings
        Settings of the fit.
    goes_on : bool, default=False
        Whether the fit resumes. If not, a linear projector starts from the same directions.
    """
    if settings.views != "neighbours":
        return batches
    rows, recipe = batches.source, batches.recipe
    assert isinstance(rows, Rows)
    assert isinstance(recipe, RowRecipe)
    constant = batches.ranks.broadcast(
        constant_feature(rows.load, len(rows), recipe, views=settings.views)
    )
    found = neighborhoods(rows, recipe, constant, settings, batches.ranks, standardized=True)
    if not goes_on and not settings.has_backbone:
        start_from_principal_directions(networks, found, constant, batches.seed)
    return replace(batches, neighbors=found)
