"""Networks, settings and batches of a fit, built from a source and parameters."""

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
from sklearn_excb.runtime.private_generator import PrivateGenerator
from sklearn_excb.settings.resolve import (
    Facts,
    Settings,
    resolve,
    resolve_backbone,
    resolve_image_size,
)
from sklearn_excb.settings.validation import (
    check_devices,
    check_rows_parameters,
    check_sizes,
    check_views,
    check_weights,
)
from sklearn_excb.training.context import FitContext
from sklearn_excb.views.batches import ViewBatches
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.reading import n_ahead, number_of_jobs
from sklearn_excb.views.row_views import RowRecipe, constant_feature, row_recipe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def facts_of(source: Source) -> Facts:
    """Return the facts about a source that the rules of "auto" use."""
    height, width = (0, 0) if isinstance(source, Rows) else typical_shape(source)
    return Facts(len(source), source.kind, (height, width), source.n_channels)


def view_recipe(
    source: Source, settings: Settings, known: InputStatistics | None = None
) -> ViewRecipe | RowRecipe:
    """Return the views of a fit, with the statistics of the pretrained weights if they are known.

    If not, colour images get the statistics of ImageNet, and other images measured ones.
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
    """Return a batch of zeros for each resolution of the views."""
    if kind == "rows":
        return [torch.zeros(2, settings.n_channels)]
    has_local = settings.n_local and not settings.freeze_backbone
    sizes = [settings.image_size, *([settings.local_size] if has_local else [])]
    return [torch.zeros(2, settings.n_channels, size, size) for size in sizes]


def check_before(parameters: Mapping[str, Any], facts: Facts, n_devices: int) -> None:
    """Check what can be checked without a network, before any process of a fit starts.

    Raises
    ------
    ValueError
        If parameters, data and the number of processes do not fit together.
    """
    if facts.kind == "rows":
        check_rows_parameters(parameters)
    check_weights(parameters)
    check_views(parameters, facts)
    settings = resolve(parameters, facts, has_batch_norm=True)
    check_sizes(settings, facts)
    if facts.n_samples < n_devices:
        raise ValueError(
            f"X holds {facts.n_samples} samples, too few for {n_devices} devices: each device "
            "needs a sample of every batch. Lower devices."
        )
    check_devices(settings, n_devices)


def build(parameters: Mapping[str, Any], facts: Facts) -> tuple[StudentTeacher, Settings, int]:
    """Resolve every parameter, and build the networks with their initial weights, on the CPU.

    Only the teacher has a frozen backbone: the student learns from features.

    Parameters
    ----------
    parameters : mapping
        Parameters of the estimator, each of them valid by itself.
    facts : Facts
        Facts about the data.

    Returns
    -------
    networks : StudentTeacher
        Student and teacher.
    settings : Settings
        Resolved parameters.
    n_features : int
        Number of features that the backbone computes.

    Raises
    ------
    ValueError
        If parameters and data do not fit together.
    PretrainedWeightsError
        If pretrained weights are not available.
    """
    if facts.kind == "rows":
        check_rows_parameters(parameters)
    check_weights(parameters)
    check_views(parameters, facts)
    named = resolve_backbone(parameters, facts)
    backbone = build_backbone(
        named,
        n_channels=facts.n_channels,
        image_size=resolve_image_size(parameters, facts) or None,
        pretrained=parameters["pretrained"],
    )
    linear = bool(parameters["freeze_backbone"]) or named == "identity"
    has_batch_norm = linear or uses_batch_norm(backbone)  # predictors on features have it
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
    """Build the balancing by measured cluster sizes, or the baseline that the settings name."""
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
        tolerance=settings.size_tolerance,
        device=device,
    )


def _safe_precision(
    settings: Settings, backbone: nn.Module, kind: str, device: torch.device
) -> str:
    """Return the precision of a training: never "bf16" if a CPU's gradients are then undefined."""
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
        f"precision='bf16' cannot be used on this CPU: with views of {small} pixels, the backbone "
        f"has {found}, whose gradient in bfloat16 contains uninitialised memory. Use larger views "
        '(image_size, local_size), or precision="auto" or "32".'
    )


@dataclass(frozen=True)
class Model:
    """Networks of a fit, with their settings and views.

    Attributes
    ----------
    networks : StudentTeacher
        Student and teacher.
    settings : Settings
        Resolved parameters.
    recipe : ViewRecipe or RowRecipe
        Views of the samples, and the statistics that normalise them for inference.
    n_features : int
        Number of features that the backbone computes.
    facts : Facts
        Facts about the data that the rules of "auto" use.
    """

    networks: StudentTeacher
    settings: Settings
    recipe: ViewRecipe | RowRecipe
    n_features: int
    facts: Facts


def prepare(
    source: Source,
    context: FitContext,
    n_samples: int | None = None,
    draws: PrivateGenerator | None = None,
    *,
    is_whole: bool = True,
) -> tuple[Model, ViewBatches]:
    """Resolve every parameter for a source, and build networks and batches.

    Parameters
    ----------
    source : Source
        The samples, or the first part of a stream.
    context : FitContext
        Parameters, seed, device and ranks of the fit.
    n_samples : int, optional
        Number of samples in an epoch. By default the source holds all of them.
    draws : PrivateGenerator, optional
        Generator of the first weights. By default a new one, seeded as the fit.
    is_whole : bool, default=True
        Whether the source holds all samples, not the first of a stream.

    Returns
    -------
    model : Model
        Networks on the CPU, with their initial weights.
    batches : ViewBatches
        Batches of the source.
    """
    ranks, parameters = context.ranks, context.parameters
    facts = replace(facts_of(source), is_whole=is_whole)
    facts = ranks.broadcast(facts if n_samples is None else replace(facts, n_samples=n_samples))
    with draws or PrivateGenerator(context.seed):
        networks, settings, n_features = build(parameters, facts)
        backbone = networks.student.backbone
        precision = _safe_precision(settings, backbone, source.kind, context.device)
    settings = replace(settings, precision=precision)
    known = None
    if parameters["pretrained"] or settings.freeze_backbone:
        backbone = unfrozen(networks.teacher.backbone)
        known = input_statistics(settings.backbone, backbone, settings.n_channels)
    recipe = view_recipe(source, settings, known)
    if not settings.has_backbone:
        assert isinstance(source, Rows)
        assert isinstance(recipe, RowRecipe)
        networks.set_feature_statistics(
            constant_feature(source.load, len(source), recipe, views=settings.views)
        )
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
