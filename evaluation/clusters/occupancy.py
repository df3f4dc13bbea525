"""Occupancy: how evenly images are distributed over clusters.

With N images and K clusters, a cluster of N_c images has the relative size N_c K / N: 1 if the
clusters are balanced, 0 if the cluster is empty, K if it holds all images.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import SKIPPED, check_cluster_labels, check_count, check_n_clusters


@dataclass(frozen=True, eq=False)
class Occupancy:
    """Distribution of images over clusters; see `cluster_occupancy`.

    Attributes
    ----------
    n_clusters : int
        Number of clusters K, empty clusters included.
    n_samples : int
        Number of images in clusters, N.
    n_skipped : int
        Number of images left out because their label is -1.
    empty_fraction : float
        Share of clusters without an image, in [0, 1).
    largest_relative_size : float
        Relative size of the largest cluster, in [1, K].
    entropy : float
        Entropy of the cluster sizes over its maximum, H / log K, in [0, 1]; 1 is balanced. A
        single cluster counts as balanced.
    effective_clusters : float
        exp(H), in [1, K]: the number of equally large clusters with the same entropy.
    gini : float
        Gini coefficient of the cluster sizes, in [0, 1): 0 if and only if all are equal, 1 - 1/K
        if one cluster holds all images.
    counts : ndarray of shape (K,), int64
        Number of images in each cluster; read-only.
    """

    n_clusters: int
    n_samples: int
    n_skipped: int
    empty_fraction: float
    largest_relative_size: float
    entropy: float
    effective_clusters: float
    gini: float
    counts: NDArray[np.int64] = field(repr=False)

    @property
    def relative_sizes(self) -> NDArray[np.float64]:
        """Relative size N_c K / N of each cluster, (K,); they sum to K."""
        return self.counts.astype(np.float64) * self.n_clusters / self.n_samples


def cluster_occupancy(labels: ArrayLike, n_clusters: int) -> Occupancy:
    """Measure how evenly images are distributed over clusters.

    Parameters
    ----------
    labels : array-like of shape (n,)
        Cluster ids in [0, n_clusters); -1 marks a skipped image.
    n_clusters : int
        Number of clusters K, at least 1. The labels do not determine it, because the last clusters
        may be empty.

    Returns
    -------
    Occupancy

    Raises
    ------
    ValueError
        If no label is a cluster id, or a label is out of range.

    Notes
    -----
    Fig. 1 in the supplementary material of ExCB (Metaxas, Tzimiropoulos and Patras, ECCV 2024)
    reports the empty fraction and the largest relative size.

    Examples
    --------
    >>> from evaluation import cluster_occupancy
    >>> occupancy = cluster_occupancy([0, 0, 0, 1, -1], n_clusters=4)
    >>> occupancy.empty_fraction, occupancy.largest_relative_size, occupancy.n_skipped
    (0.5, 3.0, 1)
    """
    n_clusters = check_count(n_clusters, "n_clusters")
    labels = check_cluster_labels(labels, "labels")
    check_n_clusters(n_clusters, labels)
    counts = _count(labels, n_clusters)
    n_samples = int(counts.sum())
    if n_samples == 0:
        raise ValueError(
            f"All {len(labels)} labels are -1 (skipped), expected at least one cluster id."
        )
    counts.setflags(write=False)
    entropy = _entropy(counts)
    return Occupancy(
        n_clusters=n_clusters,
        n_samples=n_samples,
        n_skipped=len(labels) - n_samples,
        empty_fraction=float(np.mean(counts == 0)),
        largest_relative_size=float(counts.max() * n_clusters / n_samples),
        entropy=min(entropy / np.log(n_clusters), 1.0) if n_clusters > 1 else 1.0,
        effective_clusters=min(float(np.exp(entropy)), float(n_clusters)),
        gini=_gini(counts),
        counts=counts,
    )


def _count(labels: NDArray[np.int64], n_clusters: int) -> NDArray[np.int64]:
    """Count the images in each cluster, (K,)."""
    if labels.min() >= 0:
        return np.bincount(labels, minlength=n_clusters).astype(np.int64, copy=False)
    # The first count is that of skipped images, which is dropped.
    shifted = np.bincount(labels - SKIPPED, minlength=n_clusters - SKIPPED)
    return shifted[-SKIPPED:].astype(np.int64)


def _entropy(counts: NDArray[np.int64]) -> float:
    """Return the entropy H = -sum p log p over nonempty clusters, in nats."""
    p = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(p * np.log(p)).sum()))


def _gini(counts: NDArray[np.int64]) -> float:
    """Return the Gini coefficient, sum_i (2 i - K - 1) n_i / (K N) with ascending sizes n_i."""
    n_clusters = len(counts)
    weights = 2 * np.arange(1, n_clusters + 1) - n_clusters - 1
    # Integer arithmetic, so that balanced clusters give exactly 0.
    return float((weights * np.sort(counts)).sum() / (n_clusters * counts.sum()))
