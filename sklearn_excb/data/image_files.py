"""Encoded images: the header is read first, the pixels later and only at the needed size."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.limits import check_bytes, check_n_pixels
from sklearn_excb.data.pixels import is_deep, is_gray
from sklearn_excb.exceptions import ImageError
from sklearn_excb.runtime.buffers import BufferPool
from sklearn_excb.storage.regular_files import NotRegularError, open_regular

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# Pillow's names of the formats that are read. Others are never tried: some start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM", "TGA")
_SIMPLE_MODES = {"RGB": "RGB", "L": "GRAY"}  # from modes of Pillow to names of simplejpeg
_REDUCTIONS = (8, 4, 2)  # factors by which decoding can shrink a JPEG, in a fraction of the time


class EncodedPicture:
    """Encoded image whose header is read and whose pixels are not decoded yet.

    Parameters
    ----------
    content : bytes
        Content of a file in one of ``FORMATS``. The first of several frames counts.

    Raises
    ------
    ImageError
        If the content is not an image.
    """

    def __init__(self, content: bytes) -> None:
        from PIL import Image, UnidentifiedImageError

        from sklearn_excb.evaluation import maps

        if not content:
            raise ImageError("the file is empty.")
        try:
            self._image: Any = Image.open(io.BytesIO(content), formats=FORMATS)
            self._content = content
        except UnidentifiedImageError:
            raise ImageError(
                "not an image in a known format, or the header of the file is broken."
            ) from None
        self._orientation = maps.pictures.picture_orientation(self._image)

    @property
    def is_gray(self) -> bool:
        """Whether the image has no colour."""
        return is_gray(self._image)

    @property
    def is_deep(self) -> bool:
        """Whether the pixels are integers of more than 8 bits."""
        return is_deep(self._image)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the upright image, in pixels."""
        width, height = self._image.size
        return (width, height) if self._orientation >= 5 else (height, width)

    def decode(self, at_least: int, buffers: BufferPool | None = None) -> npt.NDArray[Any]:
        """Decode the upright image as an array (h, w) or (h, w, 3).

        Parameters
        ----------
        at_least : int
            Least number of pixels on the short side. A JPEG with twice as many or more is decoded
            at a half, a quarter or an eighth of its size; 0 decodes at full size.
        buffers : BufferPool, optional
            Memory for the pixels, used if the decoder can write to it.
        """
        from sklearn_excb.evaluation import maps

        width, height = self._image.size
        fitting = (n for n in _REDUCTIONS if at_least and min(width, height) // n >= at_least)
        reduction = next(fitting, 1)
        shrinks = reduction if self._image.format in ("JPEG", "MPO") else 1
        check_n_pixels(height // shrinks, width // shrinks)
        array = self._decoded_fast(reduction, buffers)
        if array is not None:
            return array
        if reduction > 1:
            self._image.draft(None, (width // reduction, height // reduction))
        return maps.pictures.picture_pixels(self._image)

    def _decoded_fast(
        self, reduction: int, buffers: BufferPool | None
    ) -> npt.NDArray[np.uint8] | None:
        """Decode with simplejpeg; return None if it is not installed or Pillow has to decode.

        Both use libjpeg-turbo and give the same pixels, but simplejpeg has less overhead.
        """
        from sklearn_excb.evaluation import maps

        mode = _SIMPLE_MODES.get(self._image.mode)
        if simplejpeg is None or self._image.format != "JPEG" or mode is None:
            return None
        width, height = (-(-side // reduction) for side in self._image.size)
        n_channels = 3 if mode == "RGB" else 1
        taken = buffers and buffers.take(height, width, n_channels).numpy()
        try:
            array = simplejpeg.decode_jpeg(
                self._content, mode, min_height=height, min_width=width, buffer=taken
            )
        except ValueError:  # simplejpeg refuses more files than Pillow
            return None
        array = array[..., 0] if mode == "GRAY" else array
        return maps.pictures.turn_upright(array, self._orientation)


def open_file(path: str | os.PathLike[str]) -> EncodedPicture:
    """Open an image file and read it whole, so that no file stays open."""
    try:
        with open_regular(path) as file:
            check_bytes(os.fstat(file.fileno()).st_size)
            return EncodedPicture(file.read())
    except NotRegularError:
        raise ImageError("not a regular file.") from None
