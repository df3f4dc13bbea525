"""Thumbnails of the report, many in one encoded picture: a page with few pictures opens fast."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._optional import require
from ..maps.pictures import Picture, as_rgb, fit_into

_LARGEST_TILE, _SMALLEST_TILE = 128, 32
_EXACT_TILE = 32
_SHEET_SIDE = 2048  # pixels; phones can decode this size
_BUDGET = 14 * 2**20  # bytes of all encoded pictures; base64 makes them a third larger
_PROBED = 256  # images from which the size of all thumbnails is estimated
_QUALITY = 75
_GRAY = 128


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Thumbnails, arranged on sheets row by row.

    Attributes
    ----------
    sheets : list of str
        WebP pictures in base64.
    exact : bool
        Whether every pixel is kept, which is so for images of at most 32 pixels. The page then
        draws pixels as sharp squares.
    tile : int
        Side of the square that holds a thumbnail, in pixels. The thumbnail is in its upper left.
    columns : int
        Squares in a row of a sheet.
    per_sheet : int
        Squares on each sheet except the last.
    widths, heights : ndarray of shape (m,), uint8
        Width and height of each thumbnail, in pixels.
    """

    sheets: list[str]
    exact: bool
    tile: int
    columns: int
    per_sheet: int
    widths: NDArray[np.uint8]
    heights: NDArray[np.uint8]


def make_thumbnails(images: Sequence[Any] | NDArray, positions: NDArray[np.int64]) -> Thumbnails:
    """Shrink the images at the given positions and put them on sheets.

    Parameters
    ----------
    images : ndarray or sequence of images
        Images in one of the forms that `ContactSheetDisplay` takes.
    positions : ndarray of shape (m,)
        Positions of the images to show, m at least 1.

    Returns
    -------
    Thumbnails
        The side of the thumbnails depends on m and on the content of the images, so that all
        sheets together stay near 14 MB. It is at least 32 pixels, unless the images are smaller.
    """
    largest = _side_for(images, positions)
    small = _shrunk(images, positions, largest)
    tile = max(max(each.shape[:2]) for each in small)
    exact = tile <= _EXACT_TILE and tile < largest  # no image was shrunk
    tile += 0 if exact else -tile % 16  # blocks of the codec end at the borders of the tiles
    columns = max(1, _SHEET_SIDE // tile)
    per_sheet = columns**2
    sheets = [
        _encode(_sheet(small[start : start + per_sheet], tile, columns), exact)
        for start in range(0, len(small), per_sheet)
    ]
    widths, heights = (np.array([each.shape[axis] for each in small], np.uint8) for axis in (1, 0))
    return Thumbnails(sheets, exact, tile, columns, per_sheet, widths, heights)


def _shrunk(
    images: Sequence[Any] | NDArray, positions: NDArray[np.int64], largest: int
) -> list[Picture]:
    """Return the images with a longest side of at most ``largest`` pixels."""
    small = []
    for position in positions:
        picture = as_rgb(images[int(position)], int(position))
        small.append(fit_into(picture, largest) if max(picture.shape[:2]) > largest else picture)
    return small


def _side_for(images: Sequence[Any] | NDArray, positions: NDArray[np.int64]) -> int:
    """Return the longest side of a thumbnail, a multiple of 16, so that all fit the budget."""
    if len(positions) <= _PROBED:
        return _LARGEST_TILE
    probed = positions[np.linspace(0, len(positions) - 1, _PROBED).astype(int)]
    side = _LARGEST_TILE // 2
    small = _shrunk(images, probed, side)
    tile = max(max(each.shape[:2]) for each in small)
    encoded = len(_encode(_sheet(small, tile, _SHEET_SIDE // tile), tile <= _EXACT_TILE)) * 0.75
    # photos took .8 times as many bytes a pixel at 128 pixels as at 64, and 1.3 times at 32
    largest = int(side * np.sqrt(_BUDGET / (encoded * len(positions) / _PROBED)))
    return min(_LARGEST_TILE, max(_SMALLEST_TILE, largest - largest % 16))


def _sheet(small: list[Picture], tile: int, columns: int) -> Picture:
    used = min(columns, len(small))
    sheet = np.full((-(-len(small) // columns) * tile, used * tile, 3), _GRAY, np.uint8)
    for place, each in enumerate(small):
        y, x = place // columns * tile, place % columns * tile
        sheet[y : y + each.shape[0], x : x + each.shape[1]] = each
    return sheet


def _encode(sheet: Picture, lossless: bool) -> str:
    pil = require("PIL.Image", extra="eval", purpose="A report with images")
    file = io.BytesIO()
    pil.fromarray(sheet).save(file, "WEBP", quality=_QUALITY, method=2, lossless=lossless)
    return base64.b64encode(file.getvalue()).decode("ascii")
