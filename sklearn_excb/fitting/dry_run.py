"""Dry runs: a few steps of a fit, and estimates of its memory and time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sklearn_excb.data.fingerprints import source_fingerprint
from sklearn_excb.data.sources import Skipped, Source
from sklearn_excb.fitting.checkpoints import resume_previous
from sklearn_excb.fitting.duration import advice_if_long, duration
from sklearn_excb.fitting.memory.budget import advice_if_short, resolve_micro_batch, share_of_batch
from sklearn_excb.fitting.memory.estimate import MemoryEstimate, readable
from sklearn_excb.fitting.timed_steps import Clock, PhaseTimer
from sklearn_excb.method.kmeans import N_ITERATIONS, most_start_rows
from sklearn_excb.networks.student_teacher import compiled
from sklearn_excb.runtime.devices import available_memory
from sklearn_excb.settings.validation import check_devices
from sklearn_excb.storage.checkpoint_folder import CheckpointFolder
from sklearn_excb.training.build import prepare
from sklearn_excb.training.context import FitContext
from sklearn_excb.training.optimizer import Plan
from sklearn_excb.training.settling import settling_sample

_PER_LINE = 6  # parameters
_COMPARISONS = 2  # with all centroids, per projection and settling pass: for labels, for sizes
_NAMED = 3  # images that cannot be used
_SHOWN = (
    *("K", "backbone", "image_size", "local_size", "n_global", "n_local", "batch_size"),
    *("micro_batch", "precision", "head_width", "optimizer", "learning_rate", "weight_decay"),
    *("epochs", "warmup_epochs", "teacher_momentum", "size_momentum", "size_tolerance"),
    *("settle_passes", "views"),
)


@dataclass(frozen=True)
class DryRun:
    """Report of a dry run; ``print`` it.

    Attributes
    ----------
    resolved : dict
        All parameters with "auto" replaced.
    memory : MemoryEstimate or str
        Memory per device, or the reason why it cannot be estimated.
    available : int
        Free memory of the device in bytes.
    advice : str
        Advice if the free memory is too little; else empty.
    device : str
        Device of the networks.
    n_devices : int
        Number of devices that share each batch.
    communicates : bool
        Whether the times include messages between devices. They do not if ``fit`` would start the
        processes itself.
    n_samples : int
        Number of samples.
    steps_per_epoch, n_steps : int
        Number of steps per epoch and of the run.
    n_done : int
        Number of steps that the checkpoint in ``checkpoint_dir`` has done.
    seconds_per_step : float
        Median time per step; NaN if there are no steps.
    waiting : float
        Share of that time in which the networks waited for views, in [0, 1].
    seconds : dict of str to float
        Time of each remaining phase: "features" (of a frozen backbone), "start" (embedding images
        for the first centroids), "k-means" (computing these centroids, an upper bound), "labels"
        (of the untrained network and at the end), "training", "settling".
    faster : str
        Advice on a shorter fit if a CPU needs more than an hour; else empty.
    unusable : tuple of Skipped
        Images that cannot be used, of the ``n_tried`` that were tried.
    n_tried : int
    """

    resolved: Mapping[str, Any]
    memory: MemoryEstimate | str
    available: int
    advice: str
    device: str
    n_devices: int
    communicates: bool
    n_samples: int
    steps_per_epoch: int
    n_steps: int
    n_done: int
    seconds_per_step: float
    waiting: float
    seconds: Mapping[str, float]
    faster: str = ""
    unusable: tuple[Skipped, ...] = ()
    n_tried: int = 0

    @property
    def total_seconds(self) -> float:
        """Total time of all remaining phases."""
        return sum(self.seconds.values())

    @property
    def images_per_second(self) -> float:
        """Throughput of the training on all devices."""
        return self.resolved["batch_size"] / self.seconds_per_step

    def __str__(self) -> str:
        return "\n".join(f"{title:<8} {text}" for title, text in self._lines() if text)

    def _lines(self) -> Iterator[tuple[str, str]]:
        shown = [f"{name}={_short(self.resolved[name])}" for name in _SHOWN]
        for i in range(0, len(shown), _PER_LINE):
            yield ("" if i else "recipe"), ", ".join(shown[i : i + _PER_LINE])
        yield "images", f"{self.n_samples:,}"
        if self.unusable:
            named = [f"{one.name or one.index}: {one.reason}" for one in self.unusable[:_NAMED]]
            yield (
                "",
                f"{len(self.unusable):,} of {self.n_tried:,} tried cannot be used; "
                'on_error="skip" (--on-error skip) leaves them out',
            )
            yield from (("", line) for line in named)
        several = f"each of {self.n_devices} x " if self.n_devices > 1 else ""
        yield "device", f"{several}{self.device}, {readable(self.available)} free"
        yield "memory", " ".join([str(self.memory), self.advice]).strip()
        if self.n_steps:
            alone = "" if self.communicates else "; without messages between devices"
            yield (
                "step",
                f"{duration(self.seconds_per_step)}, {self.images_per_second:,.0f} images/s, "
                f"{self.waiting:.0%} of it waiting for images{alone}",
            )
            behind = f", {self.n_done:,} of them done" if self.n_done else ""
            yield "steps", f"{self.n_steps:,} ({self.steps_per_epoch:,} per epoch){behind}"
        left = [f"{phase} {duration(time)}" for phase, time in self.seconds.items() if time]
        yield "time", f"{duration(self.total_seconds)} to go: {', '.join(left)}"
        yield "", self.faster


def _short(value: Any) -> str:
    """Return the text of a parameter."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def dry_run(
    source: Source,
    context: FitContext,
    *,
    n_devices: int = 1,
    clock: Clock = time.perf_counter,
) -> DryRun:
    """Take a few steps of a fit on temporary networks, and return a report.

    Parameters
    ----------
    source : Source
        Images or rows, at least K of them.
    context : FitContext
        Context of the fit.
    n_devices : int, default=1
        Number of devices that would share the batches in a fit.
    clock : callable
        Function that returns the time in seconds.
    """
    path, ranks, device = context.parameters["checkpoint_dir"], context.ranks, context.device

    def open_unlocked() -> CheckpointFolder | None:  # neither creates nor locks the folder
        return None if path is None else CheckpointFolder(Path(path).absolute(), "auto", 1)

    checkpoints = resume_previous(open_unlocked, partial(source_fingerprint, source), context)
    context, previous = checkpoints.context, checkpoints.previous
    parameters = context.parameters
    model, batches = prepare(source, context)
    networks, settings, facts = model.networks, model.settings, model.facts
    n_done = 0 if previous is None else previous.first_step(settings, len(source))[0]
    resolved, plan = settings.as_dict(), Plan.of(settings, len(source))

    n_together = max(n_devices, ranks.count)
    check_devices(settings, n_together)
    share = -(-settings.batch_size // n_together)
    of_one, own = share_of_batch(share, settings, batches)
    memory: MemoryEstimate | str
    try:
        of_one, memory = resolve_micro_batch(networks, of_one, own, parameters)
        short = advice_if_short(memory, available_memory(device), own)
    except ValueError as error:
        memory, short = str(error), ""
    if ranks.count > 1:
        settings = replace(settings, micro_batch=min(ranks.objects(of_one.micro_batch)))
    else:
        settings, batches = of_one, own
    trial = PhaseTimer(networks.to(device), settings, batches, clock)
    seconds: dict[str, float] = {}
    if settings.freeze_backbone:
        seconds["features"] = len(source) * trial.seconds_per_image() / n_together
        trial = trial.on_features()
    per_comparison = trial.seconds_per_comparison() / n_together
    if previous is None:
        n = min(len(source), most_start_rows(settings.K))
        seconds["start"] = -(-n // resolved["batch_size"]) * trial.seconds_per_start_batch()
        seconds["k-means"] = N_ITERATIONS * n * per_comparison
    per_step, waiting = math.nan, math.nan
    if plan.total_steps:
        with compiled(networks, wanted=parameters["compile"]):
            per_step, waiting = trial.steps()
        seconds["training"] = (plan.total_steps - n_done) * per_step
    per_image = trial.seconds_per_image() / n_together
    if settings.epochs and settings.settle_passes:
        n = len(settling_sample(len(source), settings.K))
        seconds["settling"] = n * (
            per_image + _COMPARISONS * settings.settle_passes * per_comparison
        )
    seconds["labels"] = len(source) * per_image * ((previous is None) + bool(settings.epochs))
    faster = advice_if_long(sum(seconds.values()), parameters, facts, device)
    return DryRun(
        resolved=resolved | {"micro_batch": of_one.micro_batch},
        memory=memory,
        available=available_memory(device),
        advice=short,
        device=str(device),
        n_devices=n_together,
        communicates=n_devices == 1,
        n_samples=len(source),
        steps_per_epoch=plan.steps_per_epoch,
        n_steps=plan.total_steps,
        n_done=n_done,
        seconds_per_step=per_step,
        waiting=waiting,
        seconds=seconds,
        faster=faster,
    )
