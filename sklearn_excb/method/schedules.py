"""Schedules of the learning rate and other hyperparameters, as functions of the position in a run.

The published recipes use a linear warm-up and a cosine for the learning rate, and cosines for the
weight decay, the teacher's momentum and the smallest area of global crops.
"""

from __future__ import annotations

import math


def cosine(start: float, end: float, position: float) -> float:
    """Return the value of a half cosine from ``start`` at position 0 to ``end`` at position 1."""
    position = min(max(position, 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2


def warmup_cosine(
    peak: float, end: float, step: int, *, warmup_steps: int, total_steps: int
) -> float:
    """Return a value that rises linearly from 0 to ``peak``, then falls to ``end`` by cosine.

    Parameters
    ----------
    peak, end : float
        Value at the end of the warm-up, and value at ``total_steps``.
    step : int
        Number of steps taken so far.
    warmup_steps, total_steps : int
        Number of steps of the warm-up, and of the whole run.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return cosine(peak, end, (step - warmup_steps) / max(1, total_steps - warmup_steps))
