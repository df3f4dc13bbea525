"""The report: figures, a map, all clusters and odd images of a clustering, in one HTML file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import known_values
from .._checks import (
    SKIPPED,
    check_classes,
    check_cluster_labels,
    check_count,
    check_images,
    check_n_clusters,
    check_rows,
    check_same_length,
    missing_rows,
)
from ..clusters.duplicates import group_pairs
from ..clusters.review import ClusterReview, review_clusters
from ..maps.projection import FEWEST_ROWS, Projection, project
from ..output_files import check_writable, replacing
from .charts import history_charts, meanings_list, occupancy_chart
from .data import page_data
from .figures import Model, figures_table, parameters_table
from .images import make_thumbnails
from .sample import choose

_N_OUTLIERS = 24
_NO_CLASS = "(no class)"
_MOST_DUPLICATES = 200  # groups of near-duplicates

Baseline = Mapping[str, ArrayLike | tuple[ArrayLike, ArrayLike]]


@dataclass(frozen=True)
class ReportSummary:
    """Summary of a report; see `write_report`.

    Attributes
    ----------
    path : Path
        Path of the HTML file.
    n_bytes : int
        Size of the file in bytes.
    n_images : int
        Number of images that have a cluster.
    n_shown : int
        Number of images on the map.
    n_skipped : int
        Number of skipped images, which the report leaves out.
    suspects : tuple of int
        Loose clusters, those of `ClusterReview.suspects`.
    outliers : tuple of int
        Positions of at most 24 odd images, those of `ClusterReview.outliers`.
    duplicates : tuple of tuples of int
        Positions of the near-duplicates, one tuple per group, the largest group first; at most 200
        groups.
    """

    path: Path
    n_bytes: int
    n_images: int
    n_shown: int
    n_skipped: int
    suspects: tuple[int, ...]
    outliers: tuple[int, ...] = field(repr=False)
    duplicates: tuple[tuple[int, ...], ...] = field(repr=False)


def write_report(
    path: str | os.PathLike[str],
    *,
    embeddings: ArrayLike,
    labels: ArrayLike,
    n_clusters: int | None = None,
    images: Sequence[Any] | NDArray | None = None,
    names: Sequence[str] | None = None,
    y: ArrayLike | None = None,
    linkage: ArrayLike | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    history_meanings: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    baseline: Baseline | None = None,
    projection: Projection | None = None,
    title: str = "Clusters",
    max_images: int = 10_000,
    random_state: int = 0,
) -> ReportSummary:
    """Write a clustering as one self-contained HTML file.

    The page opens offline, refers to nothing outside the file, and runs only its own script. The
    same input gives the same file.

    Parameters
    ----------
    path : str or path-like
        HTML file to write; an existing file is replaced. The function checks that it can write the
        file before it computes anything.
    embeddings : array-like of shape (n, d)
        Embeddings, real numbers. A row of NaN marks a skipped image.
    labels : array-like of shape (n,)
        Cluster ids in [0, n_clusters); -1 marks a skipped image.
    n_clusters : int, optional
        Number of clusters K; one more than the largest label by default.
    images : ndarray or sequence of n images, optional
        Images in one of the forms that `ContactSheetDisplay` takes. From a sequence, only images
        that are shown, and at most 50,000 that may be odd or near-duplicates, are read. Without
        images, the map shows points and the clusters show names.
    names : sequence of n str, optional
        Name of each image, such as its file name; its position by default.
    y : array-like of shape (n,), optional
        Class labels, where they are known. Figures leave out images without a class (None, NaN),
        and the page counts them.
    linkage : array-like of shape (K - 1, 4), optional
        Tree of the clusters in SciPy's linkage format, such as ``linkage_`` of an estimator. With
        it, the reader of the report can merge the clusters into any number of groups.
    history : sequence of mappings, optional
        Figures of each epoch, by name, for the charts of the training.
    history_meanings : mapping of str to str, optional
        Explanations of these figures, by name.
    params : mapping, optional
        Parameters that produced the clusters.
    baseline : mapping, optional
        Other clusterings of the same images, by name: labels, or a pair of labels and embeddings.
        The number of clusters of each is one more than its largest label.
    projection : Projection, optional
        Map of the images, made by `project`; t-SNE of the shown images by default.
    title : str, default="Clusters"
        Heading of the page.
    max_images : int, default=10_000
        Maximum number of images on the map. A larger collection is represented by typical images,
        odd images and a random draw.
    random_state : int, default=0
        Seed of the map and of the random draw.

    Returns
    -------
    ReportSummary

    Raises
    ------
    ValueError
        If lengths differ, a value is out of range, or all images were skipped.
    OSError
        If the file cannot be written. This is checked before anything is computed.
    """
    file = check_writable(path)
    x, labels = check_rows(embeddings, "embeddings"), check_cluster_labels(labels, "labels")
    check_same_length(x, labels, "embeddings", "labels")
    n_clusters = check_n_clusters(n_clusters, labels)
    max_images = check_count(max_images, "max_images", minimum=FEWEST_ROWS)
    if images is not None:
        check_images(images, labels, "labels")
    if names is not None:
        names = [str(name) for name in names]
        check_same_length(names, labels, "names", "labels")  # pyright: ignore[reportArgumentType]
    labels = np.where(missing_rows(x), SKIPPED, labels)
    classes = None if y is None else _classes(y, labels)
    written = None  # with a name for those that are missing
    if classes is not None:
        written = np.where(known_values(classes), classes, _NO_CLASS).astype(str)
    if projection is not None:
        _check_projection(projection, labels)
    tree = None if linkage is None else _tree(linkage, n_clusters)
    models = [Model("this clustering", labels, x, n_clusters), *_models(baseline, labels)]

    review = review_clusters(x, labels, n_clusters, images=images, random_state=random_state)
    duplicates = _duplicates(review, len(labels), images)
    outliers = review.outliers(_N_OUTLIERS)
    if projection is None:
        shown = choose(review, labels, outliers, duplicates, max_images, written, random_state)
        projection = _map(x, shown, random_state)
    shown = projection.indices
    thumbnails = None if images is None else make_thumbnails(images, shown)
    figures, meanings = figures_table(models, review, classes)
    page = Template(_asset("page.html")).substitute(
        title=escape(title or "Clusters"),
        summary=escape(_summary(review, len(shown), classes, labels)),
        style=_asset("page.css"),
        script="\n".join(
            _asset(name) for name in ("report.js", "map.js", "clusters.js", "page.js")
        ),
        figures=figures,
        meanings=meanings,
        occupancy=_figure(
            occupancy_chart({model.name: model.relative_sizes for model in models}),
            [model.name for model in models],
        ),
        training="".join(
            f"<div><h3>{escape(name)}</h3>{_figure(svg, lines)}</div>"
            for name, svg, lines in history_charts(history or [])
        ),
        training_meanings=meanings_list(history or [], history_meanings or {}),
        parameters=parameters_table(params or {}),
        data=page_data(
            review, labels, projection, thumbnails, names, written, tree, duplicates, outliers
        ),
        sheets="\n".join(
            f'<script type="text/plain" class="sheet">{sheet}</script>'
            for sheet in (thumbnails.sheets if thumbnails else [])
        ),
    )
    encoded = page.encode("utf-8", errors="replace")
    with replacing(file) as beside:
        beside.write_bytes(encoded)
    return ReportSummary(
        path=file,
        n_bytes=len(encoded),
        n_images=int(review.counts.sum()),
        n_shown=len(shown),
        n_skipped=review.n_skipped,
        suspects=tuple(review.suspects.tolist()),
        outliers=tuple(outliers.tolist()),
        duplicates=tuple(tuple(group.tolist()) for group in duplicates),
    )


def _classes(y: ArrayLike, labels: NDArray[np.int64]) -> NDArray[np.object_]:
    """Return the classes as text, None where they are missing."""
    classes, known = check_classes(y, "y")
    check_same_length(classes, labels, "y", "labels")
    found = classes.astype(str).astype(object)
    found[~known] = None
    return found


def _tree(linkage: ArrayLike, n_clusters: int) -> NDArray[np.float64]:
    from scipy.cluster.hierarchy import is_valid_linkage

    tree = np.asarray(linkage, np.float64)
    sound = np.isfinite(tree).all()
    if len(tree) != n_clusters - 1 or not sound or (len(tree) and not is_valid_linkage(tree)):
        raise ValueError(
            f"linkage has shape {tree.shape}{'' if sound else ' and holds NaN or infinity'}, "
            f"expected a valid SciPy linkage of {n_clusters} clusters, of shape ({n_clusters - 1}, "
            "4). Pass the estimator's linkage_ unchanged."
        )
    return tree


def _duplicates(
    review: ClusterReview, n_images: int, images: Sequence[Any] | NDArray | None
) -> list[NDArray[np.int64]]:
    found = group_pairs(review.searched, review.neighbors, review.similarities, n_images, images)
    return found[:_MOST_DUPLICATES]


def _map(x: NDArray, shown: NDArray[np.int64], random_state: int) -> Projection:
    """Return a t-SNE map of the shown rows; a line if there are few rows."""
    if len(shown) < FEWEST_ROWS:
        line = np.stack([np.arange(len(shown)), np.zeros(len(shown))], axis=1)
        return Projection(line.astype(np.float32), shown, "none", "none")
    flat = project(x[shown], random_state=random_state)
    return Projection(flat.coordinates, shown, flat.method, flat.backend)


def _check_projection(projection: Projection, labels: NDArray[np.int64]) -> None:
    """Raise if a map has invalid coordinates or images without a cluster."""
    shown, places = projection.indices, projection.coordinates
    if places.shape != (len(shown), 2) or not len(shown) or not np.isfinite(places).all():
        raise ValueError(
            f"projection has coordinates of shape {places.shape} and {len(shown)} indices, "
            "expected "
            "two finite numbers for each index, and at least one image."
        )
    if shown.min() < 0 or shown.max() >= len(labels) or (labels[shown] == SKIPPED).any():
        raise ValueError(
            f"projection holds images that were skipped or are not among the {len(labels)} given. "
            "Project only rows that have a cluster."
        )


def _models(baseline: Baseline | None, labels: NDArray[np.int64]) -> list[Model]:
    models = []
    for name, given in (baseline or {}).items():
        theirs, embeddings = _pair(given)
        theirs = check_cluster_labels(theirs, f"labels of {name!r}")
        check_same_length(theirs, labels, f"labels of {name!r}", "labels")
        if embeddings is not None:
            embeddings = check_rows(embeddings, f"embeddings of {name!r}")
            check_same_length(embeddings, labels, f"embeddings of {name!r}", "labels")
        n_clusters = int(theirs.max()) + 1
        theirs = np.where(labels == SKIPPED, SKIPPED, theirs)
        if (theirs == SKIPPED).all():
            raise ValueError(
                f"labels of {name!r} are -1 for every image that has a cluster in labels, expected "
                "at least one image with a cluster in both."
            )
        models.append(Model(str(name), theirs, embeddings, n_clusters))
    return models


def _pair(given: Any) -> tuple[Any, Any]:
    """Return labels and embeddings, or labels and None; labels alone may be a tuple."""
    if isinstance(given, tuple) and len(given) == 2 and np.ndim(given[0]) == 1:
        return given
    return given, None


def _summary(
    review: ClusterReview,
    n_shown: int,
    classes: NDArray[np.object_] | None,
    labels: NDArray[np.int64],
) -> str:
    n_images = int(review.counts.sum())
    parts = [f"{n_images:,} images in {review.n_clusters:,} clusters"]
    if n_shown < n_images:
        parts.append(f"The page shows {n_shown:,} of them; the figures cover all")
    if review.n_skipped:
        parts.append(f"{review.n_skipped:,} more could not be used and are left out")
    without = 0 if classes is None else int((~known_values(classes) & (labels != SKIPPED)).sum())
    if without:
        parts.append(f"{without:,} have no class, and figures about classes leave them out")
    return ". ".join(parts) + "."


def _figure(svg: str, lines: Sequence[str]) -> str:
    """Return a chart, with a legend if it has several lines."""
    keys = "".join(
        f'<li class="key line-{place % 6}">{escape(name)}</li>' for place, name in enumerate(lines)
    )
    return f"<figure>{svg}{f'<ul class=keys>{keys}</ul>' if len(lines) > 1 else ''}</figure>"


def _asset(name: str) -> str:
    return (Path(__file__).parent / "report_page" / name).read_text(encoding="utf-8")
