"""Scores of a clustering that need no classes: geometry, neighbourhoods, a second fit.

Each looks at one thing, and none can tell whether the clusters mean something.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import adjusted_rand_score, silhouette_score

from .._checks import (
    SKIPPED,
    check_choice,
    check_cluster_labels,
    check_count,
    check_rows,
    check_same_length,
    missing_rows,
)
from ..maps.projection import RandomState, project
from ..neighbors.search import Backend, Index

__all__ = ["LabelFreeScores", "label_free_scores", "stability"]

_TOGETHER = 1024  # queries looked up at once


@dataclass(frozen=True)
class LabelFreeScores:
    """How clusters lie among their images; see `label_free_scores`.

    Attributes
    ----------
    silhouette_umap : float
        Mean silhouette on a UMAP plane, in [-1, 1]: how much nearer the images of the own cluster
        are than those of the next. *Can say* whether clusters are islands of the neighbourhood
        graph, however these curve in the embedding. *Cannot say* how far apart they are, as UMAP
        pulls apart and packs what is connected; and where several clusters divide one island,
        which is what more clusters than groups do, it is low though nothing is wrong. Compare it
        at the same number of clusters and images only. NaN where it is undefined: for one cluster,
        or none of two images.
    neighborhood_purity : float
        Share of an image's nearest neighbours, itself left out, that are in its cluster, mean over
        the images, in [0, 1]. *Can say* whether clusters cut through dense regions. *Cannot say*
        whether an embedding is any good, as neighbours and clusters may come from the same one;
        and one cluster for everything reaches 1. Read it between its chance level and its limit.
    neighborhood_purity_chance : float
        The same, expected of random neighbours, in [0, 1].
    neighborhood_purity_limit : float
        The most that these cluster sizes allow, in [0, 1]: an image of a cluster of five has four
        neighbours of its own, however many are looked at.
    stability : float
        Adjusted Rand index with the labels of another fit, at most 1, about 0 for unrelated ones.
        *Can say* how much of the result is the data's and how much the seed's. *Cannot say* that it
        is right: a fit that collapses the same way each time is stable. Falls with more clusters
        than groups, which are then divided anyhow. NaN without another fit.
    n_clusters : int
        Clusters in use.
    n_neighbors : int
        Neighbours looked at.
    n_projected : int
        Images on the UMAP plane; 0 without one.
    n_samples : int
        Images scored.
    n_skipped : int
        Images left out, because their label is -1 or their row NaN.
    """

    silhouette_umap: float
    neighborhood_purity: float
    neighborhood_purity_chance: float
    neighborhood_purity_limit: float
    stability: float
    n_clusters: int
    n_neighbors: int
    n_projected: int
    n_samples: int
    n_skipped: int


def label_free_scores(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    other_labels: ArrayLike | None = None,
    n_neighbors: int = 20,
    silhouette: bool = True,
    max_samples: int | None = 5_000,
    backend: Backend = "auto",
    random_state: RandomState = 0,
) -> LabelFreeScores:
    """Score cluster labels without classes.

    Parameters
    ----------
    embeddings : array-like of shape (n, d)
        Real rows; those that are NaN throughout, as skipped images have, are left out. Taken from
        something else than made the clusters (another network, pixels), they say more.
    labels : array-like of shape (n,)
        Cluster ids from 0 up; -1 marks an image that was skipped.
    other_labels : array-like of shape (n,), optional
        Cluster ids of another fit of the same images, for `stability`.
    n_neighbors : int, default=20
        Nearest neighbours by cosine of each image, fewer than there are images.
    silhouette : bool, default=True
        Whether to compute ``silhouette_umap``, which takes most of the time.
    max_samples : int or None, default=5000
        Images on the UMAP plane at most, at least 4; of more, that many are drawn, clusters in
        proportion. With few images of a cluster on the plane, its silhouette is noise, and 0 of a
        single one. None takes all; time grows with their square.
    backend : {"auto", "faiss", "torch"}, default="auto"
        See `nearest_neighbors`; it does not change the result.
    random_state : int, RandomState or None, default=0
        Seed of the draw and of UMAP.

    Returns
    -------
    LabelFreeScores

    Raises
    ------
    ValueError
        If shapes disagree, too few images are left, or a row holds NaN or infinity among numbers.
    ImportError
        If ``silhouette`` is asked for and umap-learn is not installed.

    Notes
    -----
    Silhouette: Rousseeuw, 1987, by scikit-learn. UMAP: McInnes, Healy and Melville, 2018, on cosine
    distances. Adjusted Rand index: Hubert and Arabie, 1985.

    Examples
    --------
    >>> from evaluation import label_free_scores
    >>> rows = [[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.2]]
    >>> scores = label_free_scores(rows, [0, 0, 1, 1, 0], n_neighbors=1, silhouette=False)
    >>> scores.neighborhood_purity, round(scores.neighborhood_purity_chance, 2)
    (1.0, 0.4)
    """
    x, labels = check_rows(embeddings, "embeddings"), check_cluster_labels(labels, "labels")
    check_same_length(x, labels, "embeddings", "labels")
    n_neighbors = check_count(n_neighbors, "n_neighbors")
    check_choice(backend, "backend", ("auto", "faiss", "torch"))
    if max_samples is not None:
        max_samples = check_count(max_samples, "max_samples", minimum=4)
    repeated = float("nan") if other_labels is None else stability(labels, other_labels)
    kept = np.flatnonzero((labels != SKIPPED) & ~missing_rows(x))
    if len(kept) <= n_neighbors:
        raise ValueError(
            f"{len(kept)} images have a label and a row, needed more than n_neighbors="
            f"{n_neighbors}. Lower n_neighbors, or pass more images."
        )
    rows, codes = x[kept], np.unique(labels[kept], return_inverse=True)[1]
    sizes = np.bincount(codes)
    flat, n_projected = float("nan"), 0
    if silhouette:
        flat, n_projected = _silhouette(rows, codes, max_samples, random_state)
    n = len(kept)
    return LabelFreeScores(
        silhouette_umap=flat,
        neighborhood_purity=_neighborhood_purity(rows, codes, n_neighbors, backend, kept),
        neighborhood_purity_chance=float((sizes / n * ((sizes - 1) / (n - 1))).sum()),
        neighborhood_purity_limit=float(
            (sizes / n * np.minimum(sizes - 1, n_neighbors)).sum() / n_neighbors
        ),
        stability=repeated,
        n_clusters=len(sizes),
        n_neighbors=n_neighbors,
        n_projected=n_projected,
        n_samples=n,
        n_skipped=len(x) - n,
    )


def stability(labels: ArrayLike, other: ArrayLike) -> float:
    """Measure how far two fits of the same images agree, whatever they call their clusters.

    Parameters
    ----------
    labels, other : array-like of shape (n,)
        Cluster ids from 0 up; an image that is -1 in either is left out.

    Returns
    -------
    ari : float
        Adjusted Rand index: 1 for the same clusters, about 0 for unrelated ones. What it can and
        cannot say: see `LabelFreeScores`.

    Raises
    ------
    ValueError
        If lengths differ, no image is left, or anything but ids and -1 comes.

    Examples
    --------
    >>> from evaluation import stability
    >>> stability([0, 0, 1, 1], [5, 5, 2, 2])
    1.0
    """
    first, second = check_cluster_labels(labels, "labels"), check_cluster_labels(other, "other")
    check_same_length(first, second, "labels", "other")
    kept = (first != SKIPPED) & (second != SKIPPED)
    if not kept.any():
        raise ValueError(
            f"No image of {len(first)} has a cluster in both fits (-1 is skipped), needed at "
            "least one."
        )
    return float(adjusted_rand_score(first[kept], second[kept]))


def _silhouette(
    rows: NDArray, codes: NDArray[np.intp], max_samples: int | None, random_state: Any
) -> tuple[float, int]:
    """Mean silhouette on a UMAP plane, and how many images are on it."""
    plane = project(rows, "umap", max_samples=max_samples, y=codes, random_state=random_state)
    labels = codes[plane.indices]
    n_clusters = len(np.unique(labels))
    if not 2 <= n_clusters < len(labels):
        return float("nan"), len(labels)
    return float(silhouette_score(plane.coordinates, labels)), len(labels)


def _neighborhood_purity(
    rows: NDArray,
    codes: NDArray[np.intp],
    n_neighbors: int,
    backend: Backend,
    positions: NDArray[np.intp],
) -> float:
    """Mean share of the neighbours of an image that are in its cluster."""
    same = 0
    index = Index.of(rows, metric="cosine", backend=backend, name="embeddings", positions=positions)
    for start in range(0, len(rows), _TOGETHER):
        own = np.arange(start, min(start + _TOGETHER, len(rows)))
        neighbors = index.search(index.rows[own], n_neighbors, own=own)[1]
        same += int((codes[neighbors] == codes[own, None]).sum())
    return same / (len(rows) * n_neighbors)
