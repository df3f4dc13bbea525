"""Pixels of user images: upright and opaque, for display and for the estimator alike."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import as_array
from .._optional import require
from .decoding import load_whole

Picture = NDArray[np.uint8]
"""Pixels of shape (h, w, 3)."""

_ORIENTATION = 0x0112  # the EXIF tag; values from 5 on exchange width and height
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")  # modes with a channel of opacity
# factor from the transparent value of a PNG to pixels as Pillow decodes them, by its raw mode
_SCALES = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}


def picture_pixels(picture: Any) -> NDArray[Any]:
    """Return the pixels of a PIL image: turned upright, with transparent parts on white.

    Parameters
    ----------
    picture : PIL image
        Image of any mode. Its pixels are decoded if they are not yet.

    Returns
    -------
    ndarray of shape (h, w) or (h, w, 3)
        uint8 for modes of 8 bits and less; uint16 for integers from 0 to 65,535, other integers
        and floats as they are.

    Raises
    ------
    ValueError
        If Pillow would start a program to decode the image.
    OSError
        If the file is broken or cut short.
    """
    if getattr(picture, "format", None) == "EPS" and picture.tile:  # not decoded yet
        raise ValueError(
            "PostScript is refused, because Pillow would start Ghostscript. Convert it to PNG."
        )
    mode, orientation = picture.mode, picture_orientation(picture)
    transparent = _transparent_value(picture)
    load_whole(picture)
    if mode in _ALPHA or (mode == "P" and getattr(picture, "has_transparency_data", False)):
        pixels = _on_white(picture)
    elif mode.startswith("I"):  # 16 bits, or 16 bits stored in 32
        pixels = np.asarray(picture)
        fits = pixels.min() >= 0 and pixels.max() <= 65_535
        pixels = pixels.astype(np.uint16) if fits else pixels
    elif mode == "F":
        pixels = np.asarray(picture)
    else:
        shown = "L" if mode in ("1", "L") else "RGB"
        pixels = np.asarray(picture if mode == shown else picture.convert(shown))
    if transparent is not None:
        white = np.iinfo(pixels.dtype).max
        clear = pixels == transparent
        clear = clear.all(axis=2, keepdims=True) if pixels.ndim == 3 else clear
        pixels = np.where(clear, white, pixels)
    return turn_upright(pixels, orientation)


def _on_white(picture: Any) -> NDArray[np.uint8]:
    from PIL import Image

    gray = picture.mode in ("LA", "La")
    # Pillow converts premultiplied gray to nothing else
    opaque = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
    white = Image.new("RGBA", opaque.size, "white")
    return np.array(Image.alpha_composite(white, opaque).convert("L" if gray else "RGB"))


def _transparent_value(picture: Any) -> Any:
    """Return the pixel that is transparent in an image without opacity; None if there is none.

    To be asked before the pixels are decoded: later Pillow does not tell how they were stored.
    """
    value = picture.info.get("transparency")
    gray = picture.mode in ("1", "L") or picture.mode.startswith("I")
    if not (isinstance(value, int) if gray else picture.mode == "RGB" and isinstance(value, tuple)):
        return None
    tile = getattr(picture, "tile", None)
    scale = _SCALES.get(tile[0][3], 1) if tile and isinstance(tile[0][3], str) else 1
    return np.floor(np.multiply(value, scale)).astype(np.int64)


def picture_orientation(picture: Any) -> int:
    """Return the EXIF orientation by which a PIL image is yet to be turned, 1 to 8.

    1 is upright, or not known. Pillow turns TIFF files itself.
    """
    from PIL import Image

    if getattr(picture, "format", None) == "TIFF":
        return 1
    try:
        # read the header only: the method of PNG images would decode the pixels as well
        found = Image.Image.getexif(picture).get(_ORIENTATION, 1)
    except Exception:  # the EXIF block is broken, but the pixels may be intact
        return 1
    return found if found in range(1, 9) else 1


def turn_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn pixels (h, w, ...) of an EXIF orientation upright."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def as_rgb(image: Any, position: int) -> Picture:
    """Return an image as uint8 of shape (h, w, 3), upright, with transparent parts on white."""
    if image is None:
        raise ValueError(
            f"Image {position} is None. Mark missing images as skipped, with label -1 and "
            "embedding NaN: such images are not read."
        )
    if isinstance(image, str | bytes | os.PathLike):
        raise ValueError(
            f"Image {position} is a {type(image).__name__}, expected an array or an opened "
            "picture. "
            "Open the files first, for example with PIL.Image.open(path)."
        )
    array = picture_pixels(image) if hasattr(image, "convert") else as_array(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ValueError(
            f"Image {position} has shape {array.shape}, expected (h, w) or (h, w, c) "
            "with 1, 3 or 4 channels last. If channels come first, use image.transpose(1, 2, 0)."
        )
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:  # also false for NaN
            raise ValueError(
                f"Image {position} has values in [{low:g}, {high:g}], expected floats in [0, 1]. "
                "Use images / images.max(), or convert to uint8."
            )
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype == np.uint16:
        array = np.round(array / 257).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ValueError(
            f"Image {position} has dtype {array.dtype}, expected uint8, uint16, or float in [0, "
            "1]. "
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
