"""A fit from end to end: resolve, build, start, train, assign."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sklearn_excb import auto
from sklearn_excb.backbones import build_backbone, output_dim
from sklearn_excb.batches import ViewBatches, inference_inputs, n_ahead, number_of_jobs
from sklearn_excb.devices import available_memory, resolve_precision
from sklearn_excb.grouping import group_centroids
from sklearn_excb.history import EpochRecord, entry, filling
from sklearn_excb.inference import assign
from sklearn_excb.memory import MemoryEstimate, estimate_memory, generous_bound
from sklearn_excb.memory_budget import fit_into, warn_if_short
from sklearn_excb.networks import (
    ClusterNetwork,
    StudentTeacher,
    build_networks,
    uses_batch_norm,
)
from sklearn_excb.rivals import build_balancing
from sklearn_excb.row_views import RowRecipe, row_recipe
from sklearn_excb.settling import settle_teacher, settling_sample
from sklearn_excb.sources import ItemImages, Rows, Source, channel_statistics, typical_shape
from sklearn_excb.training import Plan, start_centroids, train
from sklearn_excb.validation import check_rows_parameters, check_sizes
from sklearn_excb.views import ViewRecipe
from sklearn_excb.watching import Watch

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Fitted:
    """What a fit gives.

    Attributes
    ----------
    teacher : ClusterNetwork
        On the CPU, in evaluation mode.
    settings : auto.Settings
        Every parameter, resolved.
    recipe : ViewRecipe or RowRecipe
        With the statistics that inference normalises by.
    n_backbone_features : int
        What f gives.
    image_shape : tuple of int
        Typical (height, width) of the images; (0, 0) for rows.
    labels : ndarray of shape (n_samples,)
        Of the training samples, by plain inference.
    history : list of dict
        An entry an epoch, from 0.
    group_centroids : ndarray of shape (K, d), float32, or None
        Where clusters lie when they are merged; None in what an earlier version saved.
    """

    teacher: ClusterNetwork
    settings: auto.Settings
    recipe: ViewRecipe | RowRecipe
    n_backbone_features: int
    image_shape: tuple[int, int]
    labels: npt.NDArray[np.int64]
    history: list[dict[str, Any]]
    group_centroids: npt.NDArray[np.float32] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: with CPU tensors only, to load where there is no accelerator."""
        return vars(self) | {"teacher": self.teacher.cpu()}


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


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed torch inside, on every device, and leave its global generators as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), _mps_state_kept():
        torch.manual_seed(seed)
        yield


@contextmanager
def _mps_state_kept() -> Iterator[None]:
    if not torch.backends.mps.is_available():
        yield
        return
    state = torch.mps.get_rng_state()
    try:
        yield
    finally:
        torch.mps.set_rng_state(state)


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


def _prepare(
    source: Source,
    facts: auto.Facts,
    parameters: Mapping[str, Any],
    seed: int,
    device: torch.device,
) -> tuple[StudentTeacher, auto.Settings, int, ViewBatches]:
    """What :func:`build` gives, and the batches of the fit."""
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


def memory_of(
    source: Source, parameters: Mapping[str, Any], device: torch.device
) -> MemoryEstimate:
    """What a fit of the source would take in memory; ``micro_batch="auto"`` is settled by it."""
    with own_randomness(0):
        facts = facts_of(source)
        networks, settings, _, batches = _prepare(source, facts, parameters, 0, device)
        return _settle_memory(networks, settings, batches, parameters)[1]


def _settle_memory(
    networks: StudentTeacher,
    settings: auto.Settings,
    batches: ViewBatches,
    parameters: Mapping[str, Any],
) -> tuple[auto.Settings, MemoryEstimate]:
    if parameters["micro_batch"] == "auto":
        return fit_into(available_memory(batches.device), networks, settings, batches)
    return settings, estimate_memory(networks, settings, batches)


def _may_be_short(networks: StudentTeacher, settings: auto.Settings, batches: ViewBatches) -> bool:
    if isinstance(batches.source, ItemImages):
        return True  # of any size; opening them takes longer than the estimate
    return generous_bound(networks, settings, batches) > available_memory(batches.device)


def _within_memory(
    networks: StudentTeacher,
    settings: auto.Settings,
    batches: ViewBatches,
    parameters: Mapping[str, Any],
) -> auto.Settings:
    """Settle the micro-batch, say what the fit will take, and warn if the device has less.

    A module of the user's own is run on fake tensors only if that is asked for: it might keep them
    (in a cache, say) and meet them again in training.
    """
    asked = parameters["micro_batch"] == "auto"
    told = parameters["verbose"] or _may_be_short(networks, settings, batches)
    if not asked and not (told and isinstance(settings.backbone, str)):
        return settings
    try:
        settings, estimate = _settle_memory(networks, settings, batches, parameters)
    except ValueError as error:
        if asked:
            raise
        said = str(error)  # it can be trained all the same
    else:
        said = f"{estimate}"
        warn_if_short(estimate, available_memory(batches.device), batches)
    if parameters["verbose"]:
        tqdm.write(f"ExCB: {said}", file=sys.stderr)
    return settings


def fit_source(
    source: Source, parameters: Mapping[str, Any], *, seed: int, device: torch.device
) -> Fitted:
    """Fit a source of images or rows.

    Parameters
    ----------
    source : Source
        Of at least K samples.
    parameters : mapping
        The estimator's, validated one by one.
    seed : int
        Of every draw.
    device : torch.device
        Where the networks run.
    """
    with ExitStack() as stack:
        stack.enter_context(own_randomness(seed))
        facts = facts_of(source)
        networks, settings, n_features, batches = _prepare(source, facts, parameters, seed, device)
        settings = _within_memory(networks, settings, batches, parameters)
        networks.to(device)

        bar = stack.enter_context(
            tqdm(desc="ExCB: starting", unit="img", disable=not parameters["verbose"])
        )

        whole = partial(
            inference_inputs,
            source,
            batches.recipe,
            batch_size=settings.inference_batch,
            n_jobs=batches.n_jobs,
            device=device,
        )

        def labels(sums: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.int64]:
            found = np.empty(len(source), dtype=np.int64)
            assign(networks.teacher, whole(), out=found, sums=sums)
            return found

        start_centroids(networks, batches.start(), settings, seed=seed)
        sums = np.zeros((settings.K, n_features), np.float32)  # pages that nobody has touched yet
        last = labels(None if settings.epochs else sums)
        history = [entry(0, inference=last, n_clusters=settings.K)]
        bar.set_postfix_str(f"untrained: empty {history[0]['empty_fraction']:.1%}")
        if settings.epochs:
            watch = Watch(networks.teacher, settings, settings.steps_per_epoch(len(source)))
            history += run(networks, batches, settings, watch, bar)
            bar.set_description("ExCB: settling, assigning the images")
            unsettled = None
            if settings.settle_passes:
                sample = settling_sample(len(source), settings.K)
                inputs = whole(sample=sample)
                unsettled = settle_teacher(
                    networks.teacher, inputs, settings, n_samples=len(sample), seed=seed
                )
            last = labels(sums)
            unsettled = last if unsettled is None else unsettled
            history[-1] |= filling(last, settings.K) | filling(unsettled, settings.K, "_unsettled")
            watch.look(history[-1], stacklevel=4)
    teacher = networks.teacher.cpu().eval()
    places = group_centroids(sums, last, teacher.centroids.unit().detach().numpy())
    return Fitted(teacher, settings, batches.recipe, n_features, facts.shape, last, history, places)


def run(
    networks: StudentTeacher,
    batches: ViewBatches,
    settings: auto.Settings,
    watch: Watch,
    bar: tqdm[Any],
) -> list[dict[str, Any]]:
    """Train to the end, keeping an entry an epoch and showing progress.

    Where a later epoch than the first diverges, the run ends with the teacher of the one before.

    Raises
    ------
    FloatingPointError
        If the first epoch diverges.
    """
    balancing = build_balancing(settings, batches.device)
    plan = Plan.of(settings, len(batches.source))
    history: list[dict[str, Any]] = []
    record = EpochRecord(settings.K, batches.device)
    bar.reset(total=plan.total_steps * settings.batch_size)
    bar.set_description("ExCB")
    for report in train(networks, balancing, batches, settings, plan, seed=batches.seed):
        record.add(report)
        bar.update(settings.batch_size)
        if (report.step + 1) % plan.steps_per_epoch == 0:
            last = record.summary(report.epoch)
            record = EpochRecord(settings.K, batches.device)
            if not watch.sound(last):
                watch.recover(last)
                break
            watch.look(last, stacklevel=5)
            history.append(last)
            bar.set_postfix_str(
                f"epoch {report.epoch}/{settings.epochs}, loss {last['loss']:.3f}, "
                f"empty before balancing {last['empty_fraction_plain']:.1%}"
            )
    return history
