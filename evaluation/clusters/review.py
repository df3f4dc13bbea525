"""Which clusters and which images deserve a look: typical ones, doubtful ones, outliers.

Names: ``n`` images, ``K`` clusters, ``k`` neighbours, ``d`` features. All similarities are cosines.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from sklearn.utils import check_random_state

from .._checks import (
    SKIPPED,
    check_cluster_labels,
    check_count,
    check_finite,
    check_ids_below,
    check_rows,
    check_same_length,
    missing_rows,
)
from ..neighbors.search import nearest_neighbors

RandomState = int | np.random.RandomState | None

_BLOCK = 2**22  # elements of rows converted at once
_SUSPICIOUS = 4.0  # deviations, of tightness and doubt together
_FEWEST_CLUSTERS = 8  # fewer have no typical tightness to fall short of


@dataclass(frozen=True, eq=False)
class ClusterReview:
    """What there is to say of each cluster and each image without classes; see `review_clusters`.

    Attributes
    ----------
    n_clusters : int
        K.
    n_skipped : int
        Images left out: their label is -1, or their row is NaN throughout.
    counts : ndarray of shape (K,), int64
        Images in each cluster.
    tightness : ndarray of shape (K,), float64
        Mean similarity of a cluster's images to their mean direction, in [-1, 1]; NaN for an empty
        cluster. A cluster of one image has 1.
    cluster_doubt : ndarray of shape (K,), float64
        Mean doubt of a cluster's images, in [0, 1]; NaN for an empty cluster.
    suspicion : ndarray of shape (K,), float64
        How far a cluster is looser and more doubtful than the usual one, in robust standard
        deviations (of the median absolute deviation), added up; NaN for an empty cluster.
    suspects : ndarray, int64
        Clusters that are both looser and more doubtful than usual, with a suspicion above 4, the
        most suspicious first: junk, perhaps. None below 8 clusters.
    typicality : ndarray of shape (n,), float32
        Similarity of each image to the mean direction of its cluster; NaN for ignored images.
    doubt : ndarray of shape (n,), float32
        Share of an image's nearest neighbours that are in other clusters, in [0, 1]; NaN where no
        neighbours were searched.
    outlyingness : ndarray of shape (n,), float32
        One minus the mean similarity to the nearest neighbours, in [0, 2]; NaN like ``doubt``.
    neighbors : ndarray of shape (m, k), int64
        Nearest other images, as positions in the input, of each image in ``searched``.
    similarities : ndarray of shape (m, k), float32
        Theirs, in descending order.
    searched : ndarray of shape (m,), int64
        Images whose neighbours were searched, among themselves; ascending.
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
    neighbors: NDArray[np.int64] = field(repr=False)
    similarities: NDArray[np.float32] = field(repr=False)
    searched: NDArray[np.int64] = field(repr=False)

    def outliers(self, n: int) -> NDArray[np.int64]:
        """Images farthest from their neighbours.

        Parameters
        ----------
        n : int
            How many, at most.

        Returns
        -------
        ndarray of shape (n,), int64
            Their positions, the farthest first.
        """
        order = np.argsort(-self.outlyingness[self.searched], kind="stable")
        return self.searched[order[:n]]


def review_clusters(
    embeddings: ArrayLike,
    labels: ArrayLike,
    n_clusters: int | None = None,
    *,
    n_neighbors: int = 10,
    max_samples: int = 50_000,
    random_state: RandomState = 0,
) -> ClusterReview:
    """Measure how tight and how doubtful clusters are, and how typical their images.

    Parameters
    ----------
    embeddings : array-like of shape (n, d)
        Real rows. One of NaN throughout is an image that was skipped.
    labels : array-like of shape (n,)
        Cluster ids in [0, n_clusters); -1 marks an image that was skipped.
    n_clusters : int, optional
        K; one more than the largest label by default.
    n_neighbors : int, default=10
        Nearest neighbours of an image that are looked at; fewer where there are not as many.
    max_samples : int, default=50_000
        Above as many images, neighbours are searched in a random draw of this size.
    random_state : int, RandomState or None, default=0
        Of the draw.

    Returns
    -------
    ClusterReview

    Raises
    ------
    ValueError
        If lengths differ, a label is out of range, a row is NaN in part, or nothing is left.

    Notes
    -----
    Outlyingness is the mean distance to the k nearest neighbours (Angiulli and Pizzuti, "Fast
    outlier detection in high dimensional spaces", PKDD 2002). Doubt is one minus the purity of the
    neighbourhood: a cluster that cuts through a dense region has much of it, however tight it is.

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
    n_clusters = check_count(
        int(labels.max()) + 1 if n_clusters is None else n_clusters, "n_clusters"
    )
    check_ids_below(labels, n_clusters)
    kept = np.flatnonzero((labels != SKIPPED) & ~missing_rows(x))
    if len(kept) == 0:
        raise ValueError(f"All {len(x)} images were skipped: there is nothing to review.")

    clusters = labels[kept]
    counts = np.bincount(clusters, minlength=n_clusters)
    typicality = np.full(len(x), np.nan, np.float32)
    typicality[kept] = _similarity_to_mean(x, kept, clusters, n_clusters)
    searched = kept
    if len(kept) > max_samples:
        draw = check_random_state(random_state).choice(len(kept), max_samples, replace=False)
        searched = kept[np.sort(draw)]
    doubt, outlyingness = (np.full(len(x), np.nan, np.float32) for _ in range(2))
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
        neighbors=neighbors,
        similarities=similarities,
        searched=searched,
    )


def _similarity_to_mean(
    x: NDArray, kept: NDArray[np.intp], clusters: NDArray[np.int64], n_clusters: int
) -> NDArray[np.float32]:
    """Cosine of each kept row to the mean of the unit rows of its cluster, (len(kept),)."""
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
    """One where a row is in a cluster, (K, rows)."""
    rows = np.arange(len(clusters))
    return csr_array((np.ones(len(clusters)), (clusters, rows)), shape=(n_clusters, len(clusters)))


def _unit(x: NDArray, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    block = np.asarray(x[rows], np.float64)
    check_finite(block, "embeddings", rows=rows)
    norms = np.linalg.norm(block, axis=1, keepdims=True)
    return block / np.where(norms > 0, norms, 1)


def _mean_by_cluster(
    values: NDArray[np.float32], clusters: NDArray[np.int64], n_clusters: int
) -> NDArray[np.float64]:
    """Mean of the values of each cluster, NaN where it has none, (K,)."""
    known = ~np.isnan(values)
    counts = np.bincount(clusters[known], minlength=n_clusters)
    sums = np.bincount(clusters[known], values[known], minlength=n_clusters)
    return np.divide(sums, counts, out=np.full(n_clusters, np.nan), where=counts > 0)


def _deviations(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the median in robust standard deviations; 0 where all are the same."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return values
    distance = values - np.median(known)
    apart = np.abs(distance[~np.isnan(values)])
    # the factors make these the standard deviation of a normal distribution; where more than half
    # of the values are the same, the median of what they are apart is 0, and the mean says more
    spread = 1.4826 * np.median(apart) or 1.2533 * apart.mean()
    return distance / spread if spread > 0 else distance * 0
