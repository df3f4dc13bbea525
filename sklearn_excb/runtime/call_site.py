"""Warnings that point to the line of the user's that called us, however deep they come from."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

# wrap methods, or call them for somebody
_OURS = frozenset(("sklearn_excb", "contextlib", "sklearn", "joblib"))


def caller() -> FrameType:
    """Frame of whoever called this package, by way of scikit-learn perhaps."""
    frame = sys._getframe()
    while _module(frame).partition(".")[0] in _OURS and frame.f_back is not None:
        frame = frame.f_back
    return frame


def warn_caller(message: str, category: type[Warning], frame: FrameType | None = None) -> None:
    """Warn as of the line that a frame is at, :func:`caller` unless it is given."""
    frame = caller() if frame is None else frame
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=_module(frame),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _module(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "<string>")  # what was passed to exec may have none
