"""The data that the script of the report reads: JSON, with arrays as base64 text."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._checks import SKIPPED
from ..clusters.review import ClusterReview
from ..maps.projection import Projection
from .images import Thumbnails

_N_NEIGHBORS = 6  # neighbours in the details of an image
_NONE = 0xFFFFFFFF


def page_data(
    review: ClusterReview,
    labels: NDArray[np.int64],
    projection: Projection,
    thumbnails: Thumbnails | None,
    names: Sequence[str] | None,
    y: NDArray | None,
    tree: NDArray[np.float64] | None,
    duplicates: Sequence[NDArray[np.int64]],
    outliers: NDArray[np.int64],
) -> str:
    """Return the JSON for the script of the page; it numbers the shown images from 0."""
    shown = projection.indices
    places, span = _on_the_page(projection.coordinates)
    place = np.full(len(labels), -1)
    place[shown] = np.arange(len(shown))
    groups = [[int(place[i]) for i in group if place[i] >= 0] for group in duplicates]
    data: dict[str, Any] = {
        "names": [f"image {i}" if names is None else names[i] for i in shown],
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
        "duplicates": [group for group in groups if len(group) > 1],
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
            "tile": thumbnails.tile,
            "exact": thumbnails.exact,
            "columns": thumbnails.columns,
            "perSheet": thumbnails.per_sheet,
            "widths": _packed(thumbnails.widths, np.uint8),
            "heights": _packed(thumbnails.heights, np.uint8),
        }
    return _json(data)


def _neighbors(
    review: ClusterReview, place: NDArray[np.int64], shown: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the nearest shown neighbours of each shown image, (m, 6), padded with ``_NONE``."""
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
    """Return centred 16-bit positions (y downwards, one unit for both axes) and their span."""
    places = coordinates.astype(np.float64) * [1, -1]
    low, high = places.min(axis=0), places.max(axis=0)
    unit = float((high - low).max()) or 1.0
    span = np.maximum((high - low) / unit, 0.05)
    return ((places - (low + high) / 2) / unit + 0.5) * 65_535, span


def _common_class(
    labels: NDArray[np.int64], codes: NDArray[np.intp], n_clusters: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the commonest class of each cluster and its share, both (K,); 0 where empty."""
    kept = labels != SKIPPED
    pairs, counts = np.unique(np.stack([labels[kept], codes[kept]]), axis=1, return_counts=True)
    order = np.lexsort((-pairs[1], counts))  # among equal counts, the first class is written last
    common, most = np.zeros(n_clusters, np.int64), np.zeros(n_clusters)
    common[pairs[0, order]], most[pairs[0, order]] = pairs[1, order], counts[order]
    sizes = np.bincount(labels[kept], minlength=n_clusters)
    return common, most / np.maximum(sizes, 1)


def _packed(values: NDArray[Any], dtype: Any) -> str:
    """Encode an array as base64 of little-endian numbers."""
    array = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode("ascii")


def _json(data: Mapping[str, Any]) -> str:
    """Encode as JSON that is safe inside a script element, whatever the names contain."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
