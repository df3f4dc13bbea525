"""Scores of a clustering and its embeddings."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.data_sets import Split
from evaluation import cluster_occupancy, clustering_scores, knn_accuracy, project
from sklearn_excb.method.kmeans import unit_rows
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.settling import settle

Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.floating[Any]]

NEIGHBORS = 20
MOST_POINTS = 1500  # maximum number of points in a plot


class Outcome(NamedTuple):
    """Results of a method, each as a pair (training images, held-out images).

    Attributes
    ----------
    labels : pair of ndarrays of shape (n,), or None
        Cluster labels; None for a method without clusters.
    projections : pair of ndarrays of shape (n, D)
        Embeddings in which the clusters are formed.
    features : pair of ndarrays of shape (n, d)
        Embeddings for k-NN and linear probes.
    """

    labels: tuple[Labels, Labels] | None
    projections: tuple[Rows, Rows]
    features: tuple[Rows, Rows]


def figures(outcome: Outcome, split: Split, n_clusters: int, seed: int) -> dict[str, Any]:
    """Compute occupancy, agreement with classes, k-NN and probe accuracy, and those of k-means.

    With seed 0, the result also has a t-SNE of the projections.
    """
    by_kmeans = k_means(*outcome.projections, n_clusters, seed)
    found = {
        "knn": knn_accuracy(
            outcome.features[0], split.y_train, outcome.features[1], split.y_test, k=NEIGHBORS
        ),
        "probe": probe(outcome.features, split),
        "kmeans": _of_clusters(by_kmeans, outcome.projections[0], split, n_clusters),
    }
    if outcome.labels is not None:
        found |= _of_clusters(outcome.labels, outcome.projections[0], split, n_clusters)
    if seed == 0 and outcome.labels is not None:
        found["tsne"] = _tsne(outcome.projections[0], split.y_train)
    return found


def k_means(train: Rows, test: Rows, n_clusters: int, seed: int) -> tuple[Labels, Labels]:
    """Return k-means labels of both splits, by clusters of the training split."""
    kmeans = KMeans(n_clusters, n_init=1, random_state=seed).fit(train)
    return kmeans.labels_.astype(np.int64), kmeans.predict(test).astype(np.int64)


def settled_k_means(
    train: Rows, test: Rows, settings: Settings, seed: int
) -> tuple[Labels, Labels]:
    """Return labels of both splits by k-means on directions from the mean, settled as in ExCB."""
    mean = train.mean(axis=0)
    unit = unit_rows(train - mean), unit_rows(test - mean)
    kmeans = KMeans(settings.K, n_init=1, random_state=seed).fit(unit[0])
    start = torch.from_numpy(kmeans.cluster_centers_)
    centroids = settle(unit[0], start, settings, seed=seed).centroids.numpy()
    train_labels, test_labels = ((rows @ centroids.T).argmax(axis=1) for rows in unit)
    return train_labels, test_labels


def _tsne(projections: Rows, y: npt.NDArray[Any]) -> dict[str, Any]:
    """Return t-SNE positions of at most MOST_POINTS training images, and their classes."""
    found = project(projections, max_samples=MOST_POINTS, y=y, random_state=0)
    return {
        "coordinates": [[round(float(v), 1) for v in point] for point in found.coordinates],
        "classes": y[found.indices].astype(int).tolist(),
    }


def _of_clusters(
    labels: tuple[Labels, Labels], projections: Rows, split: Split, n_clusters: int
) -> dict[str, Any]:
    """Compute the occupancy of training and held-out images, and agreement with classes."""
    train, test = (cluster_occupancy(part, n_clusters) for part in labels)
    scores = clustering_scores(split.y_train, labels[0])
    return {
        "empty": train.empty_fraction,
        "largest": train.largest_relative_size,
        "effective": train.effective_clusters,
        "test_empty": test.empty_fraction,
        "test_largest": test.largest_relative_size,
        "test_effective": test.effective_clusters,
        "test_empty_if_equal": (1 - 1 / n_clusters) ** len(labels[1]),
        "nmi": scores.nmi,
        "acc": scores.accuracy,
        "merged": merged_scores(labels[0], projections, split.y_train),
        "counts": np.sort(np.bincount(labels[0], minlength=n_clusters))[::-1].tolist(),
    }


def merged_scores(labels: Labels, projections: Rows, y: npt.NDArray[Any]) -> list[list[float]]:
    """Return effective clusters, NMI and ACC while the nearest clusters are merged, down to two.

    NMI rises with the number of clusters even if they are random, so methods are compared at equal
    numbers of effective clusters. Ward's criterion on mean projections determines the merges.
    """
    used, compact = np.unique(labels, return_inverse=True)
    if len(used) < 2:
        return [[1.0, 0.0, clustering_scores(y, labels).accuracy]]
    means = np.stack([projections[compact == i].mean(axis=0) for i in range(len(used))])
    tree = linkage(means, method="ward")
    curve = []
    for n_groups in np.unique(np.geomspace(2, len(used), 24).round().astype(int)):
        merged = fcluster(tree, n_groups, criterion="maxclust")[compact] - 1
        scores = clustering_scores(y, merged)
        effective = cluster_occupancy(merged, int(merged.max()) + 1).effective_clusters
        curve.append([effective, scores.nmi, scores.accuracy])
    return curve


def probe(features: tuple[Rows, Rows], split: Split) -> float:
    """Return the accuracy of a linear classifier on standardised features of held-out images.

    The regularisation is chosen on the training images: features with as many dimensions as pixels
    need more of it than those of a network.
    """
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": np.logspace(-4, 0, 5)},
        cv=3,
    )
    return float(search.fit(features[0], split.y_train).score(features[1], split.y_test))
