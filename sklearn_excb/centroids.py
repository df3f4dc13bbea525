"""Start of the centroids: spherical k-means on the teacher's projections. [METHOD.md 6]"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

N_ITERATIONS = 50  # as in the authors' release
FloatRows = npt.NDArray[np.float32]


class CentroidStart(NamedTuple):
    """Where the centroids start.

    Attributes
    ----------
    unit : ndarray of shape (K, D)
        Unit means: the teacher's start.
    means : ndarray of shape (K, D)
        Means of the unit rows of each cluster, not normalised: the student's start.
    """

    unit: FloatRows
    means: FloatRows


def unit_rows(rows: FloatRows) -> FloatRows:
    """Rows of length 1; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(norms, 1e-12)).astype(np.float32, copy=False)


def cluster_means(rows: FloatRows, labels: npt.NDArray[np.int64], n_clusters: int) -> FloatRows:
    """Mean of the rows of each cluster; 0 for an empty one."""
    from scipy.sparse import csr_matrix

    n = len(rows)
    member = csr_matrix((np.ones(n, np.float32), (labels, np.arange(n))), (n_clusters, n))
    counts = np.bincount(labels, minlength=n_clusters)
    return (member @ rows) / np.maximum(counts, 1)[:, None].astype(np.float32)


def spherical_kmeans(
    rows: FloatRows, n_clusters: int, *, seed: int, n_iterations: int = N_ITERATIONS
) -> CentroidStart:
    """Cluster unit vectors by cosine similarity, from K random rows, leaving no cluster empty.

    A cluster that loses its last row takes over the row that is least similar to its own
    centroid, as scikit-learn's KMeans does. (The release lets it lie and starts all over until
    no cluster is empty, which need not end.)

    Parameters
    ----------
    rows : ndarray of shape (n, D), float32
        Projections of any length; n >= n_clusters.
    n_clusters : int
        K.
    seed : int
        Seed of the choice of the first rows.
    n_iterations : int, default=50
        At the most; it stops when no label changes.

    Returns
    -------
    CentroidStart
        Unit centroids, and the means of the last assignment.
    """
    from evaluation.neighbors import nearest_neighbors

    rows = unit_rows(rows)
    first = np.random.default_rng(seed).choice(len(rows), n_clusters, replace=False)
    centroids, means = rows[first], rows[first]
    labels = np.full(len(rows), -1)
    for _ in range(n_iterations):
        similarity, nearest = nearest_neighbors(rows, centroids, 1, metric="dot")
        new = _fill_empty(nearest[:, 0].copy(), similarity[:, 0], n_clusters)
        if np.array_equal(new, labels):
            break
        labels = new
        means = cluster_means(rows, labels, n_clusters)
        centroids = unit_rows(means)
    return CentroidStart(centroids, means)


def _fill_empty(
    labels: npt.NDArray[np.int64], similarity: npt.NDArray[np.float32], n_clusters: int
) -> npt.NDArray[np.int64]:
    """Give each empty cluster the worst placed row of a cluster that has more than one."""
    counts = np.bincount(labels, minlength=n_clusters)
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return labels
    worst = iter(np.argsort(similarity, kind="stable"))
    for cluster in empty:
        row = next(row for row in worst if counts[labels[row]] > 1)
        counts[labels[row]] -= 1
        labels[row] = cluster
    return labels
