"""Schedules: pure functions of a position in the run. [METHOD.md 6]"""

from __future__ import annotations

import math


def cosine(start: float, end: float, position: float) -> float:
    """Value of a half cosine from ``start`` at position 0 to ``end`` at position 1."""
    position = min(max(position, 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2


def warmup_cosine(
    peak: float, end: float, step: int, *, warmup_steps: int, total_steps: int
) -> float:
    """Linear from 0 to ``peak`` over the warm-up, then a cosine to ``end`` over the rest.

    Parameters
    ----------
    peak, end : float
        Value at the end of the warm-up, and at ``total_steps``.
    step : int
        Steps taken so far, from 0.
    warmup_steps, total_steps : int
        Lengths in steps.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return cosine(peak, end, (step - warmup_steps) / max(1, total_steps - warmup_steps))
