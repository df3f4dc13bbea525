"""Fits on devices with too little memory: smaller parts of a step, or a warning."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from sklearn_excb.data.sources import Source
from sklearn_excb.exceptions import MemoryWarning
from sklearn_excb.fitting.memory.estimate import (
    MemoryEstimate,
    estimate_memory,
    generous_bound,
    readable,
)
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.runtime.devices import available_memory
from sklearn_excb.runtime.ranks import ALONE
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.settings.validation import check_devices
from sklearn_excb.training.build import prepare
from sklearn_excb.training.context import FitContext
from sklearn_excb.views.batches import ViewBatches

_SMALLEST_PART = 8  # images; the statistics of BatchNorm need some

_ADVICE = {
    "features": "Set micro_batch to about 32 images.",
    "start": "Lower batch_size or image_size, or choose a smaller backbone.",
    "k-means": "Lower K.",
    "settling": "Lower K, or set settle_passes=0.",
    "views": "Lower batch_size or n_local.",
    "step": 'Set micro_batch="auto", which splits steps into parts, or lower batch_size.',
    "labels": "Set micro_batch to about 32 images.",
}


def halve_micro_batch(
    available: int, networks: StudentTeacher, settings: Settings, batches: ViewBatches
) -> tuple[Settings, MemoryEstimate]:
    """Halve the micro-batch until the fit fits the device, or halving does not help further.

    Parameters
    ----------
    available : int
        Free memory of the device in bytes.
    networks, settings, batches
        As in :func:`sklearn_excb.fitting.memory.estimate.estimate_memory`.
    """
    estimate = estimate_memory(networks, settings, batches)
    while estimate.needed > available and settings.micro_batch > _SMALLEST_PART:
        half = max(_SMALLEST_PART, -(-settings.micro_batch // 2))
        smaller = replace(settings, micro_batch=half)
        of_smaller = estimate_memory(networks, smaller, batches)
        if of_smaller.peak >= estimate.peak:
            break
        settings, estimate = smaller, of_smaller
    return settings, estimate


def warn_if_short(estimate: MemoryEstimate, available: int, batches: ViewBatches) -> None:
    """Warn if the device has too little free memory for a fit."""
    if advice := advice_if_short(estimate, available, batches):
        warn_caller(
            f"This fit needs about {readable(estimate.needed)} of memory, libraries included, but "
            f"{batches.device} has {readable(available)} free. Tensors: {estimate} {advice}",
            MemoryWarning,
        )


def advice_if_short(estimate: MemoryEstimate, available: int, batches: ViewBatches) -> str:
    """Return advice if the device has too little free memory for a fit; else an empty string."""
    if estimate.needed <= available:
        return ""
    split_already = estimate.micro_batch < batches.batch_size
    return _ADVICE["start" if split_already else estimate.peak_phase]


def share_of_batch(
    share: int, settings: Settings, batches: ViewBatches
) -> tuple[Settings, ViewBatches]:
    """Return settings and batches of a single process with ``share`` images of each batch."""
    micro_batch = min(share, settings.micro_batch)
    return (
        replace(settings, batch_size=share, micro_batch=micro_batch),
        replace(batches, batch_size=share, ranks=ALONE),
    )


def estimate_memory_of(source: Source, context: FitContext, n_devices: int) -> MemoryEstimate:
    """Estimate the memory of a fit on each of the devices that share its batches.

    ``micro_batch="auto"`` is resolved as in the fit.
    """
    model, batches = prepare(source, context)
    check_devices(model.settings, n_devices)
    share = -(-model.settings.batch_size // n_devices)
    settings, batches = share_of_batch(share, model.settings, batches)
    return resolve_micro_batch(model.networks, settings, batches, context.parameters)[1]


def resolve_micro_batch(
    networks: StudentTeacher,
    settings: Settings,
    batches: ViewBatches,
    parameters: Mapping[str, Any],
) -> tuple[Settings, MemoryEstimate]:
    """Resolve ``micro_batch="auto"``, and estimate the memory of the fit."""
    if parameters["micro_batch"] == "auto":
        return halve_micro_batch(available_memory(batches.device), networks, settings, batches)
    return settings, estimate_memory(networks, settings, batches)


def resolve_micro_batch_together(
    networks: StudentTeacher, settings: Settings, batches: ViewBatches, context: FitContext
) -> Settings:
    """Resolve the micro-batch as the smallest that a rank needs for its share of a batch."""
    ranks, share = batches.ranks, batches.ranks.most(settings.batch_size)
    of_rank, batches = share_of_batch(share, settings, batches)
    with ranks.together():
        of_rank = _resolve_and_warn(networks, of_rank, batches, context.parameters)
    return replace(settings, micro_batch=min(ranks.objects(of_rank.micro_batch)))


def _resolve_and_warn(
    networks: StudentTeacher,
    settings: Settings,
    batches: ViewBatches,
    parameters: Mapping[str, Any],
) -> Settings:
    """Resolve the micro-batch, report the estimate, and warn if the device has less memory.

    A module of the user's own runs on fake tensors only for ``micro_batch="auto"``, because it
    might store them (in a cache, say) and use them in training.
    """
    asked = parameters["micro_batch"] == "auto"
    if not asked and not (
        isinstance(settings.backbone, str)
        and (
            parameters["verbose"]
            or generous_bound(networks, settings, batches) > available_memory(batches.device)
        )
    ):
        return settings
    try:
        settings, estimate = resolve_micro_batch(networks, settings, batches, parameters)
    except ValueError as error:
        if asked:
            raise
        said = str(error)  # training may work nevertheless
    else:
        said = f"{estimate}"
        warn_if_short(estimate, available_memory(batches.device), batches)
    if parameters["verbose"]:
        tqdm.write(f"ExCB: {said}", file=sys.stderr)
    return settings
