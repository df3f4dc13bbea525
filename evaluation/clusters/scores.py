"""Agreement between clusters and class labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, eye_array, hstack
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.special import gammaln
from sklearn.metrics import adjusted_rand_score

from .._checks import SKIPPED, check_classes, check_cluster_labels, check_same_length

Counts = NDArray[np.int64]

_IMAGES_PERMUTED = 2_000_000  # images in all random labelings for the chance level of purity
_FEWEST_DRAWS, _MOST_DRAWS = 8, 400
_IMAGES_AT_ONCE = 2**14
_BLOCK = 2**20  # terms of the expected mutual information summed at once


@dataclass(frozen=True)
class ClusteringScores:
    """Agreement of clusters with class labels; see `clustering_scores`.

    Attributes
    ----------
    nmi : float
        Mutual information, normalised by the arithmetic mean of the entropies, in [0, 1]. It rises
        with the number of clusters, even if these are random. Compare it at an equal number of
        effective clusters.
    ami : float
        Mutual information adjusted for chance: at most 1, about 0 for random labels.
    ari : float
        Rand index adjusted for chance: at most 1, about 0 for random labels.
    accuracy : float
        Share of images whose cluster is matched to their class, in [0, 1], under the best
        one-to-one matching. Images in unmatched clusters count as wrong. With more clusters than
        classes, the accuracy cannot reach 1; with many more balanced clusters, it is at most about
        n_classes / K. `purity` is the score with many-to-one matching.
    purity : float
        Share of images whose class is the commonest in their cluster, in [0, 1]: the accuracy if
        each cluster is assigned its commonest class. It is 1 if every image has its own cluster.
    purity_chance : float
        Expected purity of random clusters of the same sizes, in (0, 1]. Compare `purity` with it.
        It is estimated as the mean over random labelings, with a standard error below .0005 for
        1,000 images or more.
    homogeneity : float
        1 - H(class | cluster) / H(class), in [0, 1]; 1 if no cluster mixes classes. It rises with
        the number of clusters, like purity.
    completeness : float
        1 - H(cluster | class) / H(cluster), in [0, 1]; 1 if no class is split. It falls with the
        number of clusters.
    v_measure : float
        Harmonic mean of homogeneity and completeness, in [0, 1]; equal to `nmi`.
    n_samples : int
        Number of scored images.
    n_skipped : int
        Number of images left out because their predicted label is -1 or their class is missing.
    """

    nmi: float
    ami: float
    ari: float
    accuracy: float
    purity: float
    purity_chance: float
    homogeneity: float
    completeness: float
    v_measure: float
    n_samples: int
    n_skipped: int


def clustering_scores(true: ArrayLike, pred: ArrayLike) -> ClusteringScores:
    """Score cluster labels against class labels.

    Parameters
    ----------
    true : array-like of shape (n,)
        Class labels, integers or strings. None and NaN are missing classes, whose images are left
        out and counted; no other value is special.
    pred : array-like of shape (n,)
        Cluster ids of at least 0, not necessarily consecutive; -1 marks a skipped image.

    Returns
    -------
    ClusteringScores

    Raises
    ------
    ValueError
        If lengths differ, all images are skipped, or a value of ``pred`` is not a cluster id or -1.

    Notes
    -----
    All scores are computed from a sparse contingency table of classes and nonempty clusters, which
    stays small with 65,536 clusters and 1,000 classes. The one-to-one matching is exact
    (Jonker-Volgenant for sparse tables). The chance level of mutual information in AMI (Vinh, Epps
    and Bailey, JMLR 2010) is exact, too, and summed once for each pair of *different* sizes. The
    random labelings are permutations of the classes with a fixed seed: the same labels always have
    the same scores. Homogeneity, completeness and V-measure are those of Rosenberg and Hirschberg,
    EMNLP 2007.

    With a single class, homogeneity, purity and its chance level are 1, and completeness, NMI, AMI
    and ARI are 0. With a single class and a single cluster, all scores are 1.

    Examples
    --------
    >>> from evaluation import clustering_scores
    >>> scores = clustering_scores(["cat", "cat", "dog", "dog"], [7, 7, 2, 5])
    >>> scores.accuracy, scores.purity
    (0.75, 1.0)
    """
    (true, known), pred = check_classes(true, "true"), check_cluster_labels(pred, "pred")
    check_same_length(true, pred, "true", "pred")
    kept = known & (pred != SKIPPED)
    if not kept.any():
        with_class = "" if known.all() else " of images with a class"
        raise ValueError(
            f"All {known.sum()} predicted labels{with_class} are -1 (skipped), expected at "
            "least one "
            "cluster id."
        )
    # Codes instead of labels: scikit-learn warns about labels that look like measurements.
    classes = np.unique(true[kept], return_inverse=True)[1]
    clusters = np.unique(pred[kept], return_inverse=True)[1]
    table = _table(classes, clusters)
    n_samples = len(classes)
    in_classes, in_clusters = np.bincount(classes), np.bincount(clusters)
    mutual = _mutual_information(table, in_classes, in_clusters)
    class_entropy, cluster_entropy = _entropy(in_classes), _entropy(in_clusters)
    homogeneity = _share(mutual, class_entropy)
    completeness = _share(mutual, cluster_entropy)
    v_measure = _share(2 * homogeneity * completeness, homogeneity + completeness, of_nothing=0.0)
    return ClusteringScores(
        nmi=v_measure,
        ami=_adjusted(mutual, class_entropy, cluster_entropy, in_classes, in_clusters),
        ari=float(adjusted_rand_score(classes, clusters)),
        accuracy=_matched(table) / n_samples,
        purity=int(table.max(axis=0).sum()) / n_samples,
        purity_chance=_purity_chance(classes, in_clusters),
        homogeneity=homogeneity,
        completeness=completeness,
        v_measure=v_measure,
        n_samples=n_samples,
        n_skipped=len(pred) - n_samples,
    )


def _table(classes: NDArray[np.intp], clusters: NDArray[np.intp]) -> csr_array:
    """Return the sparse contingency table of classes and clusters, (n_classes, n_clusters)."""
    width = int(clusters.max()) + 1
    cells, counts = np.unique(classes * width + clusters, return_counts=True)
    shape = int(classes.max()) + 1, width
    return csr_array((counts, (cells // width, cells % width)), shape=shape)


def _entropy(sizes: NDArray[np.intp]) -> float:
    """Return the entropy of a labeling from the sizes of its groups, in nats."""
    p = sizes / sizes.sum()
    return max(0.0, float(-(p * np.log(p)).sum()))


def _mutual_information(
    table: csr_array, in_classes: NDArray[np.intp], in_clusters: NDArray[np.intp]
) -> float:
    """Return the sum of p log(p / (p_class p_cluster)) over the table, in nats."""
    cells, n = table.tocoo(), in_classes.sum()
    row, column = cells.coords
    ratios = np.log(cells.data * float(n)) - np.log(in_classes[row]) - np.log(in_clusters[column])
    return max(0.0, float((cells.data * ratios).sum() / n))


def _share(part: float, whole: float, *, of_nothing: float = 1.0) -> float:
    """Return part / whole, at most 1; ``of_nothing`` if ``whole`` is 0."""
    return min(1.0, part / whole) if whole > 0 else of_nothing


def _adjusted(
    mutual: float,
    class_entropy: float,
    cluster_entropy: float,
    in_classes: NDArray[np.intp],
    in_clusters: NDArray[np.intp],
) -> float:
    """Return the AMI: mutual information scaled from chance (0) to the mean entropy (1)."""
    n = int(in_classes.sum())
    if len(in_classes) == len(in_clusters) and len(in_classes) in (1, n):
        return 1.0  # both labelings are equal, and chance reaches the maximum
    expected = _expected_mutual_information(in_classes, in_clusters)
    room = (class_entropy + cluster_entropy) / 2 - expected
    # If a labeling gives every image its own group, chance already reaches the maximum.
    return float((mutual - expected) / room) if abs(room) > 1e-12 else 0.0


def _expected_mutual_information(
    in_classes: NDArray[np.intp], in_clusters: NDArray[np.intp]
) -> float:
    """Return the mean mutual information of random labelings (Vinh et al., eq. 24a), in nats.

    A term depends only on the sizes of its class and cluster, and many pairs share these sizes.
    """
    n = int(in_classes.sum())
    a, times_a = np.unique(in_classes, return_counts=True)
    b, times_b = np.unique(in_clusters, return_counts=True)
    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    total = 0.0
    for size, times in zip(a, times_a, strict=True):
        first, last = np.maximum(1, size + b - n), np.minimum(size, b)
        lengths = last - first + 1  # of the sum for each size of a cluster
        ends = np.cumsum(lengths)
        for part in np.split(np.arange(len(b)), np.flatnonzero(np.diff(ends // _BLOCK)) + 1):
            which = np.repeat(part, lengths[part])
            starts = ends[part] - lengths[part]
            common = np.arange(int(starts[0]), int(ends[part[-1]])) - np.repeat(
                starts, lengths[part]
            )
            common += first[which]
            other = b[which]
            log_chance = (
                log_factorial[size]
                + log_factorial[n - size]
                + log_factorial[other]
                + log_factorial[n - other]
                - log_factorial[n]
                - log_factorial[common]
                - log_factorial[size - common]
                - log_factorial[other - common]
                - log_factorial[n - size - other + common]
            )
            terms = common / n * np.log(n * (common / size) / other) * np.exp(log_chance)
            total += float((terms * times_b[which]).sum()) * int(times)
    return total


def _matched(table: csr_array) -> int:
    """Count the images in matched cells of the best one-to-one matching."""
    if table.shape[0] > table.shape[1]:
        table = csr_array(table.T)
    n_rows = table.shape[0]
    # Extra columns let each row stay unmatched, at the value of a cell without images. All values
    # are increased by one, because the solver treats a zero as a missing cell.
    cells = csr_array((table.data + 1.0, table.indices, table.indptr), shape=table.shape)
    cells = csr_array(hstack([cells, eye_array(n_rows)]))
    row, column = min_weight_full_bipartite_matching(cells, maximize=True)
    return round(float(cells[row, column].sum())) - n_rows


def _purity_chance(classes: NDArray[np.intp], in_clusters: NDArray[np.intp]) -> float:
    """Return the mean purity of random clusters of these sizes."""
    n, n_classes = len(classes), int(classes.max()) + 1
    if n_classes == 1 or len(in_clusters) == n:
        return 1.0
    if len(in_clusters) == 1:
        return int(np.bincount(classes).max()) / n
    generator = np.random.default_rng(0)
    draws = int(np.clip(_IMAGES_PERMUTED // n, _FEWEST_DRAWS, _MOST_DRAWS))
    together = min(draws, 1 + _IMAGES_AT_ONCE // n)  # labelings in one pass
    clusters = np.repeat(np.arange(len(in_clusters)), in_clusters)
    own = clusters + np.arange(together)[:, None] * len(in_clusters)  # (together, n)
    right, done = 0, 0
    while done < draws:
        shuffled = generator.permuted(np.tile(classes, (together, 1)), axis=1)
        cells = np.sort((own * n_classes + shuffled).ravel())
        starts = np.flatnonzero(np.diff(cells, prepend=-1))  # of each run, a cell of the table
        counts = np.diff(starts, append=len(cells))
        owners = np.flatnonzero(np.diff(cells[starts] // n_classes, prepend=-1))
        right += int(np.maximum.reduceat(counts, owners).sum())
        done += together
    return right / (done * n)
