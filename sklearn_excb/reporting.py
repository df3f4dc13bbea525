"""Reports, scores and comparisons of fitted estimators, made with the package ``evaluation``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.image_sequence import ImageSequence
from sklearn_excb.data.open_source import are_rows, is_stream, open_source
from sklearn_excb.method.kmeans import spherical_kmeans, unit_rows
from sklearn_excb.training.history import MEANINGS

if TYPE_CHECKING:
    from sklearn_excb.estimator import ExCBEstimator
    from sklearn_excb.evaluation import OccupancyDisplay, ReportSummary

_SEEN_BY = ("backbone", "image_size", "local_size", "head_width", "precision")


class Inferred(NamedTuple):
    """Projections and labels of a collection.

    Attributes
    ----------
    projections : ndarray of shape (n, D), float32
        Projection of each image; NaN for skipped images.
    labels : ndarray of shape (n,), int64
        Cluster of each image; -1 for skipped images.
    """

    projections: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def infer(estimator: ExCBEstimator, X: Any) -> Inferred:
    """Compute projections and labels in one pass over the images.

    Raises
    ------
    ValueError
        If ``X`` can be read only once. Reports and scores read the images several times.
    """
    if is_stream(X):
        raise ValueError(
            f"X of type {type(X).__name__} can be read only once, but reports and scores read it "
            "several times. Pass a list, an array, a folder or a data set that can be indexed."
        )
    return Inferred(*estimator._project_and_label(X))


def report(
    estimator: ExCBEstimator,
    X: Any,
    path: str | os.PathLike[str],
    *,
    y: npt.ArrayLike | None = None,
    baseline: bool = True,
    title: str | None = None,
    max_images: int = 10_000,
) -> ReportSummary:
    """Write a report on a collection as one HTML file; see :func:`evaluation.write_report`.

    Parameters
    ----------
    estimator : ExCBEstimator
        Fitted estimator.
    X : array, tensor, list, path or data set
        Collection in one of the forms that ``fit`` takes, except streams. It may differ from the
        training collection.
    path : str or path-like
        HTML file to write.
    y : array-like of shape (n_samples,), optional
        Class labels, where they are known.
    baseline : bool, default=True
        Whether to compare with k-means with the same number of clusters, on the same projections
        and on the projections of the untrained network. The comparison is left out if there are
        fewer than K images.
    title : str, optional
        Heading of the page; the name of the folder by default.
    max_images : int, default=10_000
        Maximum number of images on the map.

    Returns
    -------
    ReportSummary

    Raises
    ------
    OSError
        If the file cannot be written. This is checked before anything is computed.
    ValueError
        If the data cannot be used.
    """
    from sklearn_excb.evaluation import maps, output_files, write_report

    output_files.check_writable(path)
    fewest = maps.projection.FEWEST_ROWS
    if max_images < fewest:
        raise ValueError(f"max_images={max_images}, needed at least {fewest} images for a map.")
    seen = infer(estimator, X)
    classes = None if y is None else np.asarray(y)
    if classes is not None and len(classes) != len(seen.labels):
        raise ValueError(
            f"y has {len(classes)} class labels for {len(seen.labels)} images, needed one label "
            "per image, in the same order."
        )
    K = estimator.resolved_params_["K"]
    names, pictures = None, None
    if not are_rows(X):
        source = open_source(X, estimator.n_channels_, estimator.on_error)
        names, pictures = short_names(source.names), ImageSequence(source)
    compared = {}
    if baseline and (seen.labels >= 0).sum() >= K:
        compared = _baselines(estimator, X, seen)
    return write_report(
        path,
        embeddings=seen.projections,
        labels=seen.labels,
        n_clusters=K,
        images=pictures,
        names=names,
        y=classes,
        linkage=estimator.linkage_,
        history=estimator.history_,
        history_meanings=MEANINGS,
        params=estimator.resolved_params_,
        baseline=compared,
        title=title or (Path(X).resolve().name if isinstance(X, (str, os.PathLike)) else ""),
        max_images=max_images,
    )


def evaluate(
    estimator: ExCBEstimator,
    train: Any,
    y_train: npt.ArrayLike | None = None,
    test: Any = None,
    y_test: npt.ArrayLike | None = None,
) -> dict[str, Any]:
    """Score a fitted estimator: its clusters and, with class labels, its embeddings.

    Parameters
    ----------
    estimator : ExCBEstimator
        Fitted estimator.
    train, test : array, tensor, list, path or data set
        Collections in one of the forms that ``fit`` takes, except streams; ``test`` is optional.
    y_train, y_test : array-like, optional
        Class labels of the collections.

    Returns
    -------
    dict
        Scores by name. The keys "train" and "test" hold "occupancy" and, with class labels,
        "clustering". With class labels, "knn" holds the accuracy on backbone features by number of
        neighbours; without ``test`` it is measured by leave-one-out. With ``test``, "probe" holds
        the top-1 and top-5 accuracy of a linear probe on backbone features.

    Raises
    ------
    ValueError
        If only one of two collections has class labels, or the data cannot be used.
    """
    from sklearn_excb.evaluation import cluster_occupancy, clustering_scores

    if test is not None and (y_train is None) != (y_test is None):
        raise ValueError(
            "Only one of the two collections has classes. Give classes for both or for neither."
        )
    found: dict[str, Any] = {}
    features = []
    for name, X, y in (("train", train, y_train), ("test", test, y_test)):
        if X is None:
            continue
        seen = infer(estimator, X)
        occupancy = asdict(cluster_occupancy(seen.labels, estimator.resolved_params_["K"]))
        del occupancy["counts"]
        found[name] = {"occupancy": occupancy}
        if y is not None:
            found[name]["clustering"] = asdict(clustering_scores(y, seen.labels))
            features += [_embed(estimator, X, "backbone"), np.asarray(y)]
    if features:
        found |= _accuracies(*features)
    return found


def _accuracies(
    train: npt.NDArray[np.float32],
    y_train: npt.NDArray[Any],
    test: npt.NDArray[np.float32] | None = None,
    y_test: npt.NDArray[Any] | None = None,
) -> dict[str, Any]:
    from sklearn_excb.evaluation import knn_scores, linear_probe_scores

    neighbors = knn_scores(train, y_train, test, y_test)
    found: dict[str, Any] = {"knn": neighbors.accuracy}
    if test is not None and y_test is not None:
        probe = linear_probe_scores(train, y_train, test, y_test)
        found["probe"] = {"top1": probe.top1, f"top{probe.k}": probe.top5}
    return found


def compare(
    estimators: Mapping[str, ExCBEstimator],
) -> tuple[list[dict[str, Any]], OccupancyDisplay]:
    """Compare the clusters of several fits.

    Parameters
    ----------
    estimators : mapping of str to ExCBEstimator
        Fitted estimators, by name.

    Returns
    -------
    rows : list of dict
        One row per estimator: K, number of images, occupancy of ``labels_``, and "agreement". The
        agreement is the adjusted Rand index with the first estimator over the images that both were
        fitted on. It is NaN where the images cannot be matched by name.
    display : OccupancyDisplay
        Plot of the cluster sizes; call ``plot`` to draw it.
    """
    from sklearn_excb.evaluation import OccupancyDisplay, cluster_occupancy

    first = next(iter(estimators.values()))
    rows, occupancies = [], {}
    for name, each in estimators.items():
        occupancy = cluster_occupancy(each.labels_, each.resolved_params_["K"])
        occupancies[name] = occupancy
        rows.append(
            {
                "run": name,
                "K": occupancy.n_clusters,
                "images": occupancy.n_samples,
                "empty_fraction": occupancy.empty_fraction,
                "largest_relative_size": occupancy.largest_relative_size,
                "effective_clusters": occupancy.effective_clusters,
                "agreement": _agreement(first, each),
            }
        )
    return rows, OccupancyDisplay(occupancies)


def _agreement(one: ExCBEstimator, other: ExCBEstimator) -> float:
    """Return the agreement over common images, matched by name, or by position without names."""
    from sklearn_excb.evaluation import stability

    a, b = one.labels_, other.labels_
    if hasattr(one, "sample_names_") and hasattr(other, "sample_names_"):
        _, here, there = np.intersect1d(one.sample_names_, other.sample_names_, return_indices=True)
        a, b = a[here], b[there]
    elif hasattr(one, "sample_names_") or hasattr(other, "sample_names_") or len(a) != len(b):
        return float("nan")
    return stability(a, b) if ((a >= 0) & (b >= 0)).any() else float("nan")


def short_names(names: Sequence[str] | None) -> list[str] | None:
    """Return the names without the folder that contains all files."""
    if names is None or not names:
        return None
    common = os.path.commonpath([os.path.dirname(name) for name in names])
    return [os.path.relpath(name, common) if common else name for name in names]


def folder_classes(folder: str | os.PathLike[str], on_error: str) -> npt.NDArray[Any] | None:
    """Return the parent folder of each image as its class; None if all share one folder."""
    names = open_source(folder, on_error=on_error).names
    classes = np.array([Path(name).parent.name for name in names or ()], dtype=str)
    return classes if len(np.unique(classes)) > 1 else None


def _embed(estimator: ExCBEstimator, X: Any, embedding: str) -> npt.NDArray[np.float32]:
    """Return the given embedding as an array, whatever ``embedding`` the estimator is set to."""
    before = estimator.embedding
    estimator.embedding = embedding
    try:
        return np.asarray(estimator.transform(X))
    finally:
        estimator.embedding = before


def _nearest(
    rows: npt.NDArray[np.float32], centroids: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    from sklearn_excb.evaluation import nearest_neighbors

    return nearest_neighbors(rows, centroids, 1, metric="dot")[1][:, 0]


def _baselines(
    estimator: ExCBEstimator, X: Any, seen: Inferred
) -> dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Run k-means with K clusters on the projections and on those of the untrained network."""
    given = estimator.get_params(deep=False)
    resolved = estimator.resolved_params_
    # the same network, even if "auto" would resolve differently for this collection
    same = {
        name: resolved[name]
        for name, value in given.items()
        if name in _SEEN_BY and value == "auto"
    }
    untrained = type(estimator)(**given | same).set_params(
        K=resolved["K"], epochs=0, settle_passes=0, verbose=0, random_state=resolved["random_state"]
    )
    rows = {
        "k-means on the same embeddings": seen.projections,
        "untrained network, k-means": _embed(untrained.fit(X), X, "projection"),
    }
    found = {}
    for name, projections in rows.items():
        labels, kept = np.full(len(projections), -1), ~np.isnan(projections[:, 0])
        unit = unit_rows(projections[kept])
        start = spherical_kmeans(unit, resolved["K"], seed=resolved["random_state"])
        labels[kept] = _nearest(unit, start.unit)
        found[name] = labels, projections
    return found
