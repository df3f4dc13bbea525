"""A report of some digits, and what goes into it."""

from types import SimpleNamespace

import numpy as np
from scipy.cluster.hierarchy import linkage
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from evaluation import Projection, write_report

K = 70
HOSTILE = "<img src=x onerror=alert(1)>\"'&\u2028.png"


def digits(n=600):
    rows = load_digits()
    return SimpleNamespace(data=rows.data[:n], images=rows.images[:n] / 16, target=rows.target[:n])


def written_report(path):
    """A report of 600 digits in 70 clusters, two of them empty, and what went into it."""
    found = digits()
    kmeans = KMeans(K - 2, n_init=1, random_state=0).fit(found.data)
    labels = kmeans.labels_.copy()
    labels[np.arange(20, 580, 40)] = 3  # what looks like nothing else in there
    labels[7] = -1
    centers = np.concatenate([kmeans.cluster_centers_, kmeans.cluster_centers_[:2] + 1])
    names = [f"digits/{i:04d}.png" for i in range(len(labels))]
    names[11] = HOSTILE
    history = [
        {"epoch": i, "loss": 4 - i / 9, "projector_loss": 4.1 - i / 9, "empty_fraction": None}
        for i in range(5)
    ]
    generator = np.random.default_rng(0)
    coordinates = generator.random((599, 2), np.float32)
    projection = Projection(coordinates, np.flatnonzero(labels >= 0), "tsne", "made up")
    given = {
        "embeddings": found.data,
        "labels": labels,
        "n_clusters": K,
        "images": found.images,
        "names": names,
        "y": found.target,
        "linkage": linkage(centers, "ward"),
        "history": history,
        "params": {"K": K, "random_state": 0, "weight_decay": (1e-4, 1e-4)},
        "baseline": {"by chance": generator.permutation(labels % 5)},
        "projection": projection,
        "title": "Digits <3",
    }
    return SimpleNamespace(path=path, given=given, summary=write_report(path, **given))
