"""Clustering into as many clusters as classes: deep clustering methods against coarse groups.

    pip install clustpy==0.0.3
    python -m benchmarks.into_classes

The script clusters digits into ten clusters by ClustPy's DEC, IDEC and DCN (autoencoders of pixel
rows, with all of their defaults), by merging the clusters of one fit of ExCB, and by k-means on
pixels and on ExCB's features. For each seed and method it prints ACC and NMI of the clustered
images, the relative size of the largest cluster (1 is balanced), and the processor time in seconds.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from importlib import import_module

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from benchmarks.data_sets import load
from evaluation import cluster_occupancy, clustering_scores
from sklearn_excb import ExCBEstimator

DEEP = ("DEC", "IDEC", "DCN")
Labels = npt.NDArray[np.int64]


def methods(
    images: npt.NDArray[np.float64], n_clusters: int, seed: int
) -> Iterator[tuple[str, Callable[[], Labels]]]:
    """Return functions that cluster the images, by name; ExCB's features need its fit first."""
    deep_methods = import_module("clustpy.deep")
    rows = images.reshape(len(images), -1).astype(np.float32)
    for name in DEEP:
        deep = getattr(deep_methods, name)(n_clusters=n_clusters, random_state=seed)
        yield name, lambda deep=deep: deep.fit(rows).labels_
    excb = ExCBEstimator(random_state=seed, embedding="backbone")
    yield "ExCB, groups", lambda: excb.fit(images).predict(images, n_groups=n_clusters)
    kmeans = KMeans(n_clusters, n_init=10, random_state=seed)
    yield "k-means, ExCB's features", lambda: kmeans.fit_predict(excb.transform(images))
    yield "k-means, pixels", lambda: kmeans.fit_predict(rows)


def main() -> None:
    """Cluster the images and print scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    data = load("digits", None)
    n_classes = len(np.unique(data.y_train))
    print(f"{'':<34}{'ACC':>7}{'NMI':>7}{'largest':>9}{'seconds':>9}", flush=True)
    for seed in range(arguments.seeds):
        for name, cluster in methods(data.train, n_classes, seed):
            begun = time.process_time()
            labels = cluster()
            seconds = time.process_time() - begun
            scores = clustering_scores(data.y_train, labels)
            largest = cluster_occupancy(labels, n_classes).largest_relative_size
            print(
                f"{f'{name}, seed {seed}':<34}{scores.accuracy:>7.3f}{scores.nmi:>7.3f}"
                f"{largest:>9.1f}{seconds:>9.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
