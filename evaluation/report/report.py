"""A clustering as one HTML file that opens anywhere: figures, a map, every cluster, what is odd."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import (
    SKIPPED,
    check_1d,
    check_cluster_labels,
    check_count,
    check_ids_below,
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
from .images import Thumbnails, make_thumbnails
from .sample import choose

_N_OUTLIERS = 24
_MOST_BLANK = 8  # of these
_NOISE = 12  # of pixels in [0, 255], between the largest and the smallest
_MOST_DUPLICATES = 200  # groups

Baseline = Mapping[str, ArrayLike | tuple[ArrayLike, ArrayLike]]


@dataclass(frozen=True)
class ReportSummary:
    """What a report holds; see `write_report`.

    Attributes
    ----------
    path : Path
        The file.
    n_bytes : int
        Its size.
    n_images : int
        Images that have a cluster.
    n_shown : int
        Of those, the ones that are on the map, with a thumbnail.
    n_skipped : int
        Images left out, because they were skipped.
    suspects : tuple of int
        Clusters that may be junk.
    outliers : tuple of int
        Positions of 24 images at the most: up to 8 of one colour, of those that are shown, then
        the farthest from their neighbours.
    duplicates : tuple of tuples of int
        Positions of the near-duplicates, a tuple a group, the largest first; 200 at the most.
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

    It opens offline, holds no address of anything outside of it, and runs nothing but its own
    script. The same input gives the same file.

    Parameters
    ----------
    path : str or path-like
        The file, replaced if it is there. Whether it can be written is tried first.
    embeddings : array-like of shape (n, d)
        Real rows; one of NaN throughout is an image that was skipped.
    labels : array-like of shape (n,)
        Cluster ids in [0, n_clusters); -1 marks an image that was skipped.
    n_clusters : int, optional
        K; one more than the largest label by default.
    images : ndarray or sequence of n images, optional
        As for `ContactSheetDisplay`; a sequence is read item by item: what is shown, and what may
        be a near-duplicate. Without them the map has points and clusters have names.
    names : sequence of n str, optional
        What each image is called, such as its file; by default its position.
    y : array-like of shape (n,), optional
        Classes, where they are known.
    linkage : array-like of shape (K - 1, 4), optional
        A tree over the clusters as scipy makes it, such as an estimator's ``linkage_``: the report
        then cuts it into as many groups as its reader asks for.
    history : sequence of mappings, optional
        Numbers of each epoch, by name; see `history_charts`.
    history_meanings : mapping of str to str, optional
        What those numbers say, by name.
    params : mapping, optional
        Parameters that made the clusters.
    baseline : mapping, optional
        What to compare with: a name, and labels of the same images or a pair of labels and
        embeddings. Theirs are as many clusters as their largest label says.
    projection : Projection, optional
        The map, made by `project`; t-SNE of what is shown by default.
    title : str, default="Clusters"
        Heading of the page.
    max_images : int, default=10_000
        Images on the map at the most. Of more, the typical, the odd and a random draw are taken.
    random_state : int, default=0
        Of the map and of the draw.

    Returns
    -------
    ReportSummary

    Raises
    ------
    ValueError
        If lengths differ, a value is out of range, or every image was skipped.
    OSError
        If the file cannot be written; raised before anything is computed.
    """
    file = check_writable(path)
    x, labels = check_rows(embeddings, "embeddings"), check_cluster_labels(labels, "labels")
    check_same_length(x, labels, "embeddings", "labels")
    n_clusters = check_count(
        int(labels.max()) + 1 if n_clusters is None else n_clusters, "n_clusters"
    )
    check_ids_below(labels, n_clusters)
    max_images = check_count(max_images, "max_images", minimum=FEWEST_ROWS)
    if images is not None:
        check_same_length(images, labels, "images", "labels")  # pyright: ignore[reportArgumentType]
    if names is not None:
        names = [str(name) for name in names]
        check_same_length(names, labels, "names", "labels")  # pyright: ignore[reportArgumentType]
    if y is not None:
        y = check_1d(y, "y")
        check_same_length(y, labels, "y", "labels")
    labels = np.where(missing_rows(x), SKIPPED, labels)
    if y is not None:
        y = _classes(y, labels)
    if projection is not None:
        _check_projection(projection, labels)
    tree = None if linkage is None else _tree(linkage, n_clusters)
    models = [Model("this clustering", labels, x, n_clusters), *_models(baseline, labels)]

    review = review_clusters(x, labels, n_clusters, random_state=random_state)
    duplicates = _duplicates(review, len(labels), images)
    outliers = review.outliers(_N_OUTLIERS)
    if projection is None:
        shown = choose(review, labels, outliers, duplicates, max_images, y, random_state)
        projection = _map(x, shown, random_state)
    shown = projection.indices
    thumbnails = None if images is None else make_thumbnails(images, shown)
    if thumbnails is not None:  # whatever they are neighbours of, nobody wants blank pictures
        outliers = np.append(np.setdiff1d(_blank(shown, thumbnails), outliers), outliers)
        outliers = outliers[:_N_OUTLIERS]
    figures, meanings = figures_table(models, review, y)
    page = Template(_asset("page.html")).substitute(
        title=escape(title or "Clusters"),
        summary=escape(_summary(review, len(shown))),
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
            review, labels, projection, thumbnails, names, y, tree, duplicates, outliers
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


def _blank(shown: NDArray[np.int64], thumbnails: Thumbnails) -> NDArray[np.int64]:
    """Positions of pictures of one colour but for noise; a few, for there may be calm seas."""
    flattest = np.argsort(thumbnails.contrasts, kind="stable")[:_MOST_BLANK]
    return shown[flattest[thumbnails.contrasts[flattest] <= _NOISE]]


def _classes(y: NDArray, labels: NDArray[np.int64]) -> NDArray[np.str_]:
    """Return the classes as text, or raise if an image that has a cluster has none."""
    if any(each is None or each != each for each in y[labels != SKIPPED].tolist()):
        raise ValueError(
            "y holds NaN or None, needed a class for every image that has a cluster. Leave y out, "
            'or name the unknown: np.where(known, y, "unknown").'
        )
    return y.astype(str)


def _tree(linkage: ArrayLike, n_clusters: int) -> NDArray[np.float64]:
    from scipy.cluster.hierarchy import is_valid_linkage

    tree = np.asarray(linkage, np.float64)
    if len(tree) != n_clusters - 1 or (len(tree) and not is_valid_linkage(tree)):
        raise ValueError(
            f"linkage has shape {tree.shape}, needed a valid one of scipy's over {n_clusters} "
            f"clusters: ({n_clusters - 1}, 4). Pass the estimator's linkage_ as it is."
        )
    return tree


def _duplicates(
    review: ClusterReview, n_images: int, images: Sequence[Any] | NDArray | None
) -> list[NDArray[np.int64]]:
    found = group_pairs(review.searched, review.neighbors, review.similarities, n_images, images)
    return found[:_MOST_DUPLICATES]


def _map(x: NDArray, shown: NDArray[np.int64], random_state: int) -> Projection:
    """t-SNE of the rows that are shown; of few, or of one over and over, a line."""
    if len(shown) < FEWEST_ROWS or not np.ptp(x[shown], axis=0).any():
        line = np.stack([np.arange(len(shown)), np.zeros(len(shown))], axis=1)
        return Projection(line.astype(np.float32), shown, "none", "none")
    flat = project(x[shown], random_state=random_state)
    return Projection(flat.coordinates, shown, flat.method, flat.backend)


def _check_projection(projection: Projection, labels: NDArray[np.int64]) -> None:
    """Raise if a map is not of images that have clusters."""
    shown, places = projection.indices, projection.coordinates
    if places.shape != (len(shown), 2) or not len(shown) or not np.isfinite(places).all():
        raise ValueError(
            f"projection has coordinates of shape {places.shape} and {len(shown)} indices: needed "
            "two finite numbers for each of at least one image."
        )
    if shown.min() < 0 or shown.max() >= len(labels) or (labels[shown] == SKIPPED).any():
        raise ValueError(
            f"projection holds images that were skipped, or are not among the {len(labels)} given: "
            "make it of the rows that have a cluster."
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
            raise ValueError(f"labels of {name!r} are -1 wherever labels are not: nothing is left.")
        models.append(Model(str(name), theirs, embeddings, n_clusters))
    return models


def _pair(given: Any) -> tuple[Any, Any]:
    """Labels and embeddings, or labels alone, which may be a tuple too."""
    if isinstance(given, tuple) and len(given) == 2 and np.ndim(given[0]) == 1:
        return given
    return given, None


def _summary(review: ClusterReview, n_shown: int) -> str:
    n_images = int(review.counts.sum())
    parts = [f"{n_images:,} images in {review.n_clusters:,} clusters"]
    if n_shown < n_images:
        parts.append(f"{n_shown:,} of them are shown here")
    if review.n_skipped:
        parts.append(f"{review.n_skipped:,} more could not be used and are left out")
    return "; ".join(parts) + "."


def _figure(svg: str, lines: Sequence[str]) -> str:
    """Return a chart with the names of its lines under it, where there are several."""
    keys = "".join(
        f'<li class="key line-{place % 6}">{escape(name)}</li>' for place, name in enumerate(lines)
    )
    return f"<figure>{svg}{f'<ul class=keys>{keys}</ul>' if len(lines) > 1 else ''}</figure>"


def _asset(name: str) -> str:
    return (Path(__file__).parent / "report_page" / name).read_text(encoding="utf-8")
