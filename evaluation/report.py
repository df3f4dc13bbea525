"""A clustering as one HTML file that opens anywhere: figures, a map, every cluster, what is odd."""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation._checks import (
    SKIPPED,
    check_1d,
    check_cluster_labels,
    check_count,
    check_rows,
    check_same_length,
)
from evaluation.duplicates import group_pairs
from evaluation.output_files import check_writable, replace_file
from evaluation.projection import Projection, project
from evaluation.report_charts import history_charts, occupancy_chart
from evaluation.report_figures import Model, figures_table, parameters_table
from evaluation.report_images import Thumbnails, make_thumbnails
from evaluation.report_sample import choose
from evaluation.review import ClusterReview, review_clusters

_N_OUTLIERS = 24
_MOST_DUPLICATES = 200  # groups
_N_NEIGHBORS = 6  # of each image, in its details
_FEWEST_ON_A_MAP = 4
_NONE = 0xFFFFFFFF

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
    n_ignored : int
        Images left out, because they were skipped.
    suspects : tuple of int
        Clusters that may be junk.
    n_duplicates : int
        Groups of near-duplicates.
    """

    path: Path
    n_bytes: int
    n_images: int
    n_shown: int
    n_ignored: int
    suspects: tuple[int, ...]
    n_duplicates: int


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
        As for `ContactSheetDisplay`; of a sequence, only what is shown is read, item by item.
        Without them the map has points and clusters have names.
    names : sequence of n str, optional
        What each image is called, such as its file; by default its position.
    y : array-like of shape (n,), optional
        Classes, where they are known.
    linkage : array-like of shape (K - 1, 4), optional
        A tree over the clusters as scipy makes it, such as an estimator's ``linkage_``: the report
        then cuts it into as many groups as its reader asks for.
    history : sequence of mappings, optional
        Numbers of each epoch, by name; see `history_charts`.
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
    max_images = check_count(max_images, "max_images", minimum=4)
    if images is not None:
        check_same_length(images, labels, "images", "labels")  # pyright: ignore[reportArgumentType]
    if names is not None:
        names = [str(name) for name in names]
        check_same_length(names, labels, "names", "labels")  # pyright: ignore[reportArgumentType]
    if y is not None:
        y = check_1d(y, "y").astype(str)
        check_same_length(y, labels, "y", "labels")

    review = review_clusters(x, labels, n_clusters, random_state=random_state)
    tree = None if linkage is None else _tree(linkage, review.n_clusters)
    labels = np.where(np.isnan(review.typicality), SKIPPED, labels)
    duplicates = _duplicates(review, len(labels), images)
    outliers = review.outliers(_N_OUTLIERS)
    if projection is None:
        shown = choose(review, labels, outliers, duplicates, max_images, y, random_state)
        projection = _map(x, shown, random_state)
    _check_projection(projection, labels)
    shown = projection.indices
    thumbnails = None if images is None else make_thumbnails(images, shown)
    models = [
        Model("this clustering", labels, x, review.n_clusters),
        *_models(baseline, labels),
    ]
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
        parameters=parameters_table(params or {}),
        data=_json(
            _data(review, labels, projection, thumbnails, names, y, tree, duplicates, outliers)
        ),
        sheets="\n".join(
            f'<script type="text/plain" class="sheet">{sheet}</script>'
            for sheet in (thumbnails.sheets if thumbnails else [])
        ),
    )
    encoded = page.encode("utf-8", errors="replace")
    replace_file(file, encoded)
    return ReportSummary(
        path=file,
        n_bytes=len(encoded),
        n_images=int(review.counts.sum()),
        n_shown=len(shown),
        n_ignored=review.n_ignored,
        suspects=tuple(review.suspects.tolist()),
        n_duplicates=len(duplicates),
    )


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
    if len(shown) < _FEWEST_ON_A_MAP or not np.ptp(x[shown], axis=0).any():
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
        theirs, embeddings = given if isinstance(given, tuple) else (given, None)
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


def _summary(review: ClusterReview, n_shown: int) -> str:
    n_images = int(review.counts.sum())
    parts = [f"{n_images:,} images in {review.n_clusters:,} clusters"]
    if n_shown < n_images:
        parts.append(f"{n_shown:,} of them are shown here")
    if review.n_ignored:
        parts.append(f"{review.n_ignored:,} more could not be used and are left out")
    return "; ".join(parts) + "."


def _figure(svg: str, lines: Sequence[str]) -> str:
    """Return a chart with the names of its lines under it, where there are several."""
    keys = "".join(
        f'<li class="key line-{place % 6}">{escape(name)}</li>' for place, name in enumerate(lines)
    )
    return f"<figure>{svg}{f'<ul class=keys>{keys}</ul>' if len(lines) > 1 else ''}</figure>"


def _data(
    review: ClusterReview,
    labels: NDArray[np.int64],
    projection: Projection,
    thumbnails: Thumbnails | None,
    names: Sequence[str] | None,
    y: NDArray | None,
    tree: NDArray[np.float64] | None,
    duplicates: Sequence[NDArray[np.int64]],
    outliers: NDArray[np.int64],
) -> dict[str, Any]:
    """What the script of the page reads; images by their place among those that are shown."""
    shown = projection.indices
    places, span = _on_the_page(projection.coordinates)
    place = np.full(len(labels), -1)
    place[shown] = np.arange(len(shown))
    data: dict[str, Any] = {
        "names": [_name(names, i) for i in shown],
        "label": _packed(labels[shown], np.uint32),
        "x": _packed(places[:, 0], np.uint16),
        "y": _packed(places[:, 1], np.uint16),
        "span": {"x": float(span[0]), "y": float(span[1])},
        "typicality": _packed(review.typicality[shown], np.float32),
        "doubt": _packed(review.doubt[shown], np.float32),
        "neighbors": _packed(_neighbors(review, place, shown), np.uint32),
        "counts": _packed(review.counts, np.uint32),
        "tightness": _packed(review.tightness, np.float32),
        "clusterDoubt": _packed(review.cluster_doubt, np.float32),
        "suspects": review.suspects.tolist(),
        "outliers": [int(place[i]) for i in outliers if place[i] >= 0],
        "duplicates": [
            g
            for g in ([int(place[i]) for i in d if place[i] >= 0] for d in duplicates)
            if len(g) > 1
        ],
    }
    if y is not None:
        classes, codes = np.unique(y, return_inverse=True)
        common, share = _common_class(labels, codes, review.n_clusters)
        data["classes"] = classes.tolist()
        data["class"] = _packed(codes[shown], np.uint32)
        data["commonClass"] = _packed(common, np.uint32)
        data["commonShare"] = _packed(share, np.float32)
    if tree is not None and len(tree):
        from scipy.cluster.hierarchy import leaves_list

        data["merges"] = _packed(tree[:, :2], np.uint32)
        data["leaves"] = _packed(leaves_list(tree), np.uint32)
    if thumbnails is not None:
        data["thumbnails"] = {
            "mime": thumbnails.mime,
            "tile": thumbnails.tile,
            "columns": thumbnails.columns,
            "perSheet": thumbnails.per_sheet,
            "widths": _packed(thumbnails.widths, np.uint8),
            "heights": _packed(thumbnails.heights, np.uint8),
        }
    return data


def _name(names: Sequence[str] | None, index: int) -> str:
    return f"image {index}" if names is None else str(names[index])


def _neighbors(
    review: ClusterReview, place: NDArray[np.int64], shown: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Places of the nearest shown neighbours of each shown image, (m, 6), filled up."""
    found = np.full((len(shown), _N_NEIGHBORS), _NONE)
    row_of = {int(i): row for row, i in enumerate(review.searched)}
    for here, i in enumerate(shown):
        row = row_of.get(int(i))
        if row is not None:
            near = place[review.neighbors[row]]
            near = near[near >= 0][:_N_NEIGHBORS]
            found[here, : len(near)] = near
    return found


def _on_the_page(coordinates: NDArray[np.float32]) -> tuple[NDArray, NDArray[np.float64]]:
    """Places in 16 bits, about the middle and downwards, one unit for both axes; their span."""
    places = coordinates.astype(np.float64) * [1, -1]
    low, high = places.min(axis=0), places.max(axis=0)
    unit = float((high - low).max()) or 1.0
    span = np.maximum((high - low) / unit, 0.05)
    return ((places - (low + high) / 2) / unit + 0.5) * 65_535, span


def _common_class(
    labels: NDArray[np.int64], codes: NDArray[np.intp], n_clusters: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Class that most images of each cluster have, and their share, both (K,); 0 where empty."""
    kept = labels != SKIPPED
    pairs, counts = np.unique(np.stack([labels[kept], codes[kept]]), axis=1, return_counts=True)
    order = np.lexsort((-pairs[1], counts))  # of equal ones the first class is written last
    common, most = np.zeros(n_clusters, np.int64), np.zeros(n_clusters)
    common[pairs[0, order]], most[pairs[0, order]] = pairs[1, order], counts[order]
    sizes = np.bincount(labels[kept], minlength=n_clusters)
    return common, most / np.maximum(sizes, 1)


def _packed(values: NDArray[Any], dtype: Any) -> str:
    """Little-endian numbers, base64."""
    array = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode("ascii")


def _json(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside of a script element whatever the names in it hold."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return files("evaluation").joinpath("report_page", name).read_text(encoding="utf-8")
