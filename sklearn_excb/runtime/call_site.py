"""Warnings that point to the line of user code that called this package, at any call depth."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

# packages whose frames are skipped: this one, and those that wrap or call its methods
_SKIPPED = frozenset(("sklearn_excb", "contextlib", "functools", "sklearn", "joblib"))


def caller() -> FrameType:
    """Return the frame of the code that called this package, directly or through scikit-learn."""
    frame = sys._getframe()
    while _module(frame).partition(".")[0] in _SKIPPED and frame.f_back is not None:
        frame = frame.f_back
    return frame


def warn_caller(message: str, category: type[Warning], frame: FrameType | None = None) -> None:
    """Warn at the current line of a frame, which is :func:`caller` by default."""
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
    return frame.f_globals.get("__name__", "<string>")  # code passed to exec may have no name
