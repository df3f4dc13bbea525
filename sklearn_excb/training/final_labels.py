"""The judgement of the labels that a fit ends with, and what in the samples makes them all alike.

Early warnings look at the training. This module looks at the result, so that a fit whose samples
all end in one cluster says so, however short it is and however few clusters it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MOST_LOOKED_AT = 512  # samples among which to look for copies
_MOST = 0.9  # share of the samples in one cluster that counts as all of them
_UNEVEN = 3  # so few clusters may be uneven by nature, and only a single one is a collapse
_COPIES = 0.5  # share of copies of one sample that explains one cluster
_ALIKE = 0.02  # deviation between samples, in units of their size, that is hard to learn


def in_one_cluster(labels: npt.NDArray[np.int64], n_clusters: int) -> str | None:
    """Describe labels of which (nearly) all are the same; None if they are not.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,)
        Labels in [0, K), or -1 for samples without one.
    n_clusters : int
        Number of clusters K.

    Returns
    -------
    str or None
        First sentence of a warning. With two or three clusters, which may be uneven by nature, all
        labels have to be the same; with more, nine of ten.
    """
    counts = np.bincount(labels[labels >= 0], minlength=n_clusters)
    n, most = int(counts.sum()), int(counts.max(initial=0))
    if n < 2 or n_clusters < 2 or most < n * (1.0 if n_clusters <= _UNEVEN else _MOST):
        return None
    which = f"all {n:,}" if most == n else f"{most:,} of {n:,}"
    return f"The clusters have collapsed: {which} samples are in one cluster of {n_clusters:,}."


def looked_at(indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return at most 512 of the indices, evenly spaced."""
    places = np.linspace(0, len(indices) - 1, min(len(indices), MOST_LOOKED_AT))
    return indices[places.round().astype(np.int64)]


@torch.no_grad()
def why_alike(inputs: Iterable[Tensor], n_clusters: int) -> str | None:
    """Explain why the labels are alike, if the samples are the cause; None if they differ.

    Parameters
    ----------
    inputs : iterable of Tensor (B, ...)
        Some of the samples, as inference sees them.
    n_clusters : int
        Number of clusters K.

    Returns
    -------
    str or None
        Cause and advice: copies of one sample, fewer different samples than clusters, or
        differences that are tiny beside what all samples share.
    """
    copies: Counter[bytes] = Counter()
    total = squares = torch.zeros((), dtype=torch.float64)
    for batch in inputs:
        rows = batch.flatten(1).cpu()
        copies.update(row.numpy().tobytes() for row in rows)
        doubles = rows.double()
        total = total + doubles.sum(dim=0)
        squares = squares + doubles.square().sum(dim=0)
    n = copies.total()
    if n < 2:
        return None
    most = copies.most_common(1)[0][1]
    if most == n:
        return (
            "The samples are copies of one another, which no training can tell apart. Check how X "
            "was made, and pass different samples."
        )
    if most > _COPIES * n:
        return (
            f"{most / n:.0%} of the samples are copies of one sample, and copies always share a "
            "cluster. Pass each sample once."
        )
    if len(copies) < n_clusters and len(copies) < _COPIES * n:
        return (
            f"Only {len(copies):,} of {n:,} samples are distinct. The others are copies, and "
            f"copies always share a cluster. Pass each sample once, or lower K to {len(copies):,}."
        )
    size = float(squares.mean() / n)
    shared = float((total / n).square().mean())
    apart = max(0.0, size - shared)
    if size and apart < _ALIKE**2 * size:
        return (
            f"The samples hardly differ: by {(apart / size) ** 0.5:.1g} of their size. Crop images "
            "to the part that differs, or raise their contrast. For rows, subtract their mean."
        )
    return None
