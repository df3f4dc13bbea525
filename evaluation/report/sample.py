"""The images of a large collection that a report shows: typical, odd and random ones."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .._checks import SKIPPED
from ..clusters.review import ClusterReview
from ..probes.stratified import draw_rows

_TYPICAL = 12  # images of each cluster


def choose(
    review: ClusterReview,
    labels: NDArray[np.int64],
    outliers: NDArray[np.int64],
    duplicates: Sequence[NDArray[np.int64]],
    max_images: int,
    y: NDArray | None,
    random_state: int,
) -> NDArray[np.int64]:
    """Return the positions of the images to show, ascending.

    All images are shown if there are at most ``max_images``. Otherwise up to half of the places go
    to the most typical images of each cluster and up to a quarter to outliers and near-duplicates.
    A random draw fills the rest, in proportion to the classes or, without classes, the clusters.
    """
    kept = np.flatnonzero(labels != SKIPPED)
    if len(kept) <= max_images:
        return kept
    most = max(1, min(_TYPICAL, max_images // 2 // review.n_clusters))
    typical = _most_typical(labels, review.typicality, most)[: max_images // 2]
    odd = np.concatenate([outliers, *duplicates])[: max_images // 4]
    chosen = np.union1d(typical, odd)
    rest = np.setdiff1d(kept, chosen)
    groups = (labels if y is None else y)[rest]
    generator = np.random.default_rng(random_state)
    drawn = rest[draw_rows(len(rest), max_images - len(chosen), groups, generator)]
    return np.union1d(chosen, drawn)


def _most_typical(
    labels: NDArray[np.int64], typicality: NDArray[np.float32], most: int
) -> NDArray[np.int64]:
    """Return the ``most`` images nearest to each cluster mean, the nearest ones first."""
    kept = np.flatnonzero(labels != SKIPPED)
    order = kept[np.lexsort((-typicality[kept], labels[kept]))]
    firsts = np.flatnonzero(np.r_[True, np.diff(labels[order]) > 0])
    rank = np.arange(len(order)) - np.repeat(firsts, np.diff(np.r_[firsts, len(order)]))
    near = order[rank < most]
    return near[np.argsort(rank[rank < most], kind="stable")]
