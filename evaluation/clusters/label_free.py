"""Scores of a clustering without class labels: silhouette, neighbourhood purity and stability.

Each score measures one property. No score can tell whether the clusters are meaningful.
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

_TOGETHER = 1024  # queries searched at once


@dataclass(frozen=True)
class LabelFreeScores:
    """Scores of a clustering without class labels; see `label_free_scores`.

    Attributes
    ----------
    silhouette_umap : float
        Mean silhouette on a UMAP plane, in [-1, 1]: how much closer an image is to its own cluster
        than to the next one. *It shows* whether clusters are islands of the neighbourhood graph,
        even if these islands are curved in the embedding. *It does not show* how far apart clusters
        are, because UMAP separates and packs connected parts. It is low if several clusters divide
        one island, which is normal with more clusters than groups. Compare it only at the same
        number of clusters and images. NaN if it is undefined: with one cluster, or if no cluster
        has two images.
    neighborhood_purity : float
        Share of an image's nearest neighbours that are in its cluster, mean over the images, in
        [0, 1]. *It shows* whether clusters cut through dense regions. *It does not show* whether
        an embedding is good, because neighbours and clusters may come from the same embedding. A
        single cluster with all images reaches 1. Compare it with its chance level and its limit.
    neighborhood_purity_chance : float
        Expected purity for random neighbours, in [0, 1].
    neighborhood_purity_limit : float
        Largest purity that the cluster sizes allow, in [0, 1]: an image in a cluster of five has at
        most four neighbours in its cluster, for any ``n_neighbors``.
    stability : float
        Adjusted Rand index with the labels of another fit: at most 1, about 0 for unrelated labels.
        *It shows* how much of the result comes from the data and how much from the seed. *It does
        not show* that the result is right: a fit that always collapses in the same way is stable.
        It falls with more clusters than groups, because the division of a group is arbitrary. NaN
        without another fit.
    n_clusters : int
        Number of clusters with at least one image.
    n_neighbors : int
        Number of neighbours of each image.
    n_projected : int
        Number of images on the UMAP plane; 0 without a plane.
    n_samples : int
        Number of scored images.
    n_skipped : int
        Number of images left out because their label is -1 or their row is NaN.
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
        Embeddings, real numbers. Rows of NaN, which mark skipped images, are left out. The scores
        are more informative if the embeddings are not the ones that were clustered, but those of
        another network or the pixels.
    labels : array-like of shape (n,)
        Cluster ids of at least 0; -1 marks a skipped image.
    other_labels : array-like of shape (n,), optional
        Cluster ids of another fit of the same images, for `stability`.
    n_neighbors : int, default=20
        Number of nearest neighbours by cosine similarity; less than the number of images.
    silhouette : bool, default=True
        Whether to compute ``silhouette_umap``, which takes most of the time.
    max_samples : int or None, default=5000
        Maximum number of images on the UMAP plane, at least 4. A larger collection is sampled, with
        each cluster in proportion. The silhouette of a cluster with few images on the plane is
        noisy; with one image it is 0. None uses all images; the time grows with their square.
    backend : {"auto", "faiss", "torch"}, default="auto"
        Search library, see `nearest_neighbors`. It does not change the result.
    random_state : int, RandomState or None, default=0
        Seed of the sample and of UMAP.

    Returns
    -------
    LabelFreeScores

    Raises
    ------
    ValueError
        If shapes disagree, too few images are left, or a row is partly NaN or holds infinity.
    ImportError
        If ``silhouette`` is True and umap-learn is not installed.

    Notes
    -----
    The silhouette (Rousseeuw, 1987) is scikit-learn's. UMAP (McInnes, Healy and Melville, 2018)
    uses cosine distances. The adjusted Rand index is by Hubert and Arabie, 1985.

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
            f"{len(kept)} images have a label and a row, expected more than n_neighbors="
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
    """Measure how far two fits of the same images agree, for any numbering of the clusters.

    Parameters
    ----------
    labels, other : array-like of shape (n,)
        Cluster ids of at least 0. An image with -1 in either array is left out.

    Returns
    -------
    ari : float
        Adjusted Rand index: 1 for the same clusters, about 0 for unrelated ones. `LabelFreeScores`
        describes what it shows and what it does not show.

    Raises
    ------
    ValueError
        If lengths differ, no image is left, or a label is below -1.

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
            f"No image of {len(first)} has a cluster in both fits (-1 marks skipped images), "
            "expected at least one."
        )
    return float(adjusted_rand_score(first[kept], second[kept]))


def _silhouette(
    rows: NDArray, codes: NDArray[np.intp], max_samples: int | None, random_state: Any
) -> tuple[float, int]:
    """Return the mean silhouette on a UMAP plane and the number of images on it."""
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
    """Return the mean share of an image's neighbours that are in its cluster."""
    same = 0
    index = Index.of(rows, metric="cosine", backend=backend, name="embeddings", positions=positions)
    for start in range(0, len(rows), _TOGETHER):
        own = np.arange(start, min(start + _TOGETHER, len(rows)))
        neighbors = index.search(index.rows[own], n_neighbors, own=own)[1]
        same += int((codes[neighbors] == codes[own, None]).sum())
    return same / (len(rows) * n_neighbors)
