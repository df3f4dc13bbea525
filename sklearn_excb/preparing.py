"""From a source and parameters to networks, settings and batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sklearn_excb import auto
from sklearn_excb.backbones import build_backbone, output_dim
from sklearn_excb.batches import ViewBatches, n_ahead, number_of_jobs
from sklearn_excb.devices import resolve_precision
from sklearn_excb.networks import StudentTeacher, build_networks, uses_batch_norm
from sklearn_excb.row_views import RowRecipe, row_recipe
from sklearn_excb.sources import Rows, Source, channel_statistics, typical_shape
from sklearn_excb.validation import check_rows_parameters, check_sizes
from sklearn_excb.views import ViewRecipe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def facts_of(source: Source) -> auto.Facts:
    """What the auto rules look at."""
    height, width = (0, 0) if isinstance(source, Rows) else typical_shape(source)
    return auto.Facts(len(source), source.kind, (height, width), source.n_channels)


def view_recipe(source: Source, settings: auto.Settings) -> ViewRecipe | RowRecipe:
    """Views of a fit, with ImageNet's statistics for colour images and measured ones for others."""
    if isinstance(source, Rows):
        return row_recipe(
            source.load,
            len(source),
            n_clusters=settings.K,
            n_global=settings.n_global,
            n_local=settings.n_local,
        )
    colour = source.n_channels == 3
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if colour else channel_statistics(source)
    return ViewRecipe(
        global_size=settings.image_size,
        local_size=settings.local_size,
        n_global=settings.n_global,
        n_local=settings.n_local,
        smallest_global=settings.smallest_global,
        smallest_local=settings.smallest_local,
        mean=mean,
        std=std,
        flip=settings.flip,
    )


def _examples(settings: auto.Settings, kind: str) -> list[Tensor]:
    """A batch of zeros for each resolution of the views."""
    if kind == "rows":
        return [torch.zeros(2, settings.n_channels)]
    sizes = [settings.image_size, *([settings.local_size] if settings.n_local else [])]
    return [torch.zeros(2, settings.n_channels, size, size) for size in sizes]


def build(
    parameters: Mapping[str, Any], facts: auto.Facts
) -> tuple[StudentTeacher, auto.Settings, int]:
    """Resolve every parameter, and build the networks with fresh weights, on the CPU.

    Returns
    -------
    networks : StudentTeacher
    settings : auto.Settings
    n_features : int
        What the backbone gives.

    Raises
    ------
    ValueError
        If parameters and data do not fit together.
    """
    if facts.kind == "rows":
        check_rows_parameters(parameters)
    backbone = build_backbone(
        auto.resolve_backbone(parameters, facts),
        n_channels=facts.n_channels,
        image_size=auto.resolve_image_size(parameters, facts) or None,
    )
    settings = auto.resolve(parameters, facts, has_batch_norm=uses_batch_norm(backbone))
    check_sizes(settings, facts)
    n_features = output_dim(backbone, _examples(settings, facts.kind))
    networks = build_networks(
        backbone, n_features, n_clusters=settings.K, head_width=settings.head_width
    )
    return networks, settings, n_features


def prepare(
    source: Source,
    facts: auto.Facts,
    parameters: Mapping[str, Any],
    seed: int,
    device: torch.device,
) -> tuple[StudentTeacher, auto.Settings, int, ViewBatches]:
    """Return what :func:`build` gives, and the batches of the fit."""
    networks, settings, n_features = build(parameters, facts)
    settings = replace(settings, precision=resolve_precision(settings.precision, device))
    n_jobs = number_of_jobs(parameters["n_jobs"], source)
    batches = ViewBatches(
        source,
        view_recipe(source, settings),
        settings.batch_size,
        settings.epochs,
        seed,
        n_jobs,
        device,
        n_ahead(source, n_jobs, device),
    )
    return networks, settings, n_features, batches
