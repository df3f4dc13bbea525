"""Images on a map: one per cell of a grid, so that they do not overlap."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _style
from .pictures import Picture, fit_into

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHARE = 0.9  # side of an image as a share of the side of its cell; the rest is a gap
_LARGEST = 96  # longer side of an image in pixels


def choose(points: NDArray, n_thumbnails: int) -> tuple[NDArray[np.intp], NDArray, float]:
    """Choose the image nearest to the centre of each nonempty square cell.

    Grids are tried from coarse to fine. The last one with at most ``n_thumbnails`` nonempty cells
    is used.

    Parameters
    ----------
    points : ndarray of shape (m, 2)
        Coordinates of the images.
    n_thumbnails : int
        Maximum number of images, at least 1.

    Returns
    -------
    chosen : ndarray of shape (t,), int
        Positions in ``points`` of the chosen images, t <= n_thumbnails.
    centers : ndarray of shape (t, 2)
        Centres of their cells.
    side : float
        Side of a cell, in the units of the points.
    """
    low, extent = points.min(axis=0), float(np.ptp(points, axis=0).max()) or 1.0
    best = _of_grid(points, low, extent)
    # Points on a line need at most this many cells per side.
    for n_cells in range(2, n_thumbnails + 1):
        found = _of_grid(points, low, extent / n_cells)
        if len(found[0]) > n_thumbnails:
            break
        best = found
    return best


def _of_grid(points: NDArray, low: NDArray, side: float) -> tuple[NDArray[np.intp], NDArray, float]:
    """Choose images as `choose` does, for one grid with this side and corner ``low``."""
    n_cells = np.maximum(np.ceil(np.ptp(points, axis=0) / side - 1e-6), 1)
    cells = np.minimum((points - low) // side, n_cells - 1)  # points on the far border are inside
    centers = low + (cells + 0.5) * side
    distances = ((points - centers) ** 2).sum(axis=1)
    order = np.lexsort((distances, cells[:, 1], cells[:, 0]))
    first = np.append(True, np.any(np.diff(cells[order], axis=0) != 0, axis=1))
    chosen = order[first]
    return chosen, centers[chosen], side


def draw(
    ax: "Axes",
    pictures: Callable[[int], Picture],
    chosen: NDArray[np.intp],
    centers: NDArray,
    side: float,
    colors: NDArray,
) -> list[Any]:
    """Draw the pictures in their cells, each with a frame of its colour, (t, 4)."""
    patches = _style.require("matplotlib.patches", extra="eval", purpose="Plotting")
    drawn = []
    for i, (x, y), color in zip(chosen.tolist(), centers.tolist(), colors, strict=True):
        picture = pictures(i)
        height, width = picture.shape[:2]
        picture = fit_into(picture, min(_LARGEST, max(height, width)))
        half = _SHARE * side / 2
        half_width, half_height = (
            half * width / max(height, width),
            half * height / max(height, width),
        )
        extent = (x - half_width, x + half_width, y - half_height, y + half_height)
        drawn.append(
            ax.imshow(picture, extent=extent, interpolation="nearest", aspect="equal", zorder=3)
        )
        frame = patches.Rectangle(
            (extent[0], extent[2]),
            2 * half_width,
            2 * half_height,
            fill=False,
            edgecolor=color,
            linewidth=1.2,
            zorder=3.5,
        )
        ax.add_patch(frame)
    return drawn
