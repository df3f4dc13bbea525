"""Where a device has too little memory for a fit: smaller parts of a step, or a warning."""

from __future__ import annotations

import warnings
from dataclasses import replace

from sklearn_excb.auto import Settings
from sklearn_excb.batches import ViewBatches
from sklearn_excb.memory import MemoryEstimate, estimate_memory, readable
from sklearn_excb.networks import StudentTeacher

_SMALLEST_PART = 8  # images: below it BatchNorm has little to go by

_ADVICE = {
    "start": "Lower batch_size or image_size, or choose a smaller backbone.",
    "k-means": "Lower K.",
    "settling": "Lower K, or set settle_passes=0.",
    "views": "Lower batch_size or n_local.",
    "step": 'Set micro_batch="auto", which takes steps in parts, or lower batch_size.',
    "labels": "Set micro_batch to some 32 images.",
}


def fit_into(
    available: int, networks: StudentTeacher, settings: Settings, batches: ViewBatches
) -> tuple[Settings, MemoryEstimate]:
    """Halve the micro-batch until a fit fits, or until halving it further does not help.

    Parameters
    ----------
    available : int
        Bytes that the device has left.
    networks, settings, batches
        As in :func:`sklearn_excb.memory.estimate_memory`.
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
    """Warn of a fit for which the device has too little memory left."""
    if estimate.needed <= available:
        return
    split_already = estimate.micro_batch < batches.batch_size
    advice = _ADVICE["start" if split_already else estimate.peak_phase]
    warnings.warn(
        f"This fit needs about {readable(estimate.needed)} with what libraries take, and "
        f"{batches.device} has {readable(available)} left. Tensors: {estimate} {advice}",
        stacklevel=5,  # whoever called fit
    )
