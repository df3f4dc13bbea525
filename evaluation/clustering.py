"""Agreement between clusters and known classes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    normalized_mutual_info_score,
)
from sklearn.metrics.cluster import contingency_matrix

from evaluation._checks import SKIPPED, check_1d, check_cluster_labels, check_same_length


@dataclass(frozen=True)
class ClusteringScores:
    """How clusters agree with classes; see `clustering_scores`.

    Attributes
    ----------
    nmi : float
        Normalised mutual information, arithmetic mean, in [0, 1]. Rises with the number of clusters
        in use whatever they contain, so compare it at equal effective clusters.
    ami : float
        Mutual information adjusted for chance: at most 1, about 0 for random labels.
    ari : float
        Rand index adjusted for chance: at most 1, about 0 for random labels.
    accuracy : float
        Share of images in a cluster matched to their class, in [0, 1], under the best one-to-one
        matching. Images of unmatched clusters count as wrong: with more clusters than classes it
        cannot reach 1.
    purity : float
        Share of images in a cluster whose commonest class is theirs, in [0, 1]. Reaches 1 when
        every image has its own cluster.
    n_samples : int
        Images scored.
    n_ignored : int
        Images left out, because their predicted label is -1.
    """

    nmi: float
    ami: float
    ari: float
    accuracy: float
    purity: float
    n_samples: int
    n_ignored: int


def clustering_scores(true: ArrayLike, pred: ArrayLike) -> ClusteringScores:
    """Score cluster labels against known classes.

    Parameters
    ----------
    true : array-like of shape (n,)
        Classes: integers or strings. No value is special.
    pred : array-like of shape (n,)
        Cluster ids from 0 up, with gaps or not; -1 marks an image that was skipped.

    Returns
    -------
    ClusteringScores

    Raises
    ------
    ValueError
        If lengths differ, nothing is left to score, or ``pred`` holds anything but ids and -1.

    Notes
    -----
    NMI, AMI and ARI are scikit-learn's. The one-to-one matching maximises the matched images
    (Hungarian algorithm) over the table of used clusters and classes, held densely: 65,536
    clusters by 1,000 classes take half a gigabyte.

    Examples
    --------
    >>> from evaluation import clustering_scores
    >>> scores = clustering_scores(["cat", "cat", "dog", "dog"], [7, 7, 2, 5])
    >>> scores.accuracy, scores.purity
    (0.75, 1.0)
    """
    true, pred = check_1d(true, "true"), check_cluster_labels(pred, "pred")
    check_same_length(true, pred, "true", "pred")
    kept = pred != SKIPPED
    if not kept.any():
        raise ValueError(
            f"All {len(pred)} predicted labels are -1 (skipped), needed at least one cluster id."
        )
    if true.dtype.kind == "f" and np.isnan(true).any():
        raise ValueError("true holds NaN, needed a class for every image. Leave such images out.")
    # Codes rather than labels: scikit-learn warns about labels that look like measurements.
    classes = np.unique(true[kept], return_inverse=True)[1]
    clusters = np.unique(pred[kept], return_inverse=True)[1]
    table = np.asarray(contingency_matrix(classes, clusters))  # (n_classes, n_clusters)
    matched = linear_sum_assignment(table, maximize=True)
    n_samples = len(classes)
    return ClusteringScores(
        nmi=float(normalized_mutual_info_score(classes, clusters)),
        ami=float(adjusted_mutual_info_score(classes, clusters)),
        ari=float(adjusted_rand_score(classes, clusters)),
        accuracy=float(table[matched].sum() / n_samples),
        purity=float(table.max(axis=0).sum() / n_samples),
        n_samples=n_samples,
        n_ignored=len(pred) - n_samples,
    )
