"""Agreement between clusters and known classes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, eye_array, hstack
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.special import gammaln
from sklearn.metrics import adjusted_rand_score

from .._checks import SKIPPED, check_1d, check_cluster_labels, check_same_length

Counts = NDArray[np.int64]

_IMAGES_PERMUTED = 2_000_000  # in all the random labelings behind the chance level of purity
_FEWEST_DRAWS, _MOST_DRAWS = 8, 400
_IMAGES_AT_ONCE = 2**14
_BLOCK = 2**20  # terms of the expected mutual information added together


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
        cannot reach 1, and with K far above them it is about n_classes / K at best. `purity` is its
        many-to-one counterpart.
    purity : float
        Share of images in a cluster whose commonest class is theirs, in [0, 1]: the accuracy when
        each cluster is given its commonest class. Reaches 1 when every image has its own cluster.
    purity_chance : float
        Expected purity of random clusters of the same sizes, in (0, 1]: purity means something by
        how far it lies above. The mean over random labelings; its standard error is below .0005
        from 1,000 images on.
    homogeneity : float
        1 - H(class | cluster) / H(class), in [0, 1]; 1 when no cluster mixes classes. Rises with
        the number of clusters, as purity does.
    completeness : float
        1 - H(cluster | class) / H(cluster), in [0, 1]; 1 when no class is split. Falls with the
        number of clusters.
    v_measure : float
        Harmonic mean of homogeneity and completeness, in [0, 1]; the same number as `nmi`.
    n_samples : int
        Images scored.
    n_skipped : int
        Images left out, because their predicted label is -1.
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
    Everything comes from the table of used clusters and classes, held sparsely, so that 65,536
    clusters by 1,000 classes are no burden. The one-to-one matching is exact (Jonker-Volgenant for
    sparse tables), and so is the chance level of mutual information in AMI (Vinh, Epps and Bailey,
    JMLR 2010), summed once for each pair of *different* sizes. Random labelings are permutations
    of the classes, drawn with a fixed seed: the same labels have the same scores. Homogeneity,
    completeness and V-measure: Rosenberg and Hirschberg, EMNLP 2007.

    With one class only, homogeneity, purity and its chance level are 1, and completeness, NMI, AMI
    and ARI are 0; with one cluster, too, every score is 1.

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
    """Images of each class in each cluster, (n_classes, n_clusters), without the zeros."""
    width = int(clusters.max()) + 1
    cells, counts = np.unique(classes * width + clusters, return_counts=True)
    shape = int(classes.max()) + 1, width
    return csr_array((counts, (cells // width, cells % width)), shape=shape)


def _entropy(sizes: NDArray[np.intp]) -> float:
    """Entropy of a labeling, from the sizes of its groups, in nats."""
    p = sizes / sizes.sum()
    return max(0.0, float(-(p * np.log(p)).sum()))


def _mutual_information(
    table: csr_array, in_classes: NDArray[np.intp], in_clusters: NDArray[np.intp]
) -> float:
    """Sum of p log(p / (p_class p_cluster)) over the table, in nats."""
    cells, n = table.tocoo(), in_classes.sum()
    row, column = cells.coords
    ratios = np.log(cells.data * float(n)) - np.log(in_classes[row]) - np.log(in_clusters[column])
    return max(0.0, float((cells.data * ratios).sum() / n))


def _share(part: float, whole: float, *, of_nothing: float = 1.0) -> float:
    """Return part / whole, at most 1; where there is nothing to share, ``of_nothing``."""
    return min(1.0, part / whole) if whole > 0 else of_nothing


def _adjusted(
    mutual: float,
    class_entropy: float,
    cluster_entropy: float,
    in_classes: NDArray[np.intp],
    in_clusters: NDArray[np.intp],
) -> float:
    """AMI: how far mutual information lies from chance (0) to the mean of the entropies (1)."""
    n = int(in_classes.sum())
    if len(in_classes) == len(in_clusters) and len(in_classes) in (1, n):
        return 1.0  # the same labeling twice, and nothing to adjust: chance would do as well
    expected = _expected_mutual_information(in_classes, in_clusters)
    room = (class_entropy + cluster_entropy) / 2 - expected
    # Without room, as when either labeling sets every image apart, there is nothing above chance.
    return float((mutual - expected) / room) if abs(room) > 1e-12 else 0.0


def _expected_mutual_information(
    in_classes: NDArray[np.intp], in_clusters: NDArray[np.intp]
) -> float:
    """Mean mutual information of random labelings with these sizes (Vinh et al., eq. 24a), nats.

    A term depends on the size of its class and of its cluster only, and many have the same.
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
    """Images in matched cells, at the best one-to-one matching of classes and clusters."""
    if table.shape[0] > table.shape[1]:
        table = csr_array(table.T)
    n_rows = table.shape[0]
    # Each row may stay alone, at the price of a cell without images. One more everywhere, as the
    # solver takes a zero for a cell that is not there.
    cells = csr_array((table.data + 1.0, table.indices, table.indptr), shape=table.shape)
    cells = csr_array(hstack([cells, eye_array(n_rows)]))
    row, column = min_weight_full_bipartite_matching(cells, maximize=True)
    return round(float(cells[row, column].sum())) - n_rows


def _purity_chance(classes: NDArray[np.intp], in_clusters: NDArray[np.intp]) -> float:
    """Mean purity of clusters of these sizes, filled at random."""
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
