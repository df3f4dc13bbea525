"""Cluster 1,797 images of handwritten digits without their labels, and look at the result.

Run it with ``make demo``, or ``python examples/quickstart.py [--out FOLDER] [--seed SEED]``. The
images come with scikit-learn: nothing is downloaded. It fits 85 % of them, measures on the other
15 %, prints every figure beside those of the untrained network, of raw pixels and of k-means with
as many clusters, and draws a picture.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from evaluation import (
    ContactSheetDisplay,
    OccupancyDisplay,
    ProjectionDisplay,
    cluster_occupancy,
    clustering_scores,
    knn_accuracy,
    project,
)
from sklearn_excb import ExCBEstimator


def embeddings(excb, train, test):
    """Backbone features of both splits."""
    excb.embedding = "backbone"
    features = excb.transform(train), excb.transform(test)
    excb.embedding = "projection"
    return features


def row(name, train, test, y_train, y_test, labels, n_clusters):
    """Figures of one way to embed and to cluster, as a line of the table."""
    scores, filled = clustering_scores(y_train, labels), cluster_occupancy(labels, n_clusters)
    return (
        f"{name:<20}{knn_accuracy(train, y_train, test, y_test, k=10):>8.3f}"
        f"{scores.nmi:>8.3f}{scores.ari:>8.3f}{scores.accuracy:>8.3f}"
        f"{filled.empty_fraction:>9.1%}{filled.largest_relative_size:>9.1f}"
    )


def main():
    """Fit, measure, draw."""
    parser = argparse.ArgumentParser(description="ExCB on scikit-learn's digits.")
    parser.add_argument("--out", type=Path, default=Path("quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    digits = load_digits()
    images = digits.images / 16  # pixels in [0, 1]
    train, test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.15, stratify=digits.target, random_state=0
    )

    excb = ExCBEstimator(random_state=arguments.seed, verbose=1).fit(train)
    untrained = ExCBEstimator(epochs=0, random_state=arguments.seed).fit(train)

    K = excb.resolved_params_["K"]
    pixels = train.reshape(len(train), -1), test.reshape(len(test), -1)
    kmeans = KMeans(K, n_init=3, random_state=0).fit(pixels[0])
    y = y_train, y_test
    print(f"\n{len(train)} images in K = {K} clusters; k-NN (k = 10) on {len(test)} held out\n")
    print(f"{'':<20}{'k-NN':>8}{'NMI':>8}{'ARI':>8}{'ACC':>8}{'empty':>9}{'largest':>9}")
    print(row("ExCB", *embeddings(excb, train, test), *y, excb.labels_, K))
    print(row("untrained network", *embeddings(untrained, train, test), *y, untrained.labels_, K))
    print(row("pixels, k-means", *pixels, *y, kmeans.labels_, K))
    print(
        "\nempty: share of clusters without an image; largest: relative size, 1 is balanced.\n"
        "ARI and ACC are low wherever K is far above the number of classes (10)."
    )

    projections = excb.transform(train)
    figure = plt.figure(figsize=(15, 11), layout="constrained")
    curve, flat, sheet = figure.subplot_mosaic(
        [["occupancy", "sheet"], ["map", "sheet"]], width_ratios=[1, 1.15]
    ).values()
    labels = {"ExCB": excb.labels_, "k-means on pixels": kmeans.labels_}
    OccupancyDisplay.from_predictions(labels, n_clusters=K, ax=curve)
    print("\ndrawing: t-SNE of the embeddings ...")
    tsne = project(projections, method="tsne", random_state=0)
    ProjectionDisplay.from_predictions(tsne, y_train, ax=flat)
    similarity = (projections * excb.cluster_centers_[excb.labels_]).sum(axis=1)
    ContactSheetDisplay.from_predictions(train, excb.labels_, scores=similarity, ax=sheet)
    picture = arguments.out / "digits.png"
    figure.savefig(picture, dpi=110)
    np.save(arguments.out / "labels.npy", excb.labels_)
    print(f"picture: {picture}")


if __name__ == "__main__":
    main()
