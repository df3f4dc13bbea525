"""Search for near-duplicates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from .._checks import (
    check_count,
    check_images,
    check_positive,
    check_rows,
    missing_rows,
)
from .._optional import require
from ..maps.pictures import as_rgb
from ..neighbors.search import nearest_neighbors

_SIDE = 16  # side in pixels of the small pictures that are compared
_LEAST_WITH_PIXELS, _LEAST_ALONE = 0.8, 0.995


def near_duplicates(
    embeddings: ArrayLike,
    images: Sequence[Any] | NDArray | None = None,
    *,
    threshold: float | None = None,
    tolerance: float = 0.04,
    n_neighbors: int = 10,
) -> list[NDArray[np.int64]]:
    """Find groups of images that are nearly the same picture.

    Candidates are nearest neighbours with a high cosine similarity. With ``images``, a pair counts
    only if its pixels agree, too: embeddings that ignore crops and colours cannot distinguish two
    photos of one object from one photo saved twice.

    Parameters
    ----------
    embeddings : array-like of shape (n, d)
        Embeddings, real numbers. A row of NaN marks a skipped image.
    images : ndarray or sequence of n images, optional
        Images in one of the forms that `ContactSheetDisplay` takes. Only candidates are read.
    threshold : float, optional
        Minimum cosine similarity of a pair, in (0, 1]; by default 0.8 with ``images`` and 0.995
        without.
    tolerance : float, default=0.04
        Maximum root mean square difference, in (0, 1], of two images scaled to 16 x 16 pixels with
        values in [0, 1].
    n_neighbors : int, default=10
        Number of neighbours of each image that are candidates.

    Returns
    -------
    list of ndarray of int64
        Positions of the images of each group, ascending; the largest group first. Groups are
        transitive: A and C are in one group if both are near B.

    Raises
    ------
    ValueError
        If lengths differ, a value is out of range, or a row is partly NaN.

    Examples
    --------
    >>> from evaluation import near_duplicates
    >>> near_duplicates([[1, 0], [0, 1], [1, 0.001]])
    [array([0, 2])]
    """
    x = check_rows(embeddings, "embeddings")
    tolerance = check_positive(tolerance, "tolerance")
    n_neighbors = check_count(n_neighbors, "n_neighbors")
    if threshold is not None:
        threshold = check_positive(threshold, "threshold")
    if images is not None:
        check_images(images, x, "embeddings")
    kept = np.flatnonzero(~missing_rows(x))
    k = min(n_neighbors, len(kept) - 1)
    if k < 1:
        return []
    similarities, neighbors = nearest_neighbors(x[kept], x[kept], k, exclude_self=True)
    return group_pairs(
        kept,
        kept[neighbors],
        similarities,
        len(x),
        images,
        threshold=threshold,
        tolerance=tolerance,
    )


def group_pairs(
    searched: NDArray[np.int64],
    neighbors: NDArray[np.int64],
    similarities: NDArray[np.float32],
    n_images: int,
    images: Sequence[Any] | NDArray | None,
    *,
    threshold: float | None = None,
    tolerance: float = 0.04,
) -> list[NDArray[np.int64]]:
    """Find near-duplicates among neighbours that are known, such as those of `review_clusters`."""
    if threshold is None:
        threshold = _LEAST_ALONE if images is None else _LEAST_WITH_PIXELS
    rows, columns = np.nonzero(similarities >= threshold)
    pairs = np.stack([searched[rows], neighbors[rows, columns]], axis=1)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    if images is not None and len(pairs):
        pairs = pairs[_same_pixels(pairs, images, tolerance)]
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (n_images, n_images))
    of = connected_components(graph, directed=False)[1]
    members = np.unique(pairs)
    order = members[np.argsort(of[members], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(of[order])) + 1) if len(order) else []
    return sorted(groups, key=lambda group: (-len(group), group[0]))


def _same_pixels(
    pairs: NDArray[np.int64], images: Sequence[Any] | NDArray, tolerance: float
) -> NDArray[np.bool_]:
    """Return a mask of the pairs with similar 16 x 16 pixels and similar aspect ratios."""
    small, ratios = {}, {}
    for i in np.unique(pairs):
        small[i], ratios[i] = _small(images[int(i)], int(i))
    return np.array(
        [
            abs(np.log(ratios[a] / ratios[b])) < 0.2
            and np.sqrt(np.mean((small[a] - small[b]) ** 2)) <= tolerance
            for a, b in pairs
        ]
    )


def _small(image: Any, position: int) -> tuple[NDArray[np.float32], float]:
    """Return the image at 16 x 16 pixels, in [0, 1], and its aspect ratio (width / height)."""
    pil = require("PIL.Image", extra="eval", purpose="Comparing images")
    array = as_rgb(image, position)
    size = (_SIDE, _SIDE)
    small = pil.fromarray(array).resize(size, pil.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(small, np.float32) / np.float32(255), array.shape[1] / array.shape[0]
