"""Settling: after training, the centroids move to where whole images are balanced.

Training balances the labels of crops, given by networks whose BatchNorm looks at the batch; plain
inference sees whole images through running statistics, and its clusters are less even. The last
passes close that gap: projections stay as they are, labels are balanced as in a step, and each
centroid becomes the mean direction of its images. [METHOD.md 3 and 4; not in the paper]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.method.balancing import Balancing
from sklearn_excb.method.kmeans import FloatRows, cluster_means, unit_rows
from sklearn_excb.method.loss import teacher_targets
from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.runtime.ranks import ALONE, Ranks
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.build import build_balancing
from sklearn_excb.training.teacher_outputs import embed

Labels = npt.NDArray[np.int64]

PARTS = 16  # of a pass, each labelled by the sizes that those before left
_WINDOW = 4 * PARTS  # of the sizes: four passes
_SAME = 1e-3  # mean squared distance of projections that are all but the same
_A_CLUSTER_KEPT = 4  # samples of a stream that were kept, at the least
_FEWEST, _A_CLUSTER = 500_000, 20  # images that are looked at: as many, or as many a cluster


class Settled(NamedTuple):
    """What settling gives.

    Attributes
    ----------
    centroids : Tensor of shape (K, D)
        Unit rows.
    labels_before : ndarray of shape (n,), int64
        Of the rows, by plain inference, with the centroids as training left them.
    """

    centroids: Tensor
    labels_before: Labels


def settling_sample(n_samples: int, n_clusters: int) -> npt.NDArray[np.int64]:
    """Indices of the images that the centroids settle on: all, or 500,000, or 20 a cluster."""
    most = max(_FEWEST, _A_CLUSTER * n_clusters)
    return np.linspace(0, n_samples - 1, min(n_samples, most)).round().astype(np.int64)


def enough_to_settle(settings: Settings, n_samples: int) -> bool:
    """Whether centroids are to settle on so many samples of a stream."""
    return settings.settle_passes > 0 and n_samples >= _A_CLUSTER_KEPT * settings.K


def are_distinct(rows: FloatRows, ranks: Ranks = ALONE) -> bool:
    """Whether projections differ by more than rounding, which else would decide where they fall.

    A network that has learned next to nothing gives all images one direction. Of unit rows, the
    mean squared distance from their mean is 1 less its squared length; trained networks have .5
    and more of it.
    """
    total = ranks.sum_array(np.array([*rows.sum(axis=0, dtype=np.float64), len(rows)]))
    mean = total[:-1] / total[-1]
    return bool(1 - mean @ mean > _SAME)


@torch.no_grad()
def settle_teacher(
    teacher: ClusterNetwork,
    inputs: Iterable[Tensor],
    settings: Settings,
    *,
    n_samples: int,
    seed: int,
    ranks: Ranks = ALONE,
) -> Labels | None:
    """Settle a teacher's centroids in place, unless it gives all images one direction.

    Parameters
    ----------
    teacher : ClusterNetwork
        Of which nothing else changes.
    inputs : iterable of Tensor (B, ...)
        Whole images or rows, prepared for inference: this rank's share of them.
    settings : Settings
        Of the fit; ``settle_passes`` is at least 1.
    n_samples, seed : int
        How many inputs there are on all ranks, and the seed of their order.
    ranks : Ranks, default=ALONE
        Those that settle together.

    Returns
    -------
    ndarray of shape (n_samples,), int64, or None
        Labels by plain inference as they were before; None where nothing has settled.
    """
    mine = ranks.span(n_samples)
    n_rows, n_dims = mine.stop - mine.start, teacher.centroids.weight.shape[1]
    rows = np.empty((n_rows, n_dims), dtype=np.float32)
    embed(teacher, inputs, "projection", out=rows)
    if not are_distinct(rows, ranks):
        return None
    settled = settle(
        rows, teacher.centroids.weight, settings, n_samples=n_samples, seed=seed, ranks=ranks
    )
    teacher.centroids.weight.copy_(settled.centroids)
    return settled.labels_before


@torch.no_grad()
def settle(
    rows: FloatRows,
    centroids: Tensor,
    settings: Settings,
    *,
    seed: int,
    n_samples: int | None = None,
    ranks: Ranks = ALONE,
) -> Settled:
    """Fit the centroids to projections that stay as they are.

    Parameters
    ----------
    rows : ndarray of shape (n, D), float32
        Unit projections of whole images: this rank's share of them.
    centroids : Tensor of shape (K, D)
        The teacher's, of any length, on the device that is to compute.
    settings : Settings
        Of the fit; ``settle_passes`` is at least 1.
    seed : int
        Of the order of the rows.
    n_samples : int, optional
        Rows of all ranks.
    ranks : Ranks, default=ALONE
        Those that settle together.
    """
    n = len(rows) if n_samples is None else n_samples
    slow = replace(settings, size_momentum=1 - 1 / _WINDOW)
    balancing = build_balancing(slow, centroids.device)
    random = np.random.default_rng(seed)
    first: Labels | None = None
    for _ in range(settings.settle_passes):
        order = random.permutation(n)
        labels, plain = _labelled(rows, order, centroids, balancing, settings, ranks)
        first = plain if first is None else first
        centroids = _moved(centroids, rows, labels[ranks.span(n)], ranks)
    assert first is not None
    return Settled(centroids, first)


def _labelled(
    rows: FloatRows,
    order: npt.NDArray[np.int64],
    centroids: Tensor,
    balancing: Balancing,
    settings: Settings,
    ranks: Ranks,
) -> tuple[Labels, Labels]:
    """Labels of a pass over the rows of all ranks, after and before balancing.

    The sizes move with each part of it.
    """
    temperature = settings.teacher_temperature[1]
    found = np.empty((2, len(order)), np.int64)
    mine = ranks.span(len(order))
    for part in np.array_split(order, min(PARTS, len(order))):
        here = (part >= mine.start) & (part < mine.stop)
        x = torch.from_numpy(rows[part[here] - mine.start]).to(centroids.device)[None]  # (1, B, D)
        if balancing.sees_rows:
            seen = ranks.placed(x[0].cpu().numpy(), np.flatnonzero(here), len(part))
            balancing.see(torch.from_numpy(seen).to(x)[None], centroids, temperature)
        targets = teacher_targets(x, centroids, balancing.affine(), temperature=temperature)
        of_part = np.zeros((2, len(part)), np.int64)
        for labels, of in zip((targets.labels, targets.plain_labels), of_part, strict=True):
            of[here] = labels[0].cpu().numpy()
        found[:, part] = ranks.sum_array(of_part)
        counted = found[0 if settings.count_labels == "balanced" else 1, part]
        balancing.update(torch.from_numpy(counted).to(centroids.device))
    return found[0], found[1]


def _moved(centroids: Tensor, rows: FloatRows, labels: Labels, ranks: Ranks) -> Tensor:
    """Mean directions of the rows of each cluster; one without rows stays where it is."""
    means = cluster_means(rows, labels, len(centroids), ranks)
    used = torch.from_numpy(means.any(axis=1))
    return torch.where(used[:, None], torch.from_numpy(unit_rows(means)), centroids.cpu()).to(
        centroids
    )
