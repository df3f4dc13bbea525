"""Spherical k-means on the teacher's projections, from which the centroids start.

The authors' code starts this way, with 50 iterations on the projections of up to 500,000 images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sklearn_excb.method.attention import nearest
from sklearn_excb.runtime.ranks import ALONE, Ranks
from sklearn_excb.runtime.transfers import to_device

N_ITERATIONS = 50  # as in the authors' code
CPU = torch.device("cpu")
_AT_ONCE = 2**16  # rows per block on an accelerator
_SEEDS, _SEEDS_PER_CLUSTER = 10_000, 10  # rows among which k-means++ chooses
_MOST_ROWS, _MOST_PER_CLUSTER = 500_000, 2  # most rows to cluster: in all, or per cluster if more
FloatRows = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class CentroidStart(NamedTuple):
    """Centroids at the start of training.

    Attributes
    ----------
    unit : ndarray of shape (K, D)
        Normalised means of the clusters, for the teacher.
    means : ndarray of shape (K, D)
        Means of the unit rows of each cluster, not normalised, for the student.
    """

    unit: FloatRows
    means: FloatRows


def most_start_rows(n_clusters: int) -> int:
    """Return the largest number of samples to cluster: 500,000, or two per cluster if more."""
    return max(_MOST_ROWS, _MOST_PER_CLUSTER * n_clusters)


def unit_rows(rows: FloatRows) -> FloatRows:
    """Normalise rows to length 1; a row of zeros stays a row of zeros."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(norms, 1e-12)).astype(np.float32, copy=False)


def cluster_means(
    rows: FloatRows, labels: Indices, n_clusters: int, ranks: Ranks = ALONE
) -> FloatRows:
    """Return the mean of the rows of each cluster over all ranks; 0 for an empty cluster."""
    from scipy.sparse import csr_matrix

    n = len(rows)
    member = csr_matrix((np.ones(n, np.float32), (labels, np.arange(n))), (n_clusters, n))
    sums = ranks.sum_array(member @ rows)
    counts = _counts(labels, n_clusters, ranks)
    return sums / np.maximum(counts, 1)[:, None].astype(np.float32)


def spherical_kmeans(
    rows: FloatRows,
    n_clusters: int,
    *,
    seed: int,
    n_iterations: int = N_ITERATIONS,
    n_starts: int = 1,
    ranks: Ranks = ALONE,
    places: Indices | None = None,
    device: torch.device = CPU,
) -> CentroidStart:
    """Cluster unit vectors by cosine similarity, starting from K random rows.

    With several starts, each begins with k-means++ instead, and the result is that of the start in
    which rows are most similar to their centroids.

    No cluster stays empty. A cluster that loses its last row takes over the row that is least
    similar to its own centroid, as in scikit-learn's KMeans. (The authors' code keeps the centroid
    of an empty cluster and restarts until no cluster is empty, which need not end.)

    Parameters
    ----------
    rows : ndarray of shape (n, D), float32
        Projections of any length, with n >= n_clusters. Each rank has its share.
    n_clusters : int
        Number of clusters K.
    seed : int
        Seed of the choice of the first centroids.
    n_iterations : int, default=50
        Largest number of iterations. The loop stops when no label changes.
    n_starts : int, default=1
        Number of starts.
    ranks : Ranks, default=ALONE
        Ranks that cluster together.
    places : ndarray of shape (n,), int64, optional
        Indices of the rows of this rank among the rows of all ranks.
    device : torch.device, default=CPU
        Device that compares rows with centroids.

    Returns
    -------
    CentroidStart
        Unit centroids, and the means of the last assignment.
    """
    rows = unit_rows(rows)
    places = np.arange(len(rows)) if places is None else places
    n_rows = int(ranks.sum_array(np.array([len(rows)]))[0])
    random = np.random.default_rng(seed)
    if n_starts == 1:
        first = random.choice(n_rows, n_clusters, replace=False)
        starts = iter([_chosen(rows, places, first, ranks)])
    else:
        most = max(_SEEDS, _SEEDS_PER_CLUSTER * n_clusters)
        sample = _chosen(rows, places, random.permutation(n_rows)[:most], ranks)
        starts = (_far_apart(sample, n_clusters, random) for _ in range(n_starts))
    found = (
        _iterated(rows, start, n_iterations, ranks, places, n_rows, device) for start in starts
    )
    return max(found, key=lambda of_start: of_start[1])[0]


def _far_apart(rows: FloatRows, n_clusters: int, random: np.random.Generator) -> FloatRows:
    """Choose rows by k-means++."""
    from sklearn.cluster import kmeans_plusplus

    return kmeans_plusplus(rows, n_clusters, random_state=int(random.integers(2**31)))[0]


def _iterated(
    rows: FloatRows,
    centroids: FloatRows,
    n_iterations: int,
    ranks: Ranks,
    places: Indices,
    n_rows: int,
    device: torch.device,
) -> tuple[CentroidStart, float]:
    """Iterate from given centroids; return the result, and the sum of all rows' similarities."""
    means, labels = centroids, np.full(len(rows), -1)
    similarity = np.zeros(len(rows), np.float32)
    for _ in range(n_iterations):
        new, similarity = nearest_centroids(rows, centroids, device)
        counts = _counts(new, len(centroids), ranks)
        if not counts.all():  # the choice of rows for empty clusters needs the rows of all ranks
            of_all_ranks = (ranks.placed(of, places, n_rows) for of in (new, similarity))
            new = _fill_empty(*of_all_ranks, counts)[places]
        if not ranks.any(not np.array_equal(new, labels))[0]:
            break
        labels = new
        means = cluster_means(rows, labels, len(centroids), ranks)
        centroids = unit_rows(means)
    total = ranks.sum_array(np.array([similarity.sum(dtype=np.float64)]))
    return CentroidStart(centroids, means), float(total[0])


def nearest_centroids(
    rows: FloatRows, centroids: FloatRows, device: torch.device
) -> tuple[Indices, FloatRows]:
    """Return the index of the most similar centroid of each row, and its similarity."""
    if device.type == "cpu":
        from sklearn_excb.evaluation import nearest_neighbors

        similarity, index = nearest_neighbors(rows, centroids, 1, metric="dot")
        return index[:, 0].copy(), similarity[:, 0]
    return _in_blocks(rows, centroids, device)


def _in_blocks(
    rows: FloatRows, centroids: FloatRows, device: torch.device
) -> tuple[Indices, FloatRows]:
    there = to_device(torch.from_numpy(centroids), device)
    labels = np.empty(len(rows), np.int64)
    similarity = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        x = to_device(torch.from_numpy(rows[some]), device)
        found = nearest(x, there)
        labels[some] = found.cpu().numpy()
        similarity[some] = torch.linalg.vecdot(x, there[found]).cpu().numpy()
    return labels, similarity


def _counts(labels: Indices, n_clusters: int, ranks: Ranks) -> Indices:
    """Count the rows of each cluster over all ranks."""
    return ranks.sum_array(np.bincount(labels, minlength=n_clusters))


def _chosen(rows: FloatRows, places: Indices, wanted: Indices, ranks: Ranks) -> FloatRows:
    """Return the rows with the wanted indices among the rows of all ranks, in this order."""
    order = np.argsort(places)
    at = np.minimum(np.searchsorted(places, wanted, sorter=order), len(rows) - 1)
    here = places[order[at]] == wanted
    found = np.zeros((len(wanted), rows.shape[1]), rows.dtype)
    found[here] = rows[order[at[here]]]
    return ranks.sum_array(found)


def _fill_empty(labels: Indices, similarity: npt.NDArray[np.float32], counts: Indices) -> Indices:
    """Give each empty cluster the worst-fitting row of a cluster that has several rows."""
    counts, empty = counts.copy(), np.flatnonzero(counts == 0)
    worst = iter(np.argsort(similarity, kind="stable"))
    for cluster in empty:
        row = next(row for row in worst if counts[labels[row]] > 1)
        counts[labels[row]] -= 1
        labels[row] = cluster
    return labels
