"""Reports, scores and comparisons of fitted estimators, made with the package ``evaluation``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.image_names import folder_classes, short_names
from sklearn_excb.data.image_sequence import ImageSequence
from sklearn_excb.data.open_source import is_stream
from sklearn_excb.data.sources import Rows, Source
from sklearn_excb.data.unusable_images import skipped_of, warn_skipped
from sklearn_excb.report_baselines import baselines
from sklearn_excb.training.history import MEANINGS

__all__ = [
    "Inferred",
    "compare",
    "evaluate",
    "folder_classes",
    "infer",
    "near_duplicates",
    "report",
    "short_names",
]

if TYPE_CHECKING:
    from sklearn_excb.estimator import ExCBEstimator
    from sklearn_excb.evaluation import OccupancyDisplay, ReportSummary


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
    return _infer(estimator, _open(estimator, X))


def _open(estimator: ExCBEstimator, X: Any) -> Source:
    """Open a collection once, with the warnings about it."""
    if is_stream(X):
        raise ValueError(
            f"X of type {type(X).__name__} can be read only once, but reports and scores read it "
            "several times. Pass a list, an array, a folder or a data set that can be indexed."
        )
    return estimator._open_indexed(X)


def _infer(estimator: ExCBEstimator, source: Source) -> Inferred:
    found = Inferred(*estimator._project_and_label(source))
    warn_skipped(skipped_of(source), len(source))
    return found


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

    Warns
    -----
    BaselineWarning
        If a part of the comparison cannot be computed and is left out.
    """
    from sklearn_excb.evaluation import maps, output_files, write_report

    output_files.check_writable(path)
    fewest = maps.projection.FEWEST_ROWS
    if max_images < fewest:
        raise ValueError(f"max_images={max_images}, expected at least {fewest} images for a map.")
    source = _open(estimator, X)
    seen = _infer(estimator, source)
    classes = None if y is None else np.asarray(y)
    if classes is not None and len(classes) != len(seen.labels):
        raise ValueError(
            f"y has {len(classes)} class labels for {len(seen.labels)} images, expected one label "
            "per image, in the same order."
        )
    K = estimator.resolved_params_["K"]
    names, pictures = None, None
    if not isinstance(source, Rows):
        names, pictures = short_names(source.names), ImageSequence(source)
    compared = {}
    if baseline and (seen.labels >= 0).sum() >= K:
        compared = baselines(estimator, source, seen.projections)
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
        source = _open(estimator, X)
        seen = _infer(estimator, source)
        occupancy = asdict(cluster_occupancy(seen.labels, estimator.resolved_params_["K"]))
        del occupancy["counts"]
        found[name] = {"occupancy": occupancy}
        if y is not None:
            found[name]["clustering"] = asdict(clustering_scores(y, seen.labels))
            rows = np.arange(len(source))
            features += [estimator._results_of(source, rows, "backbone")[0], np.asarray(y)]
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


def near_duplicates(
    estimator: ExCBEstimator, X: Any, **options: Any
) -> list[npt.NDArray[np.int64]]:
    """Find groups of samples that are nearly the same; see :func:`evaluation.near_duplicates`.

    Parameters
    ----------
    estimator : ExCBEstimator
        Fitted estimator.
    X : array, tensor, list, path or data set
        Collection in one of the forms that ``fit`` takes, except streams.
    **options
        ``threshold``, ``tolerance`` and ``n_neighbors`` of :func:`evaluation.near_duplicates`.

    Returns
    -------
    list of ndarray of int64
        Positions in ``X`` of the samples of each group, the largest group first. The names of files
        are ``excb.sample_names_[group]`` if ``X`` was fitted. Skipped images are in no group.

    Raises
    ------
    ValueError
        If the data cannot be used.
    """
    from sklearn_excb.evaluation import near_duplicates as find

    source = _open(estimator, X)
    seen = _infer(estimator, source)
    images = None if isinstance(source, Rows) else ImageSequence(source)
    return find(seen.projections, images, **options)


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
