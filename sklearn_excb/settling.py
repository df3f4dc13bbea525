"""Settling: after training, the centroids move to where whole images are balanced.

Training balances the labels of crops, given by networks whose BatchNorm looks at the batch; plain
inference sees whole images through running statistics, and its clusters are less even. The last
passes close that gap: projections stay as they are, labels are balanced as in a step, and each
centroid becomes the mean direction of its images. [METHOD.md 3 and 4; not in the paper]
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.auto import Settings
from sklearn_excb.centroids import FloatRows, cluster_means, unit_rows
from sklearn_excb.loss import teacher_targets
from sklearn_excb.rivals import build_balancing

PARTS = 16  # of a pass, each labelled by the sizes that those before left
_WINDOW = 4 * PARTS  # of the sizes: four passes
_SAME = 1e-3  # mean squared distance of projections that are all but the same
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
    labels_before: npt.NDArray[np.int64]


def settling_sample(n_samples: int, n_clusters: int) -> npt.NDArray[np.int64]:
    """Indices of the images that the centroids settle on: all, or 500,000, or 20 a cluster."""
    most = max(_FEWEST, _A_CLUSTER * n_clusters)
    return np.linspace(0, n_samples - 1, min(n_samples, most)).round().astype(np.int64)


def told_apart(rows: FloatRows) -> bool:
    """Whether projections differ by more than rounding, which else would decide where they fall.

    A network that has learned next to nothing gives all images one direction. Of unit rows, the
    mean squared distance from their mean is 1 less its squared length; trained networks have .5
    and more of it.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    return bool(1 - mean @ mean > _SAME)


@torch.no_grad()
def settle(rows: FloatRows, centroids: Tensor, settings: Settings, *, seed: int) -> Settled:
    """Fit the centroids to projections that stay as they are.

    Parameters
    ----------
    rows : ndarray of shape (n, D), float32
        Unit projections of whole images.
    centroids : Tensor of shape (K, D)
        The teacher's, of any length, on the device that is to compute.
    settings : Settings
        Of the fit; ``settle_passes`` is at least 1.
    seed : int
        Of the order of the rows.
    """
    slow = replace(settings, size_momentum=1 - 1 / _WINDOW)
    balancing = build_balancing(slow, centroids.device)
    temperature = settings.teacher_temperature[1]
    random = np.random.default_rng(seed)
    labels, plain = (np.empty(len(rows), np.int64) for _ in range(2))
    before: npt.NDArray[np.int64] | None = None
    for _ in range(settings.settle_passes):
        for part in np.array_split(random.permutation(len(rows)), min(PARTS, len(rows))):
            x = torch.from_numpy(rows[part]).to(centroids.device)[None]  # (1, B, D)
            balancing.see(x, centroids, temperature)
            affine = balancing.affine()
            targets = teacher_targets(x, centroids, affine, temperature=temperature)
            balanced = settings.count_labels == "balanced"
            balancing.update(targets.labels if balanced else targets.plain_labels)
            labels[part] = targets.labels[0].cpu().numpy()
            plain[part] = targets.plain_labels[0].cpu().numpy()
        before = plain.copy() if before is None else before
        centroids = _moved(centroids, rows, labels)
    assert before is not None
    return Settled(centroids, before)


def _moved(centroids: Tensor, rows: FloatRows, labels: npt.NDArray[np.int64]) -> Tensor:
    """Mean directions of the rows of each cluster; one without rows stays where it is."""
    means = torch.from_numpy(unit_rows(cluster_means(rows, labels, len(centroids))))
    used = torch.from_numpy(np.bincount(labels, minlength=len(centroids)) > 0)
    return torch.where(used[:, None], means, centroids.cpu()).to(centroids)
