"""Clusters of frozen features, by the head of ExCB and by k-means with as many clusters.

    python -m benchmarks.frozen packed_clothing_short160 --data DIR \
        --backbone tf_efficientnet_lite0 --weights lite0.safetensors

prints, for each seed, scores of held-out images (NMI, purity, k-NN among the training images) and
the occupancy of the training images. Without ``--weights``, timm downloads the weights. Features
are the same for every seed. The time of a fit includes their computation.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans

from benchmarks.data_sets import Split, load
from evaluation import cluster_occupancy, clustering_scores, knn_accuracy
from sklearn_excb import ExCBEstimator

HEAD = (
    f"{'':<28}{'NMI':>7}{'purity':>8}{'k-NN':>7}{'empty':>8}{'largest':>9}{'effective':>11}"
    f"{'seconds':>9}"
)


def line(name, data: Split, n_clusters, labels, embedded, seconds) -> str:
    """Return a line of scores, from the labels of both splits and the embeddings for k-NN."""
    filled = cluster_occupancy(labels[0], n_clusters)
    scores = clustering_scores(data.y_test, labels[1])
    accuracy = knn_accuracy(embedded[0], data.y_train, embedded[1], data.y_test, k=10)
    return (
        f"{name:<28}{scores.nmi:>7.3f}{scores.purity:>8.3f}{accuracy:>7.3f}"
        f"{filled.empty_fraction:>8.1%}{filled.largest_relative_size:>9.1f}"
        f"{filled.effective_clusters / n_clusters:>11.3f}{seconds:>9.0f}"
    )


def main() -> None:
    """Fit and print scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a data set of benchmarks.data_sets")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default=True, help="file of its weights")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    data = load(arguments.name, arguments.data)
    print(HEAD)
    features = None
    for seed in range(arguments.seeds):
        excb = ExCBEstimator(
            backbone=arguments.backbone,
            pretrained=arguments.weights,
            freeze_backbone=True,
            random_state=seed,
        )
        begun = time.perf_counter()
        excb.fit(data.train)
        seconds = time.perf_counter() - begun
        K = excb.resolved_params_["K"]
        labels = excb.labels_, excb.predict(data.test)
        projections = excb.transform(data.train), excb.transform(data.test)
        print(line(f"frozen, seed {seed}", data, K, labels, projections, seconds), flush=True)
        if features is None:
            excb.set_params(embedding="backbone")
            features = excb.transform(data.train), excb.transform(data.test)
        begun = time.perf_counter()
        kmeans = KMeans(K, n_init=1, random_state=seed).fit(features[0])
        seconds = time.perf_counter() - begun
        found = np.asarray(kmeans.labels_), kmeans.predict(features[1])
        print(line(f"k-means, seed {seed}", data, K, found, features, seconds), flush=True)


if __name__ == "__main__":
    main()
