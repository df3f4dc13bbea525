"""Conversion of user images to RGB pixels for display."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import as_array
from .._optional import require

Picture = NDArray[np.uint8]
"""Pixels of shape (h, w, 3)."""


def as_rgb(image: Any, position: int) -> Picture:
    """Return an image as uint8 of shape (h, w, 3), with transparent parts on white."""
    if isinstance(image, str | bytes | os.PathLike):
        raise ValueError(
            f"Image {position} is a {type(image).__name__}, needed an array or an opened picture. "
            "Open the files first, for example with PIL.Image.open(path)."
        )
    if hasattr(image, "convert"):  # PIL converts palettes and other modes
        image = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    array = as_array(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ValueError(
            f"Image {position} has shape {array.shape}, needed (h, w) or (h, w, c) "
            "with 1, 3 or 4 channels last. If channels come first, use image.transpose(1, 2, 0)."
        )
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:  # also false for NaN
            raise ValueError(
                f"Image {position} has values in [{low:g}, {high:g}], needed floats in [0, 1]. "
                "Use images / images.max(), or convert to uint8."
            )
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ValueError(
            f"Image {position} has dtype {array.dtype}, needed uint8, or float in [0, 1]. "
            "Use images / images.max()."
        )
    if array.shape[2] == 4:
        alpha = array[..., 3:].astype(np.float64) / 255
        array = np.round(array[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array


def fit_into(image: Picture, cell: int) -> Picture:
    """Scale a picture so that its longer side is ``cell`` pixels."""
    height, width = image.shape[:2]
    if max(height, width) == cell:
        return image
    pil = require("PIL.Image", extra="eval", purpose="Resizing images")
    scale = cell / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(pil.fromarray(image).resize(size, pil.Resampling.BICUBIC))
