"""Clusterings of rows, each with its usual settings: labels of training and of held-out rows.

HDBSCAN and mixtures of Gaussians see the first 50 principal components, as is usual. "unit rows"
have length 1, and "spherical k-means" takes the directions of rows from their mean. FAISS has no
balanced assignment and is not among the methods. TURTLE and TEMI are for as many clusters as
classes, as in their papers. Optional methods need ``evoc`` and
``k-means-constrained``, from PyPI.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from benchmarks._temi import temi
from benchmarks._turtle import turtle
from sklearn_excb import ExCBEstimator
from sklearn_excb.method.kmeans import spherical_kmeans, unit_rows

Rows = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Found = tuple[Labels, Labels | None]
COMPONENTS = 50


class Method(NamedTuple):
    """A clustering method.

    Attributes
    ----------
    cluster : callable
        Function of training rows, held-out rows, the number of clusters and the seed. It returns
        the labels of both; None for held-out rows if the method cannot predict.
    finds_k : bool
        Whether the method determines the number of clusters and ignores the given one.
    seeded : bool
        Whether the result depends on the seed.
    package : str, optional
        Package that has to be installed.
    few_only : bool
        Whether the method is for as many clusters as classes only.
    limited : bool
        Whether the method may take very long, and is stopped after a time limit.
    compiled : bool
        Whether the method compiles code for each size of data, at its first call.
    revision : int
        Number to increase if a change of the code changes the results.
    """

    cluster: Callable[[Rows, Rows, int, int], Found]
    finds_k: bool = False
    seeded: bool = True
    package: str | None = None
    few_only: bool = False
    limited: bool = False
    compiled: bool = False
    revision: int = 1

    @property
    def installed(self) -> bool:
        """Whether the package of the method is installed."""
        return self.package is None or find_spec(self.package) is not None


def _k_means(train: Rows, held_out: Rows, K: int, seed: int) -> Found:
    kmeans = KMeans(K, n_init=10, random_state=seed).fit(train)
    return kmeans.labels_.astype(np.int64), kmeans.predict(held_out).astype(np.int64)


def _k_means_unit(train: Rows, held_out: Rows, K: int, seed: int) -> Found:
    return _k_means(unit_rows(train), unit_rows(held_out), K, seed)


def _spherical(train: Rows, held_out: Rows, K: int, seed: int) -> Found:
    mean = train.mean(axis=0)
    start = spherical_kmeans(train - mean, K, seed=seed, n_starts=10)
    labels, others = (((rows - mean) @ start.unit.T).argmax(axis=1) for rows in (train, held_out))
    return labels, others


def _gaussians(covariance: str) -> Callable[[Rows, Rows, int, int], Found]:
    def cluster(train: Rows, held_out: Rows, K: int, seed: int) -> Found:
        train, held_out = _components(train, held_out)
        mixture: Any = GaussianMixture(K, covariance_type=covariance, random_state=seed)
        mixture.fit(train.astype(np.float64))
        return mixture.predict(train), mixture.predict(held_out)

    return cluster


def _components(train: Rows, held_out: Rows) -> tuple[Rows, Rows]:
    if train.shape[1] <= COMPONENTS:
        return train, held_out
    pca = PCA(COMPONENTS, random_state=0).fit(train)
    return pca.transform(train), pca.transform(held_out)


def _ward(train: Rows, held_out: Rows, K: int, seed: int) -> Found:
    return AgglomerativeClustering(K).fit_predict(train).astype(np.int64), None


def _hdbscan(train: Rows, held_out: Rows, K: int, seed: int) -> Found:
    return HDBSCAN(copy=True).fit_predict(_components(train, held_out)[0]).astype(np.int64), None


def _evoc(train: Rows, held_out: Rows, K: int, seed: int, **settings: Any) -> Found:
    evoc = import_module("evoc").EVoC(random_state=seed, **settings)
    return np.asarray(evoc.fit_predict(train)).astype(np.int64), None


def _evoc_near_k(train: Rows, held_out: Rows, K: int, seed: int) -> Found:
    return _evoc(train, held_out, K, seed, approx_n_clusters=K)


def _constrained(train: Rows, held_out: Rows, K: int, seed: int) -> Found:
    n = len(train)
    kmeans = import_module("k_means_constrained").KMeansConstrained(
        K, size_min=n // K, size_max=-(-n // K), n_init=1, random_state=seed
    )
    labels = kmeans.fit_predict(train).astype(np.int64)
    centers = kmeans.cluster_centers_.astype(np.float32)
    distances = (centers**2).sum(axis=1) - 2 * held_out @ centers.T
    return labels, distances.argmin(axis=1)


def _excb(**parameters: Any) -> Callable[[Rows, Rows, int, int], Found]:
    def cluster(train: Rows, held_out: Rows, K: int, seed: int) -> Found:
        excb = ExCBEstimator(K, random_state=seed, **parameters).fit(train)
        return excb.labels_, excb.predict(held_out)

    return cluster


METHODS: dict[str, Method] = {
    "k-means": Method(_k_means),
    "k-means, unit rows": Method(_k_means_unit),
    "spherical k-means": Method(_spherical),
    "Gaussians, diagonal": Method(_gaussians("diag")),
    "Gaussians, full": Method(_gaussians("full"), few_only=True),
    "Ward": Method(_ward, seeded=False),
    "HDBSCAN": Method(_hdbscan, finds_k=True, seeded=False),
    "EVoC": Method(_evoc, finds_k=True, package="evoc", compiled=True),
    "EVoC, near K": Method(_evoc_near_k, package="evoc", compiled=True),
    "k-means-constrained": Method(_constrained, package="k_means_constrained", limited=True),
    "TURTLE": Method(turtle, few_only=True, limited=True),
    "TEMI": Method(temi, few_only=True, limited=True),
    "ExCB": Method(_excb()),
    "ExCB, noise": Method(_excb(views="noise", size_tolerance=1)),
}
