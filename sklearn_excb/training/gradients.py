"""The gradients of a run: the first step whose loss or gradients are not finite."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sklearn_excb.training.loop import StepReport

_STEPS_ASKED = 32  # between two looks at an accelerator, which waits for each
_LOWEST_SCALE = 2.0**-10  # of a loss in float16: 26 halvings below the first
_STEPS_TOLD, _GRADIENTS_TOLD = 3, 3  # in what is said of a divergence


class Divergence(NamedTuple):
    """The first step that was not finite.

    Attributes
    ----------
    step : int
        From 0.
    loss : float
        Of the step.
    largest : list of (str, float)
        Parameters with the largest gradients, and their norms.
    before : list of float
        Norms of the whole gradient in the steps before.
    """

    step: int
    loss: float
    largest: list[tuple[str, float]]
    before: list[float]

    def __str__(self) -> str:
        largest = ", ".join(f"{name} {norm:.3g}" for name, norm in self.largest)
        before = ", ".join(f"{norm:.3g}" for norm in self.before) or "none"
        return f"Largest gradients: {largest}; norms of all in the steps before: {before}."


class Gradients:
    """Watches the norm of the gradients; a CPU is asked at each step, others every 32.

    Parameters
    ----------
    student : nn.Module
        Of the fit.
    scaler : GradScaler
        Where it scales the loss, gradients that overflow now and then are how it finds the scale.
    """

    def __init__(self, student: nn.Module, scaler: GradScaler) -> None:
        self._student, self._scaler = student, scaler
        self._every = 1 if next(student.parameters()).device.type == "cpu" else _STEPS_ASKED
        self._seen: deque[tuple[int, Tensor, Tensor]] = deque(maxlen=self._every + _STEPS_TOLD)
        self._unasked = 0

    def look(self, report: StepReport) -> Divergence | None:
        """Take in a step; give the first that was not finite, if there is one.

        On an accelerator the gradients it names are those of the last step, some steps later.
        """
        gradients = [p.grad for p in self._student.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self._seen.append((report.step, report.outcome.loss.total, norm))
        self._unasked += 1
        return self.ask() if self._unasked >= self._every else None

    def ask(self) -> Divergence | None:
        """Look at the steps that have not been looked at, waiting for the device."""
        self._unasked = 0
        steps = [(step, loss.item(), norm.item()) for step, loss, norm in self._seen]
        for i, (step, loss, norm) in enumerate(steps):
            if not (math.isfinite(loss) and (math.isfinite(norm) or self._lowers_scale())):
                before = [norm for *_, norm in steps[:i]][-_STEPS_TOLD:]
                return Divergence(step, loss, self._largest(), before)
        return None

    def _lowers_scale(self) -> bool:
        """Whether a lower scale of the loss may help gradients that are not finite."""
        return self._scaler.is_enabled() and self._scaler.get_scale() > _LOWEST_SCALE

    def _largest(self) -> list[tuple[str, float]]:
        norms = [
            (name, float(torch.linalg.vector_norm(parameter.grad)))
            for name, parameter in self._student.named_parameters()
            if parameter.grad is not None
        ]
        return sorted(norms, key=lambda of: (math.isfinite(of[1]), -abs(of[1])))[:_GRADIENTS_TOLD]
