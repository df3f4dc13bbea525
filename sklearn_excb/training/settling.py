"""Settling: after training, the centroids move to where the labels of whole images are balanced.

Training balances the labels of crops, with the batch statistics of BatchNorm. Plain inference sees
whole images, with running statistics, and its clusters are less even. Settling closes this gap in a
few passes over the images. The projections stay as they are, the labels are balanced as in a
training step, and each centroid becomes the mean direction of its images. Settling is not in the
paper.
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

PARTS = 16  # parts of a pass; the sizes are updated after each part
_WINDOW = 4 * PARTS  # window of the sizes, in parts: four passes
_SAME = 1e-3  # mean squared distance below which projections count as the same
_KEPT_PER_CLUSTER = 4  # samples per cluster that a stream needs to have kept
_MOST_IMAGES, _MOST_PER_CLUSTER = 500_000, 20  # most images: in all, or per cluster if more


class Settled(NamedTuple):
    """Result of settling.

    Attributes
    ----------
    centroids : Tensor of shape (K, D)
        New centroids, unit rows.
    labels_before : ndarray of shape (n,), int64
        Labels of the rows by plain inference with the centroids before settling.
    """

    centroids: Tensor
    labels_before: Labels


def settling_sample(n_samples: int, n_clusters: int) -> npt.NDArray[np.int64]:
    """Return indices of the images to settle on: all, or 500,000, or 20 per cluster if more."""
    most = max(_MOST_IMAGES, _MOST_PER_CLUSTER * n_clusters)
    return np.linspace(0, n_samples - 1, min(n_samples, most)).round().astype(np.int64)


def enough_to_settle(settings: Settings, n_samples: int) -> bool:
    """Whether a stream kept enough samples for the centroids to settle."""
    return settings.settle_passes > 0 and n_samples >= _KEPT_PER_CLUSTER * settings.K


def are_distinct(rows: FloatRows, ranks: Ranks = ALONE) -> bool:
    """Whether projections differ by more than rounding.

    A network that has learned next to nothing gives all images the same direction, and rounding
    would decide their clusters. The mean squared distance of unit rows from their mean is 1 minus
    the squared length of the mean. Trained networks have distances of .5 and more.
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
    """Settle the centroids of a teacher in place, unless all images have the same direction.

    Parameters
    ----------
    teacher : ClusterNetwork
        Teacher of the fit. Only its centroids change.
    inputs : iterable of Tensor (B, ...)
        This rank's share of the whole images or rows, prepared for inference.
    settings : Settings
        Settings of the fit; ``settle_passes`` is at least 1.
    n_samples, seed : int
        Number of inputs on all ranks, and seed of their order.
    ranks : Ranks, default=ALONE
        Ranks that settle together.

    Returns
    -------
    ndarray of shape (n_samples,), int64, or None
        Labels by plain inference before settling; None if the centroids did not settle.
    """
    mine = ranks.span(n_samples)
    n_rows, n_dims = mine.stop - mine.start, teacher.centroids.weight.shape[1]
    rows = np.empty((n_rows, n_dims), dtype=np.float32)
    with ranks.together():
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
    """Fit the centroids to fixed projections.

    Parameters
    ----------
    rows : ndarray of shape (n, D), float32
        This rank's share of the unit projections of whole images.
    centroids : Tensor of shape (K, D)
        Centroids of the teacher, of any length. Their device does the computation.
    settings : Settings
        Settings of the fit; ``settle_passes`` is at least 1.
    seed : int
        Seed of the order of the rows.
    n_samples : int, optional
        Number of rows on all ranks.
    ranks : Ranks, default=ALONE
        Ranks that settle together.
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
    """Return the labels of one pass over the rows of all ranks, after and before balancing.

    The sizes are updated after each part of the pass.
    """
    temperature = settings.teacher_temperature[1]
    found = np.empty((2, len(order)), np.int64)
    mine = ranks.span(len(order))
    for part in np.array_split(order, min(PARTS, len(order))):
        here = (part >= mine.start) & (part < mine.stop)
        x = torch.from_numpy(rows[part[here] - mine.start]).to(centroids.device)[None]  # (1, B, D)
        if balancing.needs_rows:
            seen = ranks.placed(x[0].cpu().numpy(), np.flatnonzero(here), len(part))
            balancing.observe(torch.from_numpy(seen).to(x)[None], centroids, temperature)
        targets = teacher_targets(x, centroids, balancing.affine(), temperature=temperature)
        of_part = np.zeros((2, len(part)), np.int64)
        for labels, of in zip((targets.labels, targets.plain_labels), of_part, strict=True):
            of[here] = labels[0].cpu().numpy()
        found[:, part] = ranks.sum_array(of_part)
        counted = found[0 if settings.count_labels == "balanced" else 1, part]
        balancing.update(torch.from_numpy(counted).to(centroids.device))
    return found[0], found[1]


def _moved(centroids: Tensor, rows: FloatRows, labels: Labels, ranks: Ranks) -> Tensor:
    """Return the mean direction of each cluster's rows; centroids without rows stay."""
    means = cluster_means(rows, labels, len(centroids), ranks)
    used = torch.from_numpy(means.any(axis=1))
    return torch.where(used[:, None], torch.from_numpy(unit_rows(means)), centroids.cpu()).to(
        centroids
    )
