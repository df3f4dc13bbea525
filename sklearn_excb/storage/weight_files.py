"""Weight files that a user passes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sklearn_excb.exceptions import PretrainedWeightsError


def existing(path: Any) -> Path:
    """Return the absolute path of a weight file.

    Raises
    ------
    PretrainedWeightsError
        If the file does not exist.
    """
    file = Path(path).absolute()
    if not file.is_file():
        raise PretrainedWeightsError(
            f"pretrained={os.fspath(path)!r} is not a file. Pass a file of weights (.safetensors "
            "or .pth), or True for the weights from the library of the backbone."
        )
    return file
