"""Files of weights that a user names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sklearn_excb.exceptions import PretrainedWeightsError


def existing(path: Any) -> Path:
    """File of weights.

    Raises
    ------
    PretrainedWeightsError
        If there is none.
    """
    file = Path(path).absolute()
    if not file.is_file():
        raise PretrainedWeightsError(
            f"pretrained={os.fspath(path)!r} names no file. Pass a file of weights (.safetensors, "
            "or .pth), or True for those that the library of the backbone names."
        )
    return file
