"""Cluster 1,797 images of handwritten digits without their labels, and look at the result.

Run it with ``make demo``, or ``python examples/quickstart.py [--out FOLDER] [--seed SEED]``. The
images come with scikit-learn; nothing is downloaded. The script fits 85 % of the images and tests
on the other 15 %. It prints a table of scores, with those of the untrained network and of k-means
with the same number of clusters, draws a picture, and writes a report to open in a browser.
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
from sklearn_excb.reporting import report

N_COLUMNS = 3  # columns of the contact sheet


def features(excb, *splits):
    """Return the backbone features of each split."""
    excb.set_params(embedding="backbone")
    found = [excb.transform(split) for split in splits]
    excb.set_params(embedding="projection")
    return found


def kmeans_labels(rows, n_clusters):
    """Return the labels of k-means, the best of three initialisations."""
    return KMeans(n_clusters, n_init=3, random_state=0).fit_predict(rows)


def figures(name, embeddings, y, labels, n_clusters):
    """Return one line of the table, for the embeddings of both splits and a clustering."""
    (train, test), (y_train, y_test) = embeddings, y
    scores, filled = clustering_scores(y_train, labels), cluster_occupancy(labels, n_clusters)
    return (
        f"{name:<30}{knn_accuracy(train, y_train, test, y_test, k=10):>7.3f}"
        f"{scores.nmi:>8.3f}{scores.ari:>8.3f}{scores.accuracy:>8.3f}"
        f"{filled.empty_fraction:>9.1%}{filled.largest_relative_size:>9.1f}"
    )


def draw(excb, images, y, kmeans, n_clusters):
    """Plot the occupancy, a map of the embeddings, and a row of images for every cluster."""
    projections, labels = excb.transform(images), excb.labels_
    figure = plt.figure(figsize=(16, 18), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=[1, 1.65])
    top, bottom = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    curve, flat = top.subplots(1, 2)
    models = {"ExCB": labels, "k-means on pixels": kmeans}
    OccupancyDisplay.from_predictions(models, n_clusters=n_clusters, ax=curve)
    flat_map = project(projections, method="tsne", random_state=0)
    title = "t-SNE of the embeddings, coloured by digit"
    ProjectionDisplay.from_predictions(flat_map, y, title=title, ax=flat)

    similarity = (projections * excb.cluster_centers_[labels]).sum(axis=1)
    by_size = np.argsort(-np.bincount(labels, minlength=n_clusters), kind="stable")
    columns = zip(bottom.subplots(1, N_COLUMNS), np.array_split(by_size, N_COLUMNS), strict=True)
    for axes, clusters in columns:
        shown = np.where(np.isin(labels, clusters), labels, -1)
        ContactSheetDisplay.from_predictions(
            images, shown, scores=similarity, n_clusters=len(clusters), ax=axes
        )
        axes.set_title("", loc="left")
        axes.set_anchor("N")
    bottom.suptitle("The most typical images of each cluster, the largest cluster first")
    return figure


def main():
    """Fit the estimator, print scores, draw a picture and write a report."""
    parser = argparse.ArgumentParser(description="ExCB on scikit-learn's digits.")
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the fit")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    digits = load_digits()
    images = digits.images / 16  # pixels in [0, 1]
    train, test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.15, stratify=digits.target, random_state=0
    )

    # twice the size of the images; the defaults use 32 pixels and take six times as long
    small = {"image_size": 16, "local_size": 8, "random_state": arguments.seed}
    excb = ExCBEstimator.from_recipe("tiny", **small, verbose=1).fit(train)
    untrained = ExCBEstimator.from_recipe("tiny", **small | {"epochs": 0}).fit(train)

    K = excb.resolved_params_["K"]
    y = y_train, y_test
    pixels = train.reshape(len(train), -1), test.reshape(len(test), -1)
    before, after = features(untrained, train, test), features(excb, train, test)
    on_pixels, on_untrained = kmeans_labels(pixels[0], K), kmeans_labels(before[0], K)
    print(
        f"\n{len(train)} images in K = {K} clusters; k-NN (k = 10) of {len(test)} held-out images\n"
        f"\n{'':<30}{'k-NN':>7}{'NMI':>8}{'ARI':>8}{'ACC':>8}{'empty':>9}{'largest':>9}"
    )
    print(figures("ExCB", after, y, excb.labels_, K))
    print(figures("untrained network", before, y, untrained.labels_, K))
    print(figures("untrained network, k-means", before, y, on_untrained, K))
    print(figures("raw pixels, k-means", pixels, y, on_pixels, K))
    print(
        "\nempty: share of clusters without an image; largest: size of the largest cluster divided "
        "by the\nmean size, 1 is balanced. ARI and ACC are low if K is far above the number of "
        "classes, 10.\n"
    )

    picture = arguments.out / "digits.png"
    draw(excb, train, y_train, on_pixels, K).savefig(picture, dpi=80)
    print(f"picture: {picture}")
    page = report(excb, train, arguments.out / "report.html", y=y_train, title="Digits").path
    print(f"report:  {page}")


if __name__ == "__main__":
    main()
