"""Build what a fit trains, from a source and parameters: networks, settings, batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_excb.data.channel_statistics import channel_statistics
from sklearn_excb.data.sources import Rows, Source, typical_shape
from sklearn_excb.method.balancing import TIE_FLOOR, Balancing, ClusterSizes
from sklearn_excb.method.baselines import Centering, NoBalancing, Sinkhorn
from sklearn_excb.networks.backbones import build_backbone, output_dim
from sklearn_excb.networks.bf16_gradients import undefined_gradients
from sklearn_excb.networks.frozen import Frozen, unfrozen
from sklearn_excb.networks.heads import uses_batch_norm
from sklearn_excb.networks.pretrained import InputStatistics, input_statistics
from sklearn_excb.networks.student_teacher import StudentTeacher, build_networks
from sklearn_excb.runtime.devices import resolve_precision
from sklearn_excb.settings.resolve import (
    Facts,
    Settings,
    resolve,
    resolve_backbone,
    resolve_image_size,
)
from sklearn_excb.settings.validation import check_rows_parameters, check_sizes, check_weights
from sklearn_excb.training.context import FitContext
from sklearn_excb.views.batches import ViewBatches
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.reading import n_ahead, number_of_jobs
from sklearn_excb.views.row_views import RowRecipe, constant_feature, row_recipe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def facts_of(source: Source) -> Facts:
    """What the auto rules look at."""
    height, width = (0, 0) if isinstance(source, Rows) else typical_shape(source)
    return Facts(len(source), source.kind, (height, width), source.n_channels)


def view_recipe(
    source: Source, settings: Settings, known: InputStatistics | None = None
) -> ViewRecipe | RowRecipe:
    """Views of a fit: with the statistics that go with a backbone's weights, if they are known.

    Else with ImageNet's for colour images, and measured ones for others.
    """
    if isinstance(source, Rows):
        return row_recipe(
            source.load,
            len(source),
            n_clusters=settings.K,
            n_global=settings.n_global,
            n_local=settings.n_local,
        )
    if known is None:
        colour = source.n_channels == 3
        of = (IMAGENET_MEAN, IMAGENET_STD) if colour else channel_statistics(source)
        known = InputStatistics(*of, whole_filter="bicubic")
    return ViewRecipe(
        global_size=settings.image_size,
        local_size=settings.local_size,
        n_global=settings.n_global,
        n_local=settings.n_local,
        smallest_global=settings.smallest_global,
        smallest_local=settings.smallest_local,
        mean=known.mean,
        std=known.std,
        flip=settings.flip,
        whole_filter=known.whole_filter,
    )


def _examples(settings: Settings, kind: str) -> list[Tensor]:
    """A batch of zeros for each resolution of the views."""
    if kind == "rows":
        return [torch.zeros(2, settings.n_channels)]
    has_local = settings.n_local and not settings.freeze_backbone
    sizes = [settings.image_size, *([settings.local_size] if has_local else [])]
    return [torch.zeros(2, settings.n_channels, size, size) for size in sizes]


def build(parameters: Mapping[str, Any], facts: Facts) -> tuple[StudentTeacher, Settings, int]:
    """Resolve every parameter, and build the networks with their first weights, on the CPU.

    A frozen backbone is the teacher's alone: the student learns from features.

    Returns
    -------
    networks : StudentTeacher
    settings : Settings
    n_features : int
        What the backbone gives.

    Raises
    ------
    ValueError
        If parameters and data do not fit together.
    PretrainedWeightsError
        If weights of others cannot be had.
    """
    if facts.kind == "rows":
        check_rows_parameters(parameters)
    check_weights(parameters)
    named = resolve_backbone(parameters, facts)
    backbone = build_backbone(
        named,
        n_channels=facts.n_channels,
        image_size=resolve_image_size(parameters, facts) or None,
        pretrained=parameters["pretrained"],
    )
    linear = bool(parameters["freeze_backbone"]) or named == "identity"
    has_batch_norm = linear or uses_batch_norm(backbone)
    settings = resolve(parameters, facts, has_batch_norm=has_batch_norm)
    check_sizes(settings, facts)
    n_features = output_dim(backbone, _examples(settings, facts.kind))
    return networks_on(backbone, n_features, settings), settings, n_features


def networks_on(backbone: nn.Module, n_features: int, settings: Settings) -> StudentTeacher:
    """Build the networks of resolved settings on a backbone, with untrained heads."""
    frozen = settings.freeze_backbone
    linear = frozen or not settings.has_backbone
    networks = build_networks(
        nn.Identity() if frozen else backbone,
        n_features,
        n_clusters=settings.K,
        head_width=settings.head_width,
        batch_norm=linear or uses_batch_norm(backbone),  # predictors on features
        linear=linear,
        standardized=frozen,
    )
    if frozen:
        networks.teacher.backbone = Frozen(backbone)
    return networks


def build_balancing(settings: Settings, device: torch.device | str) -> Balancing:
    """Build the measured sizes, or the baseline that the settings name."""
    if settings.balancing == "centering":
        return Centering(settings.K, device=device)
    if settings.balancing == "sinkhorn":
        return Sinkhorn(settings.K, device=device)
    if settings.balancing == "none":
        return NoBalancing(settings.K, device=device)
    return ClusterSizes(
        settings.K,
        settings.size_momentum,
        below=settings.balancing,
        relative_floor=TIE_FLOOR,
        device=device,
    )


def _safe_precision(
    settings: Settings, backbone: nn.Module, kind: str, device: torch.device
) -> str:
    """Precision of a training; where a CPU's gradients in bfloat16 are undefined, not "bf16"."""
    precision = resolve_precision(settings.precision, device)
    if precision != "bf16" or device.type != "cpu":
        return precision
    found = undefined_gradients(backbone, _examples(settings, kind))
    if found is None:
        return precision
    if settings.precision == "auto":
        return "32"
    small = min(settings.image_size, settings.local_size or settings.image_size)
    raise ValueError(
        f"precision='bf16' cannot be used on a CPU here: at views of {small} pixels the backbone "
        f"comes to {found}, whose gradient in bfloat16 holds what lay in memory there. Use larger "
        'views (image_size, local_size), or precision="auto" or "32".'
    )


@dataclass(frozen=True)
class Model:
    """What a fit trains.

    Attributes
    ----------
    networks : StudentTeacher
        Student and teacher.
    settings : Settings
        Parameters, each of them resolved.
    recipe : ViewRecipe or RowRecipe
        Views of the samples, and the statistics that normalise them for inference.
    n_features : int
        Number of features that the backbone computes.
    facts : Facts
        Properties of the data that the rules of "auto" go by.
    """

    networks: StudentTeacher
    settings: Settings
    recipe: ViewRecipe | RowRecipe
    n_features: int
    facts: Facts


def prepare(
    source: Source, context: FitContext, n_samples: int | None = None
) -> tuple[Model, ViewBatches]:
    """Resolve every parameter for a source, and build networks and batches.

    Parameters
    ----------
    source : Source
        The samples, or the first of them.
    context : FitContext
        Parameters, seed, device and ranks of the fit.
    n_samples : int, optional
        Number of samples in an epoch. By default the source holds all of them.

    Returns
    -------
    model : Model
        The networks lie on the CPU, with their first weights.
    batches : ViewBatches
        Batches of the source.
    """
    ranks, parameters = context.ranks, context.parameters
    facts = facts_of(source)
    facts = ranks.broadcast(facts if n_samples is None else replace(facts, n_samples=n_samples))
    networks, settings, n_features = build(parameters, facts)
    precision = _safe_precision(settings, networks.student.backbone, source.kind, context.device)
    settings = replace(settings, precision=precision)
    known = None
    if parameters["pretrained"] or settings.freeze_backbone:
        backbone = unfrozen(networks.teacher.backbone)
        known = input_statistics(settings.backbone, backbone, settings.n_channels)
    recipe = view_recipe(source, settings, known)
    if not settings.has_backbone:
        assert isinstance(source, Rows)
        assert isinstance(recipe, RowRecipe)
        networks.set_feature_statistics(constant_feature(source.load, len(source), recipe))
    recipe = ranks.broadcast(recipe)
    n_jobs = number_of_jobs(parameters["n_jobs"], source)
    batches = ViewBatches(
        source,
        recipe,
        settings.batch_size,
        settings.epochs,
        context.seed,
        n_jobs,
        context.device,
        n_ahead(source, n_jobs, context.device),
        ranks,
        n_samples,
    )
    return Model(networks, settings, recipe, n_features, facts), batches
