"""What the names of image files say: the part that tells them apart, and the class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.open_source import open_source


def short_names(names: Sequence[str] | None) -> list[str] | None:
    """Return the names without the folder that contains all files; a missing path is ""."""
    if names is None or not any(names):
        return None
    if len({os.path.isabs(name) for name in names if name}) > 1:
        names = [name and os.path.abspath(name) for name in names]
    try:
        common = os.path.commonpath([os.path.dirname(name) for name in names if name])
    except ValueError:  # of several drives
        return [*names]
    return [os.path.relpath(name, common) if common and name else name for name in names]


def folder_classes(folder: str | os.PathLike[str], on_error: str) -> npt.NDArray[Any] | None:
    """Return the parent folder of each image as its class; None if all share one folder."""
    names = open_source(folder, on_error=on_error).names
    classes = np.array([Path(name).parent.name for name in names or ()], dtype=str)
    return classes if len(np.unique(classes)) > 1 else None
