"""Coarse groups: fine clusters merged by Ward's criterion, weighted by their numbers of images.

Ward's method joins the two clusters whose union adds least to the sum of squares within clusters.
For clusters of sizes a and b with centroids c and c', the union adds ab / (a + b) ||c - c'||^2. A
linkage holds the square root of twice this value, which is the distance if both are single points;
the values of unions follow from the recurrence of Lance and Williams. SciPy and scikit-learn start
from points of weight 1. Here the leaves are clusters, and start with their sizes.

The clusters are merged in the feature space of the backbone. Projections were trained to keep K
clusters apart, and say less about which clusters belong together.

Axes: ``K`` fine clusters, the leaves; ``D`` dimensions; ``d`` features of the backbone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sklearn_excb.method.ward import Doubles, Ints, Linkage, Merging

_NEIGHBORS = 16  # neighbours of each cluster in the graph
_EXACT = 65_536  # largest number of clusters that are merged without a graph
_MOST_DIMENSIONS = 256  # largest number of dimensions in which clusters are merged
_ROWS = 4096  # rows per block in double precision


def group_centroids(
    sums: npt.NDArray[np.float32],
    labels: Ints,
    centroids: npt.NDArray[np.float32],
    *,
    directions: bool = True,
) -> npt.NDArray[np.float32]:
    """Return the positions of clusters for merging: the directions of their mean features.

    The directions start at the mean of all features.

    Parameters
    ----------
    sums : ndarray of shape (K, d)
        Sums of the backbone's features over the images of each cluster; overwritten.
    labels : ndarray of shape (n_samples,)
        Clusters of these images.
    centroids : ndarray of shape (K, D)
        Unit centroids. An empty cluster has no features. It gets the position of the cluster with
        images whose centroid is nearest.
    directions : bool, default=True
        Whether positions are normalised to length 1. Rows without a backbone keep the lengths.

    Returns
    -------
    ndarray of shape (K, at most 256), float32
        Positions; unit rows if ``directions``, and 0 if one cluster has all images. If there are
        more than 256 features, the result has the 256 directions in which the means differ most.

    Notes
    -----
    Digits, two seeds, groups at k = 10: accuracy .945 and NMI .917. Means that keep their lengths
    give .928 and .900, centroids .920 and .891. K-means on projections gives .928 and .888, on
    features .923 and .881, and on features of length 1 .945 and .902. On the pixels of digits as
    rows, two seeds, accuracy is .817 and NMI .829 with the lengths, and .776 and .796 without. With
    the lengths, four points on a line are told apart, and without them accuracy is .63 and NMI .66.
    """
    counts = np.bincount(labels, minlength=len(sums))
    means = sums
    means /= np.maximum(counts, 1)[:, None]
    means -= (counts / counts.sum()) @ means
    if means.shape[1] > _MOST_DIMENSIONS:
        means = _main_directions(means, counts)
    if directions:
        means /= np.float32(_unit(means))  # keeps squares in range
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        means /= np.where(norms > 0, norms, 1)
    used, empty = np.flatnonzero(counts), np.flatnonzero(counts == 0)
    if len(empty):
        means[empty] = means[used[_nearest(centroids[empty], centroids[used], 1)[:, 0]]]
    return means


def _main_directions(means: npt.NDArray[np.float32], counts: Ints) -> npt.NDArray[np.float32]:
    """Return the principal components of the means, weighted by the numbers of images."""
    K, d = means.shape
    if d > K:  # coordinates in the space that the means span
        means = torch.linalg.qr(torch.from_numpy(means.T), mode="r")[1].numpy().T
        d = K
    if d <= _MOST_DIMENSIONS:
        return means
    scatter = np.zeros((d, d))
    for start in range(0, len(means), _ROWS):
        rows = means[start : start + _ROWS].astype(np.float64)
        scatter += (rows * counts[start : start + _ROWS, None]).T @ rows
    directions = np.linalg.eigh(scatter)[1][:, -_MOST_DIMENSIONS:]
    return means @ directions.astype(np.float32)


def merge_tree(
    centroids: npt.ArrayLike, sizes: npt.ArrayLike, *, exact_up_to: int = _EXACT
) -> Linkage:
    """Build the tree of the clusters by Ward's method, from their centroids and sizes.

    Parameters
    ----------
    centroids : array-like of shape (K, D)
        Finite rows; the centroids of a fit are unit vectors.
    sizes : array-like of shape (K,)
        Number of images of each cluster, or any multiple of it; at least one is above 0. A cluster
        of size 0 tells nothing about where images are. It joins the nearest cluster that has
        images, at height 0, so that every group has images as long as there are enough clusters
        with images.
    exact_up_to : int, default=65536
        Largest number of clusters for the exact method. More clusters are first joined along a
        graph of the 16 nearest neighbours of each, until this many are left. FAISS makes the graph
        if it is installed.

    Returns
    -------
    ndarray of shape (K - 1, 4), float64
        Linkage as in SciPy: the two clusters that are joined (K + i is the union of row i), the
        height, which never falls, and the number of leaves, not of images. Heights are proportional
        to the square root of the unit of ``sizes``.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, or all sizes are 0.

    Notes
    -----
    From ``exact_up_to`` clusters on down, the tree is exactly that of always joining the closest
    pair (compared in single precision above 16,384 clusters). The time is that of about 2 to 3
    K^2 D products and divisions. The memory is a few times (K, D), and no (K, K) matrix ever
    exists. With one thread and D = 256, K = 8,000 takes .46 of the time of SciPy's ``linkage`` and
    83 MB instead of 479. K = 65,536 takes about four minutes and 308 MB, and a graph from the start
    takes .55 of this time (``python -m benchmarks.coarse_groups``).

    Examples
    --------
    >>> from sklearn_excb.training.coarse_groups import cut, merge_tree
    >>> tree = merge_tree([[0.0, 1.0], [0.1, 0.9], [1.0, 0.0]], sizes=[20, 30, 10])
    >>> cut(tree, 2)
    array([0, 0, 1])
    """
    points, weights = _check(centroids, sizes)
    K = len(points)
    empty = np.flatnonzero(weights == 0)
    unit = _unit(points)  # keeps squares of large and small values in range
    points /= unit
    if not len(empty):
        return _scaled(_tree(points, weights, exact_up_to), unit)
    used = np.flatnonzero(weights)
    tree = _tree(points[used], weights[used], exact_up_to)
    nearest = used[_nearest(points[empty], points[used], 1)[:, 0]]
    return _scaled(_with_empty(tree, used, empty, nearest, K), unit)


def cut(linkage: npt.ArrayLike, n_groups: int) -> Ints:
    """Cut a tree into ``n_groups`` groups, by undoing its last merges.

    Parameters
    ----------
    linkage : array-like of shape (K - 1, 4)
        Linkage from :func:`merge_tree` or SciPy.
    n_groups : int
        Number of groups, in [1, K].

    Returns
    -------
    ndarray of shape (K,), int64
        Group of each leaf. There are exactly ``n_groups`` groups (SciPy's ``fcluster`` gives fewer
        if heights are equal), numbered in the order of their lowest leaves, so with K groups leaf i
        is group i. Cuts are nested: the groups of a finer cut are parts of those of a coarser one.

    Raises
    ------
    ValueError
        If ``n_groups`` is not an integer in [1, K].
    """
    children = np.asarray(linkage, dtype=np.float64)[:, :2].astype(np.int64)
    K = len(children) + 1
    n_groups = check_n_groups(n_groups, K)
    above = np.arange(2 * K - 1)  # the root of each node's group
    for node in range(2 * K - 1 - n_groups, K - 1, -1):  # the top n_groups - 1 nodes are undone
        above[children[node - K]] = above[node]
    _, first, group = np.unique(above[:K], return_index=True, return_inverse=True)
    return first.argsort().argsort()[group].astype(np.int64)


def check_n_groups(value: Any, n_leaves: int) -> int:
    """Return the number of groups as an int in [1, K].

    Raises
    ------
    ValueError
        If the value is not an integer in this range.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not (whole and 1 <= value <= n_leaves):
        raise ValueError(
            f"n_groups={value!r} must be an integer from 1 to K={n_leaves}, the number of fine "
            "clusters. Clusters can be merged but not divided. For more groups, fit with a larger "
            "K."
        )
    return int(value)


def _check(centroids: npt.ArrayLike, sizes: npt.ArrayLike) -> tuple[Doubles, Doubles]:
    """Return validated copies of both in double precision."""
    points, weights = np.array(centroids, np.float64), np.array(sizes, np.float64)
    if points.ndim != 2 or weights.shape != points.shape[:1] or not len(points):
        raise ValueError(
            f"centroids have shape {points.shape} and sizes have shape {weights.shape}. They must "
            "have shapes (K, D) and (K,) with K >= 1, one row and one size per cluster."
        )
    if not (np.isfinite(points).all() and np.isfinite(weights).all()):
        raise ValueError("centroids or sizes hold NaN or infinity. All values must be finite.")
    if weights.min() < 0 or not weights.any():
        raise ValueError(
            f"sizes lie in [{weights.min():g}, {weights.max():g}]. They must not be negative, and "
            "at least one must be above 0, as in np.bincount(labels, minlength=K)."
        )
    return points, weights


def _tree(points: Doubles, weights: Doubles, exact_up_to: int) -> Linkage:
    """Build the linkage of clusters that all have images."""
    if len(points) == 1:
        return np.empty((0, 4))
    unit = np.abs(points).max() or 1.0
    merging = Merging(points / unit, weights)
    if len(points) > exact_up_to:
        merging.merge_along(_graph(points / unit), exact_up_to)
    return _scaled(merging.tree(), unit)


def _scaled(tree: Linkage, unit: float) -> Linkage:
    """Return a tree with the heights of another unit."""
    tree[:, 2] *= unit
    return tree


def _unit(points: npt.NDArray[Any]) -> float:
    """Return the largest power of two that a value reaches: division by it is exact."""
    return math.ldexp(1.0, math.frexp(float(np.abs(points).max(initial=0.0)) or 1.0)[1] - 1)


def _graph(points: Doubles) -> Ints:
    """Return the pairs (E, 2) of clusters of which one is a nearest neighbour of the other."""
    k = min(_NEIGHBORS, len(points) - 1)
    near = _nearest(points, points, k, exclude_self=True)
    pairs = np.stack([np.repeat(np.arange(len(points)), k), near.ravel()], axis=1)
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _nearest(
    queries: npt.NDArray[Any], database: npt.NDArray[Any], k: int, *, exclude_self: bool = False
) -> Ints:
    """Return the indices (n, k) of the rows of the database nearest to each query."""
    from sklearn_excb.evaluation import nearest_neighbors

    # <q, c> - |c|^2 / 2 is largest where |q - c| is smallest
    halves = np.einsum("kd,kd->k", database, database)[:, None] / -2
    return nearest_neighbors(
        np.hstack([queries, np.ones((len(queries), 1))]),
        np.hstack([database, halves]),
        k,
        metric="dot",
        exclude_self=exclude_self,
    )[1]


def _with_empty(tree: Linkage, used: Ints, empty: Ints, nearest: Ints, K: int) -> Linkage:
    """Extend a linkage of the used leaves to all K; empty leaves join first, at height 0."""
    nodes, leaves = np.arange(K), np.ones(K)
    first = np.empty((len(empty), 4))
    for i, (leaf, to) in enumerate(zip(empty.tolist(), nearest.tolist(), strict=True)):
        leaves[to] += 1
        first[i] = (*sorted((leaf, nodes[to])), 0, leaves[to])
        nodes[to] = K + i
    number = np.concatenate([nodes[used], np.arange(len(tree)) + K + len(empty)])
    pairs = np.sort(number[tree[:, :2].astype(np.int64)], axis=1)
    count = np.concatenate([leaves[used], np.zeros(len(tree))])
    for i, (a, b) in enumerate(tree[:, :2].astype(np.int64)):
        count[len(used) + i] = count[a] + count[b]
    rest = np.column_stack([pairs, tree[:, 2], count[len(used) :]])
    return np.concatenate([first, rest]).astype(np.float64)
