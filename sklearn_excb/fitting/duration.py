"""How long a fit will take, told after its first steps, and which recipe would take less."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sklearn_excb.exceptions import DurationWarning
from sklearn_excb.fitting.memory.live_tensors import fake
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.runtime.private_generator import PrivateGenerator
from sklearn_excb.settings import auto_rules
from sklearn_excb.settings.recipes import recipe
from sklearn_excb.settings.resolve import Facts, Settings, resolve_backbone
from sklearn_excb.training.build import build

_LONG = 3600.0  # seconds, from which a warning is worth its lines
_STEPS, _SECONDS = 3, 5.0  # that a pace is taken from, at the least
_FASTER = ("small", "tiny")
_WORTH = 0.6  # of the time: a recipe that takes more is not named
_BACKWARD = 3  # times the forward pass, with it


@dataclass
class Pace:
    """Seconds a step: the median of the first ones but the very first, in which threads start.

    Parameters
    ----------
    clock : callable
        Seconds.
    """

    clock: Callable[[], float] = time.perf_counter
    _times: list[float] = field(default_factory=list)
    _told: bool = False

    def step(self) -> float | None:
        """Seconds a step, once, after the step at which they are known; else None."""
        if self._told:
            return None
        self._times.append(self.clock())
        passed = self._times[-1] - self._times[0]
        self._told = len(self._times) > _STEPS and passed >= _SECONDS
        return float(np.median(np.diff(self._times))) if self._told else None


def duration(seconds: float) -> str:
    """Seconds in words: "0.31 s", "12 min", "3 h 20 min", "4 d 6 h"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def warn_if_long(
    seconds: float, parameters: Mapping[str, Any], facts: Facts, device: torch.device
) -> None:
    """Warn of a fit that takes more than an hour on a CPU.

    Parameters
    ----------
    seconds : float
        To its end.
    parameters : mapping
        The estimator's.
    facts : Facts
        Of the data.
    device : torch.device
        That trains.
    """
    if advice := advice_if_long(seconds, parameters, facts, device):
        warn_caller(
            f"This fit will take about {duration(seconds)} on {device}, by its first steps. "
            f"{advice}",
            DurationWarning,
        )


def advice_if_long(
    seconds: float, parameters: Mapping[str, Any], facts: Facts, device: torch.device
) -> str:
    """What would take less time, on a CPU that will need more than an hour; else empty."""
    if device.type != "cpu" or seconds < _LONG:
        return ""
    advice = []
    if parameters["pretrained"] and not parameters["freeze_backbone"]:
        advice.append("With freeze_backbone=True each image goes through the backbone only once.")
    faster = [
        f'from_recipe("{name}") {duration(share * seconds)}'
        for name, share in _shares(parameters, facts).items()
        if share < _WORTH
    ]
    if faster:
        fresh = ", from fresh weights," if parameters["pretrained"] else ""
        advice.append(
            f"By FLOPs,{fresh} {' and '.join(faster)} would take; dry_run(X) tells more exactly."
        )
    if not advice:
        advice.append("It is as long as epochs times images: fewer epochs take less.")
    return " ".join(advice)


def _shares(parameters: Mapping[str, Any], facts: Facts) -> dict[str, float]:
    """Share of a fit's work that recipes would have which suit the data.

    None of a module of the user's own, which might keep the fake tensors it is run on.
    """
    shares: dict[str, float] = {}
    named = isinstance(parameters["backbone"], str)
    if facts.kind == "rows" or parameters["freeze_backbone"] or not named:
        return shares
    fresh = {**parameters, "pretrained": False, "compile": False}
    fresh["backbone"] = str(resolve_backbone(parameters, facts)).partition(".")[0]
    with PrivateGenerator(0), suppress(Exception):  # advice is not worth a fit
        now = work(fresh, facts)
        for name in _FASTER:
            if name == "small" and facts.n_samples < auto_rules.FEW:
                continue  # a ResNet-18 learns little from them
            with suppress(ValueError):  # images too small for it
                shares[name] = work({**fresh, **recipe(name)}, facts) / now
    return shares


def work(parameters: Mapping[str, Any], facts: Facts) -> float:
    """FLOPs of the convolutions and products of a whole training, but for those of the loss."""
    networks, settings, _ = build(parameters, facts)
    return _of_an_image(networks, settings) * settings.epochs * facts.n_samples


def _of_an_image(networks: StudentTeacher, settings: Settings) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    n = 2  # images; BatchNorm wants two
    views = (settings.image_size, settings.n_global), (settings.local_size, settings.n_local)
    with fake(networks) as fakes:
        groups = [
            torch.empty(n * n_views, settings.n_channels, size, size)
            for size, n_views in views
            if n_views
        ]
        with torch.no_grad(), FlopCounterMode(display=False) as of_teacher:
            fakes.teacher.project(groups[:1])
        with torch.no_grad(), FlopCounterMode(display=False) as of_student:
            fakes.student.project(groups)
    return (of_teacher.get_total_flops() + _BACKWARD * of_student.get_total_flops()) / n
