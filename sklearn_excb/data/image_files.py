"""An encoded picture: its header first, its pixels at the size that is needed."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.pixels import is_gray
from sklearn_excb.exceptions import ImageError
from sklearn_excb.runtime.buffers import BufferPool

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_ORIENTATION = 0x0112  # the EXIF tag; from 5 on, width and height are exchanged
# what brings each orientation the right way up: members of PIL.Image.Transpose
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
_SIMPLE_MODES = {"RGB": "RGB", "L": "GRAY"}  # that Pillow gives and simplejpeg knows
_REDUCTIONS = (8, 4, 2)  # that a JPEG can be decoded at, for a fraction of the time


class EncodedPicture:
    """A picture whose header is read and whose pixels are not.

    Parameters
    ----------
    content : bytes
        A file of any format that Pillow reads; of several frames the first is taken.

    Raises
    ------
    ImageError
        If it is none.
    """

    def __init__(self, content: bytes) -> None:
        from PIL import Image, UnidentifiedImageError

        if not content:
            raise ImageError("the file is empty.")
        try:
            self._image: Any = Image.open(io.BytesIO(content))
            self._content = content
        except UnidentifiedImageError:
            raise ImageError(
                "not an image of a format that is known, or its beginning is broken."
            ) from None
        self._orientation = _orientation(self._image)

    @property
    def is_gray(self) -> bool:
        """Whether it has no colour."""
        return is_gray(self._image)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels, the right way up."""
        width, height = self._image.size
        turned = self._orientation >= 5 and not self._turns_itself
        return (width, height) if turned else (height, width)

    def decode(self, at_least: int, buffers: BufferPool | None = None) -> Any:
        """Decode the pixels: a PIL image, or an array (h, w) or (h, w, 3), the right way up.

        Parameters
        ----------
        at_least : int
            Pixels that the short side has to have. A JPEG of twice as many or more is decoded at
            a half, a quarter or an eighth of its size; 0 decodes at full size.
        buffers : BufferPool, optional
            Where to, if that is possible.
        """
        width, height = self._image.size
        fitting = (n for n in _REDUCTIONS if at_least and min(width, height) // n >= at_least)
        reduction = next(fitting, 1)
        array = self._decoded_fast(reduction, buffers)
        if array is not None:
            return array
        if reduction > 1:
            self._image.draft(None, (width // reduction, height // reduction))
        self._image.load()
        turn = None if self._turns_itself else _TURNS.get(self._orientation)
        return self._image if turn is None else self._image.transpose(turn)

    def _decoded_fast(
        self, reduction: int, buffers: BufferPool | None
    ) -> npt.NDArray[np.uint8] | None:
        """Pixels by simplejpeg; None where that is not there, or Pillow has to have the word.

        Both have libjpeg-turbo inside and give the same pixels; this one wastes less time around.
        """
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
        except ValueError:  # it refuses more than Pillow does
            return None
        array = array[..., 0] if mode == "GRAY" else array
        return _turned(array, self._orientation)

    @property
    def _turns_itself(self) -> bool:
        """Whether Pillow applies the orientation: in TIFF, where it belongs to the format."""
        return self._image.format == "TIFF"


def _turned(array: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Pixels (h, w, ...) the right way up."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return array[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def _orientation(image: Any) -> int:
    """Orientation by EXIF, 1 to 8; 1 where that says nothing, or cannot be read."""
    from PIL import Image

    try:
        # what the header says: the method of a PNG would decode the pixels to look behind them
        found = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # of a broken block: the pixels may be sound
        return 1
    return found if found in range(1, 9) else 1


def open_file(path: str | os.PathLike[str]) -> EncodedPicture:
    """Open a picture file; it is read whole, so that no file stays open."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ImageError("not a regular file.")  # a pipe would be waited for
    return EncodedPicture(Path(path).read_bytes())
