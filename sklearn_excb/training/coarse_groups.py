"""Coarse groups: fine clusters merged by Ward's criterion, each weighing as much as its images.

Ward's method joins the two clusters whose union adds least to the sum of squares within clusters.
For clusters of sizes a and b around centroids c and c' that is ab / (a + b) ||c - c'||^2, of which
a linkage holds the root of twice: the distance of two single points, and Lance and Williams'
recurrence from there on. SciPy's and scikit-learn's start from points of weight 1; here the leaves
are clusters and start with their sizes.

Clusters are merged where the backbone sees them. Projections were trained to keep K clusters apart,
and say less about which belong together.

Axes: ``K`` fine clusters, the leaves; ``D`` dimensions; ``d`` features of the backbone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sklearn_excb.method.ward import Doubles, Ints, Linkage, Merging

_NEIGHBORS = 16  # of each cluster in the graph
_EXACT = 65_536  # clusters that are merged without a graph
_MOST_DIMENSIONS = 256  # of the places of clusters
_ROWS = 4096  # that are in double precision at once


def group_centroids(
    sums: npt.NDArray[np.float32],
    labels: Ints,
    centroids: npt.NDArray[np.float32],
    *,
    directions: bool = True,
) -> npt.NDArray[np.float32]:
    """Where clusters lie for merging: directions of their mean features from the mean of all.

    Digits, two seeds, groups at k = 10: accuracy .945 and NMI .917; means without their lengths
    taken away .928 and .900, centroids .920 and .891; k-means on projections .928 and .888, on
    features .923 and .881, on features of length 1 .945 and .902. Rows without a backbone keep the
    lengths of their means: digits' pixels, two seeds, accuracy .817 and NMI .829, else .776 and
    .796; four points on a line are told apart, else .63 and .66.

    Parameters
    ----------
    sums : ndarray of shape (K, d)
        The backbone's features of the images of each cluster, added up. Overwritten.
    labels : ndarray of shape (n_samples,)
        Those images' clusters.
    centroids : ndarray of shape (K, D)
        Unit centroids. An empty cluster has no features, and gets the place of the one with images
        whose centroid is nearest.
    directions : bool, default=True
        Whether the lengths of the means are taken away; not for rows.

    Returns
    -------
    ndarray of shape (K, at most 256), float32
        Unit rows, if ``directions``; 0 where one cluster has all images. More features than 256 are
        seen along the directions in which means differ most.
    """
    counts = np.bincount(labels, minlength=len(sums))
    means = sums
    means /= np.maximum(counts, 1)[:, None]
    means -= (counts / counts.sum()) @ means
    if means.shape[1] > _MOST_DIMENSIONS:
        means = _main_directions(means, counts)
    if directions:
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    used, empty = np.flatnonzero(counts), np.flatnonzero(counts == 0)
    if len(empty):
        means[empty] = means[used[_nearest(centroids[empty], centroids[used], 1)[:, 0]]]
    return means


def _main_directions(means: npt.NDArray[np.float32], counts: Ints) -> npt.NDArray[np.float32]:
    """Principal components of the means, each weighing as much as its images."""
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
    """Tree of the clusters by Ward's method, from their centroids and sizes.

    Parameters
    ----------
    centroids : array-like of shape (K, D)
        Finite rows; those of a fit are unit vectors.
    sizes : array-like of shape (K,)
        Images of each cluster, or any multiple of it; at least one is above 0. A cluster of
        size 0 says nothing about where images are: it joins the nearest one that has some, at
        height 0, so that no group is made of empty clusters while there are others.
    exact_up_to : int, default=65536
        More clusters than this are first joined along a graph of the 16 nearest of each, by FAISS
        where it is installed, until so many are left.

    Returns
    -------
    ndarray of shape (K - 1, 4), float64
        A linkage of SciPy: the two that are joined (K + i is what row i made), the height, which
        never falls, and the number of leaves, not of images. Heights grow with the root of the
        unit of ``sizes``.

    Raises
    ------
    ValueError
        If shapes do not fit, or values are not finite, or all sizes are 0.

    Notes
    -----
    Up to ``exact_up_to``, and from there up the tree, this is the method itself: the tree of
    always joining the closest pair (compared in single precision above 16,384 clusters). Time is
    that of some 2 to 3 K^2 D products and divisions, memory a few times (K, D): no (K, K) ever
    exists. One thread, D = 256: K = 8,000 takes .46 of SciPy's ``linkage`` and 83 MB, not 479;
    K = 65,536 some four minutes and 308 MB, a graph from the start .55 of that
    (``python -m benchmarks.coarse_groups``).

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
    if not len(empty):
        return _tree(points, weights, exact_up_to)
    used = np.flatnonzero(weights)
    tree = _tree(points[used], weights[used], exact_up_to)
    return _with_empty(tree, used, empty, used[_nearest(points[empty], points[used], 1)[:, 0]], K)


def cut(linkage: npt.ArrayLike, n_groups: int) -> Ints:
    """Group of each leaf when the last merges of a tree are undone until there are ``n_groups``.

    Parameters
    ----------
    linkage : array-like of shape (K - 1, 4)
        As of :func:`merge_tree` or SciPy.
    n_groups : int
        In [1, K].

    Returns
    -------
    ndarray of shape (K,), int64
        Exactly ``n_groups`` groups (SciPy's ``fcluster`` gives fewer where heights are equal),
        numbered in the order of their lowest leaf: of K groups, leaf i is group i. The groups of
        more are parts of the groups of fewer.

    Raises
    ------
    ValueError
        If ``n_groups`` is no such integer.
    """
    children = np.asarray(linkage, dtype=np.float64)[:, :2].astype(np.int64)
    K = len(children) + 1
    n_groups = check_n_groups(n_groups, K, "n_groups")
    above = np.arange(2 * K - 1)  # the root of each node's group
    for node in range(2 * K - 1 - n_groups, K - 1, -1):  # the top n_groups - 1 nodes are undone
        above[children[node - K]] = above[node]
    _, first, group = np.unique(above[:K], return_index=True, return_inverse=True)
    return first.argsort().argsort()[group].astype(np.int64)


def check_n_groups(value: Any, n_leaves: int, name: str) -> int:
    """Return the number of groups as an int in [1, K].

    Raises
    ------
    ValueError
        If it is none.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not (whole and 1 <= value <= n_leaves):
        raise ValueError(
            f"{name}={value!r} needs to be an integer from 1 to K={n_leaves}, the number of fine "
            "clusters, which can be merged and not divided. For more groups, fit with a larger K."
        )
    return int(value)


def _check(centroids: npt.ArrayLike, sizes: npt.ArrayLike) -> tuple[Doubles, Doubles]:
    """Return both as doubles, copies."""
    points, weights = np.array(centroids, np.float64), np.array(sizes, np.float64)
    if points.ndim != 2 or weights.shape != points.shape[:1] or not len(points):
        raise ValueError(
            f"centroids have shape {points.shape} and sizes {weights.shape}, needed (K, D) and "
            "(K,) with K of at least 1: a row and a size for each cluster."
        )
    if not (np.isfinite(points).all() and np.isfinite(weights).all()):
        raise ValueError("centroids and sizes hold NaN or infinity, needed finite numbers.")
    if weights.min() < 0 or not weights.any():
        raise ValueError(
            f"sizes lie in [{weights.min():g}, {weights.max():g}], needed numbers of at least 0, "
            "and one above: np.bincount(labels, minlength=K)."
        )
    return points, weights


def _tree(points: Doubles, weights: Doubles, exact_up_to: int) -> Linkage:
    """Linkage of clusters that all have images."""
    if len(points) == 1:
        return np.empty((0, 4))
    unit = np.abs(points).max() or 1.0  # squares of any values are then in range
    merging = Merging(points / unit, weights)
    if len(points) > exact_up_to:
        merging.merge_along(_graph(points / unit), exact_up_to)
    tree = merging.tree()
    tree[:, 2] *= unit
    return tree


def _graph(points: Doubles) -> Ints:
    """Pairs (E, 2) of clusters one of which is among the nearest of the other."""
    k = min(_NEIGHBORS, len(points) - 1)
    near = _nearest(points, points, k, exclude_self=True)
    pairs = np.stack([np.repeat(np.arange(len(points)), k), near.ravel()], axis=1)
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _nearest(
    queries: npt.NDArray[Any], database: npt.NDArray[Any], k: int, *, exclude_self: bool = False
) -> Ints:
    """Rows of the database, (n, k), that are nearest to each query."""
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
    """Linkage of all K leaves from that of the used: the empty join theirs first, at height 0."""
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
