"""Monitoring of the gradients of a run, to find the first step that is not finite."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

if TYPE_CHECKING:
    from sklearn_excb.training.loop import StepReport


_CHECK_EVERY = 32  # steps between two checks on an accelerator, where a check has to wait
_LOWEST_SCALE = 2.0**-10  # scale of a float16 loss, 26 halvings below the initial one
_STEPS_LISTED, _GRADIENTS_LISTED = 3, 3  # how many the message about a divergence lists


class Divergence(NamedTuple):
    """First step whose loss or gradients were not finite.

    Attributes
    ----------
    step : int
        Number of the step, from 0.
    loss : float
        Loss of the step.
    largest : list of (str, float)
        Names of the parameters with the largest gradients, and the norms of these gradients.
    before : list of float
        Norms of the whole gradient in the previous steps.
    """

    step: int
    loss: float
    largest: list[tuple[str, float]]
    before: list[float]

    def __str__(self) -> str:
        largest = ", ".join(f"{name} {norm:.3g}" for name, norm in self.largest)
        before = ", ".join(f"{norm:.3g}" for norm in self.before) or "none"
        return f"Largest gradients: {largest}. Gradient norms in the previous steps: {before}."


class GradientMonitor:
    """Monitor of the norm of the gradients, at every step on a CPU and every 32 steps elsewhere.

    Parameters
    ----------
    student : nn.Module
        Student of the fit.
    scaler : GradScaler
        Scaler of the loss. If it is enabled, gradients overflow now and then, which is how the
        scaler finds its scale.
    """

    def __init__(self, student: nn.Module, scaler: GradScaler) -> None:
        self._student, self._scaler = student, scaler
        self._every = 1 if next(student.parameters()).device.type == "cpu" else _CHECK_EVERY
        self._seen: deque[tuple[int, Tensor, Tensor]] = deque(maxlen=self._every + _STEPS_LISTED)
        self._unchecked = 0

    def check(self, report: StepReport) -> Divergence | None:
        """Take in a step, and return the first step that was not finite, or None.

        On an accelerator, the gradients that the result names are those of the last step, which may
        be some steps later.
        """
        gradients = [p.grad for p in self._student.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self._seen.append((report.step, report.outcome.loss.total, norm))
        self._unchecked += 1
        return self.synchronize() if self._unchecked >= self._every else None

    def synchronize(self) -> Divergence | None:
        """Check the steps that have not been checked yet; wait for the device."""
        self._unchecked = 0
        steps = [(step, loss.item(), norm.item()) for step, loss, norm in self._seen]
        for i, (step, loss, norm) in enumerate(steps):
            if not (math.isfinite(loss) and (math.isfinite(norm) or self._lowers_scale())):
                before = [norm for *_, norm in steps[:i]][-_STEPS_LISTED:]
                return Divergence(step, loss, self._largest(), before)
        return None

    def _lowers_scale(self) -> bool:
        """Whether the scaler may still cure gradients that are not finite, by a lower scale."""
        return self._scaler.is_enabled() and self._scaler.get_scale() > _LOWEST_SCALE

    def _largest(self) -> list[tuple[str, float]]:
        norms = [
            (name, float(torch.linalg.vector_norm(parameter.grad)))
            for name, parameter in self._student.named_parameters()
            if parameter.grad is not None
        ]
        return sorted(norms, key=lambda of: (math.isfinite(of[1]), -abs(of[1])))[:_GRADIENTS_LISTED]
