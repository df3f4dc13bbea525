"""Optimiser of the student, and the rates of optimiser and teacher over a run.

The schedules are those of the published recipes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from sklearn_excb.method.schedules import cosine, warmup_cosine
from sklearn_excb.settings.resolve import Settings

_LAST_RATE = 1e-4  # share of the learning rate at the end of its cosine
_CENTROID_DECAY = (10.0, 1.0)  # first and last factor of the centroids' weight decay, by cosine
_SGD_MOMENTUM = 0.9
_TEMPERATURE_WARMUP = 0.1  # share of the run, as DINO's 30 of 300 epochs
UNSCALED = GradScaler(enabled=False)


class Plan(NamedTuple):
    """Length of a run in steps.

    Attributes
    ----------
    steps_per_epoch, total_steps : int
        Number of steps of an epoch, and of the whole run.
    endless : bool
        Whether the run has no end, as with ``partial_fit``. Its rates stay constant after the
        warm-up, and ``total_steps`` only sets the length of the warm-up of the temperature.
    """

    steps_per_epoch: int
    total_steps: int
    endless: bool = False

    @classmethod
    def of(cls, settings: Settings, n_samples: int) -> Plan:
        """Return the plan of a run over ``n_samples`` images."""
        per_epoch = settings.steps_per_epoch(n_samples)
        return cls(per_epoch, per_epoch * settings.epochs)

    def position(self, step: int) -> float:
        """Return the share of the run before a step, in [0, 1]; 0 for an endless run."""
        return 0.0 if self.endless else step / self.total_steps


class TeacherRates(NamedTuple):
    """Momentum and temperature of the teacher in one step."""

    momentum: float
    temperature: float

    @classmethod
    def of(cls, settings: Settings, step: int, plan: Plan) -> TeacherRates:
        """Return the rates of a step.

        The momentum rises to 1 by cosine. The temperature changes linearly over the first tenth of
        the run.
        """
        first, last = settings.teacher_temperature
        warm = min(1.0, step / plan.total_steps / _TEMPERATURE_WARMUP)
        momentum = cosine(settings.teacher_momentum, 1.0, plan.position(step))
        return cls(momentum, first + (last - first) * warm)


def build_optimizer(student: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Build SGD or AdamW with three groups: weights, tensors without decay, and centroids."""
    weights, undecayed, centroids = [], [], []
    for name, parameter in student.named_parameters():
        if name.startswith("centroids."):
            centroids.append(parameter)
        elif parameter.ndim > 1:
            weights.append(parameter)
        else:
            undecayed.append(parameter)
    groups = [
        {"params": weights, "decay": (1.0, 1.0)},
        {"params": undecayed, "decay": (0.0, 0.0)},
        {"params": centroids, "decay": _CENTROID_DECAY},
    ]
    # one kernel for all tensors; CPUs keep torch's default, which gives the results of earlier runs
    fused = next(student.parameters()).device.type == "cuda" or None
    if settings.optimizer == "adamw":
        betas = (0.9, 0.999)
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=fused)
    momentum = _SGD_MOMENTUM
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=momentum, fused=fused)


def build_scaler(settings: Settings, device: torch.device) -> GradScaler:
    """Build the scaler of the loss; it is disabled unless training is in float16.

    Without a scale, small gradients would be 0 in float16.
    """
    return GradScaler(device.type, enabled=settings.precision == "fp16")


def set_rates(optimizer: torch.optim.Optimizer, settings: Settings, step: int, plan: Plan) -> None:
    """Set the learning rate and the weight decay of a step in each group."""
    warmup_steps = round(settings.warmup_epochs * plan.steps_per_epoch)
    rate = warmup_cosine(
        settings.learning_rate,
        settings.learning_rate * _LAST_RATE,
        min(step, warmup_steps) if plan.endless else step,
        warmup_steps=warmup_steps,
        total_steps=plan.total_steps,
    )
    position = plan.position(step)
    decay = cosine(*settings.weight_decay, position)
    for group in optimizer.param_groups:
        group["lr"] = rate
        first, last = group["decay"]
        group["weight_decay"] = decay * cosine(first, last, position)
