"""Review of clusters and images: typical and doubtful ones, loose clusters, odd images.

Names: ``n`` images, ``K`` clusters, ``k`` neighbours, ``d`` features. All similarities are cosine
similarities.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from .._arrays import scaled
from .._checks import (
    SKIPPED,
    check_cluster_labels,
    check_count,
    check_finite,
    check_images,
    check_n_clusters,
    check_rows,
    check_same_length,
    missing_rows,
    random_generator,
)
from ..neighbors.search import nearest_neighbors
from .pixel_numbers import pixel_deviations

RandomState = int | np.random.RandomState | None

_BLOCK = 2**22  # elements of rows converted at once
_SUSPICIOUS = 4.0  # sum of the robust deviations of tightness and doubt
_FEWEST_CLUSTERS = 8  # with fewer clusters, the median and deviation mean little


@dataclass(frozen=True, eq=False)
class ClusterReview:
    """Review of clusters and images without class labels; see `review_clusters`.

    Attributes
    ----------
    n_clusters : int
        Number of clusters K.
    n_skipped : int
        Number of images left out because their label is -1 or their row is NaN.
    counts : ndarray of shape (K,), int64
        Number of images in each cluster.
    tightness : ndarray of shape (K,), float64
        Within-cluster similarity: the mean of ``typicality`` over the images of a cluster, in
        [-1, 1]. It is 1 for a cluster of one image and NaN for an empty cluster.
    cluster_doubt : ndarray of shape (K,), float64
        Neighbour mixing: the mean of ``doubt`` over the images of a cluster, in [0, 1]; NaN for an
        empty cluster.
    suspicion : ndarray of shape (K,), float64
        Sum of two deviations from the median cluster: how much smaller the tightness of a cluster
        is and how much larger its doubt, in robust standard deviations (from the median absolute
        deviation). NaN for an empty cluster.
    suspects : ndarray, int64
        Loose clusters: those with below-median tightness, above-median doubt and a
        suspicion above 4, the most suspicious first. Empty if fewer than 8 clusters have images.
    typicality : ndarray of shape (n,), float32
        Similarity of each image to the mean direction of its cluster; NaN for skipped images.
    doubt : ndarray of shape (n,), float32
        Share of an image's nearest neighbours that are in other clusters, in [0, 1]; NaN for images
        whose neighbours were not searched.
    outlyingness : ndarray of shape (n,), float32
        One minus the mean similarity to the nearest neighbours, in [0, 2]; NaN like ``doubt``.
    pixel_deviation : ndarray of shape (n,), float32
        How unusual the pixels of an image are: the largest deviation from the median image, in
        robust standard deviations, of brightness, contrast and roughness. NaN like ``doubt``, and
        without ``images``.
    neighbors : ndarray of shape (m, k), int64
        Nearest neighbours of each image in ``searched``, as positions in the input.
    similarities : ndarray of shape (m, k), float32
        Similarities to these neighbours, in descending order.
    searched : ndarray of shape (m,), int64
        Positions of the images whose neighbours were searched, ascending. Neighbours are searched
        among these images.
    """

    n_clusters: int
    n_skipped: int
    counts: NDArray[np.int64] = field(repr=False)
    tightness: NDArray[np.float64] = field(repr=False)
    cluster_doubt: NDArray[np.float64] = field(repr=False)
    suspicion: NDArray[np.float64] = field(repr=False)
    suspects: NDArray[np.int64]
    typicality: NDArray[np.float32] = field(repr=False)
    doubt: NDArray[np.float32] = field(repr=False)
    outlyingness: NDArray[np.float32] = field(repr=False)
    pixel_deviation: NDArray[np.float32] = field(repr=False)
    neighbors: NDArray[np.int64] = field(repr=False)
    similarities: NDArray[np.float32] = field(repr=False)
    searched: NDArray[np.int64] = field(repr=False)

    def outliers(self, n: int) -> NDArray[np.int64]:
        """Return the oddest images: by turns, those of highest pixel deviation and outlyingness.

        The two find different images. A black picture may have an embedding like that of a dark
        photo, and a photo of something rare has the pixels of any photo. Without ``images``, only
        the outlyingness counts.

        Parameters
        ----------
        n : int
            Maximum number of images.

        Returns
        -------
        ndarray of shape (n,), int64
            Positions of the images, the oddest first.
        """
        measures = [self.pixel_deviation[self.searched], self.outlyingness[self.searched]]
        orders = [np.argsort(-each, kind="stable") for each in measures if not np.isnan(each).all()]
        by_turns = np.stack(orders or [np.arange(len(self.searched))], axis=1).ravel()
        firsts = np.sort(np.unique(by_turns, return_index=True)[1])
        return self.searched[by_turns[firsts[:n]]]


def review_clusters(
    embeddings: ArrayLike,
    labels: ArrayLike,
    n_clusters: int | None = None,
    *,
    images: Sequence[Any] | NDArray | None = None,
    n_neighbors: int = 10,
    max_samples: int = 50_000,
    random_state: RandomState = 0,
) -> ClusterReview:
    """Find typical images, doubtful and loose clusters, and odd images, without class labels.

    Parameters
    ----------
    embeddings : array-like of shape (n, d)
        Embeddings, real numbers. A row of NaN marks a skipped image.
    labels : array-like of shape (n,)
        Cluster ids in [0, n_clusters); -1 marks a skipped image.
    n_clusters : int, optional
        Number of clusters K; one more than the largest label by default.
    images : ndarray or sequence of n images, optional
        Images in one of the forms that `ContactSheetDisplay` takes, to find those whose pixels are
        unusual. Only images whose neighbours are searched are read.
    n_neighbors : int, default=10
        Number of nearest neighbours of each image, at most the number of other images.
    max_samples : int, default=50_000
        Maximum number of images whose neighbours are searched. A larger collection is sampled.
    random_state : int, RandomState or None, default=0
        Seed of the sample.

    Returns
    -------
    ClusterReview

    Raises
    ------
    ValueError
        If lengths differ, a label is out of range, a row is partly NaN, or all images are skipped.

    Notes
    -----
    Outlyingness is the mean distance to the k nearest neighbours (Angiulli and Pizzuti, "Fast
    outlier detection in high dimensional spaces", PKDD 2002). Doubt is one minus the neighbourhood
    purity: it is high for a cluster that cuts through a dense region, even if the cluster is tight.

    Examples
    --------
    >>> from evaluation import review_clusters
    >>> review = review_clusters([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], [0, 0, 1, 1], n_neighbors=1)
    >>> review.cluster_doubt
    array([0., 0.])
    """
    x, labels = check_rows(embeddings, "embeddings"), check_cluster_labels(labels, "labels")
    check_same_length(x, labels, "embeddings", "labels")
    n_neighbors = check_count(n_neighbors, "n_neighbors")
    max_samples = check_count(max_samples, "max_samples", minimum=2)
    if images is not None:
        check_images(images, x, "embeddings")
    n_clusters = check_n_clusters(n_clusters, labels)
    kept = np.flatnonzero((labels != SKIPPED) & ~missing_rows(x))
    if len(kept) == 0:
        raise ValueError(f"All {len(x)} images were skipped, expected at least one with a cluster.")

    clusters = labels[kept]
    counts = np.bincount(clusters, minlength=n_clusters)
    typicality = np.full(len(x), np.nan, np.float32)
    typicality[kept] = _similarity_to_mean(x, kept, clusters, n_clusters)
    searched = kept
    if len(kept) > max_samples:
        draw = random_generator(random_state).choice(len(kept), max_samples, replace=False)
        searched = kept[np.sort(draw)]
    doubt, outlyingness, deviation = (np.full(len(x), np.nan, np.float32) for _ in range(3))
    if images is not None:
        deviation[searched] = pixel_deviations(images, searched)
    k = min(n_neighbors, len(searched) - 1)
    similarities = np.empty((len(searched), k), np.float32)
    neighbors = np.empty((len(searched), k), np.int64)
    if k:
        rows = x[searched]
        similarities, found = nearest_neighbors(rows, rows, k, exclude_self=True)
        neighbors = searched[found]
        doubt[searched] = (labels[neighbors] != labels[searched, None]).mean(axis=1)
        outlyingness[searched] = 1 - similarities.mean(axis=1)
    tightness = _mean_by_cluster(typicality[kept], clusters, n_clusters)
    cluster_doubt = _mean_by_cluster(doubt[searched], labels[searched], n_clusters)
    looser, doubtful = _deviations(-tightness), _deviations(cluster_doubt)
    suspicion = looser + doubtful
    suspects = np.flatnonzero((suspicion > _SUSPICIOUS) & (looser > 0) & (doubtful > 0))
    if (counts > 0).sum() < _FEWEST_CLUSTERS:
        suspects = suspects[:0]
    return ClusterReview(
        n_clusters=n_clusters,
        n_skipped=len(x) - len(kept),
        counts=counts,
        tightness=tightness,
        cluster_doubt=cluster_doubt,
        suspicion=suspicion,
        suspects=suspects[np.argsort(-suspicion[suspects], kind="stable")],
        typicality=typicality,
        doubt=doubt,
        outlyingness=outlyingness,
        pixel_deviation=deviation,
        neighbors=neighbors,
        similarities=similarities,
        searched=searched,
    )


def _similarity_to_mean(
    x: NDArray, kept: NDArray[np.intp], clusters: NDArray[np.int64], n_clusters: int
) -> NDArray[np.float32]:
    """Return the cosine of each kept row to the mean of its cluster's unit rows, (len(kept),)."""
    sums = np.zeros((n_clusters, x.shape[1]))
    step = max(1, _BLOCK // x.shape[1])
    parts = [slice(start, start + step) for start in range(0, len(kept), step)]
    for part in parts:
        sums += _members(clusters[part], n_clusters) @ _unit(x, kept[part])
    means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-300)
    found = np.empty(len(kept), np.float32)
    for part in parts:
        found[part] = np.einsum("nd,nd->n", _unit(x, kept[part]), means[clusters[part]])
    return found


def _members(clusters: NDArray[np.int64], n_clusters: int) -> csr_array:
    """Return the membership matrix: 1 where a row is in a cluster, (K, rows)."""
    rows = np.arange(len(clusters))
    return csr_array((np.ones(len(clusters)), (clusters, rows)), shape=(n_clusters, len(clusters)))


def _unit(x: NDArray, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    block = np.asarray(x[rows], np.float64)
    check_finite(block, "embeddings", rows=rows)
    block, norms = scaled(block)
    return block / norms


def _mean_by_cluster(
    values: NDArray[np.float32], clusters: NDArray[np.int64], n_clusters: int
) -> NDArray[np.float64]:
    """Return the mean value of each cluster, NaN for clusters without values, (K,)."""
    known = ~np.isnan(values)
    counts = np.bincount(clusters[known], minlength=n_clusters)
    sums = np.bincount(clusters[known], values[known], minlength=n_clusters)
    return np.divide(sums, counts, out=np.full(n_clusters, np.nan), where=counts > 0)


def _deviations(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return distances from the median in robust standard deviations; 0 if all are equal."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return values
    distance = values - np.median(known)
    apart = np.abs(distance[~np.isnan(values)])
    # The factors turn both into the standard deviation of a normal distribution. If more than half
    # of the values are equal, the median absolute deviation is 0 and the mean is used.
    spread = 1.4826 * np.median(apart) or 1.2533 * apart.mean()
    return distance / spread if spread > 0 else distance * 0
