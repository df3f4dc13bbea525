"""Start of the centroids: spherical k-means on the teacher's projections. [METHOD.md 6]"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sklearn_excb.method.attention import nearest
from sklearn_excb.runtime.ranks import ALONE, Ranks
from sklearn_excb.runtime.transfers import to_device

N_ITERATIONS = 50  # as in the authors' release
CPU = torch.device("cpu")
_AT_ONCE = 2**16  # rows on an accelerator
_FEWEST, _A_CLUSTER = 500_000, 2  # rows that are clustered: as many, or as many a cluster
FloatRows = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


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


def most_start_rows(n_clusters: int) -> int:
    """Samples, if there are as many, that the centroids start from: 500,000, or two a cluster."""
    return max(_FEWEST, _A_CLUSTER * n_clusters)


def unit_rows(rows: FloatRows) -> FloatRows:
    """Rows of length 1; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(norms, 1e-12)).astype(np.float32, copy=False)


def cluster_means(
    rows: FloatRows, labels: Indices, n_clusters: int, ranks: Ranks = ALONE
) -> FloatRows:
    """Mean of the rows of each cluster, of all ranks; 0 for an empty one."""
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
    ranks: Ranks = ALONE,
    places: Indices | None = None,
    device: torch.device = CPU,
) -> CentroidStart:
    """Cluster unit vectors by cosine similarity, from K random rows, leaving no cluster empty.

    A cluster that loses its last row takes over the row that is least similar to its own
    centroid, as scikit-learn's KMeans does. (The release lets it lie and starts all over until
    no cluster is empty, which need not end.)

    Parameters
    ----------
    rows : ndarray of shape (n, D), float32
        Projections of any length; n >= n_clusters. Each rank has its share.
    n_clusters : int
        K.
    seed : int
        Seed of the choice of the first rows.
    n_iterations : int, default=50
        At the most; it stops when no label changes.
    ranks : Ranks, default=ALONE
        Those that cluster together.
    places : ndarray of shape (n,), int64, optional
        Of this rank's rows among those of all.
    device : torch.device, default=CPU
        Where rows are compared with centroids.

    Returns
    -------
    CentroidStart
        Unit centroids, and the means of the last assignment.
    """
    rows = unit_rows(rows)
    places = np.arange(len(rows)) if places is None else places
    n_rows = int(ranks.sum_array(np.array([len(rows)]))[0])
    first = np.random.default_rng(seed).choice(n_rows, n_clusters, replace=False)
    centroids = means = _chosen(rows, places, first, ranks)
    labels = np.full(len(rows), -1)
    for _ in range(n_iterations):
        new, similarity = nearest_centroids(rows, centroids, device)
        counts = _counts(new, n_clusters, ranks)
        if not counts.all():  # which rows take their places all have to see
            of_all = (ranks.placed(of, places, n_rows) for of in (new, similarity))
            new = _fill_empty(*of_all, counts)[places]
        if not ranks.any(not np.array_equal(new, labels))[0]:
            break
        labels = new
        means = cluster_means(rows, labels, n_clusters, ranks)
        centroids = unit_rows(means)
    return CentroidStart(centroids, means)


def nearest_centroids(
    rows: FloatRows, centroids: FloatRows, device: torch.device
) -> tuple[Indices, FloatRows]:
    """Most similar centroid of each row, and how similar it is."""
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
    """Rows a cluster, of all ranks."""
    return ranks.sum_array(np.bincount(labels, minlength=n_clusters))


def _chosen(rows: FloatRows, places: Indices, wanted: Indices, ranks: Ranks) -> FloatRows:
    """Rows at some places among those of all ranks, in their order."""
    order = np.argsort(places)
    at = np.minimum(np.searchsorted(places, wanted, sorter=order), len(rows) - 1)
    here = places[order[at]] == wanted
    found = np.zeros((len(wanted), rows.shape[1]), rows.dtype)
    found[here] = rows[order[at[here]]]
    return ranks.sum_array(found)


def _fill_empty(labels: Indices, similarity: npt.NDArray[np.float32], counts: Indices) -> Indices:
    """Give each empty cluster the worst placed row of a cluster that has more than one."""
    counts, empty = counts.copy(), np.flatnonzero(counts == 0)
    worst = iter(np.argsort(similarity, kind="stable"))
    for cluster in empty:
        row = next(row for row in worst if counts[labels[row]] > 1)
        counts[labels[row]] -= 1
        labels[row] = cluster
    return labels
