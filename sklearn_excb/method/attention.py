"""Softmax over all centroids, a block of them at a time: no (rows, K) tensor ever exists.

Axes: ``rows`` are (view, image) pairs, ``K`` clusters, ``D`` dimensions, ``n`` the clusters of one
block. Rows and centroids are unit vectors at use; logits are cosine similarities over a
temperature. Plain matrix products in blocks (of 4 MB, or of 256 clusters) are as fast on CPUs as
torch's fused attention in float32 and three times as fast in bfloat16 (``python -m
benchmarks.attention``), give the log-sum-exp, and run alike on every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 2**20  # elements of a (rows, n) block: 4 MB of float32
_LEAST_WIDTH = 256  # below it the products themselves get slow
_MOST_WIDTH = 2048  # keeps a block of centroids, (n, D), small as well
_SHORTEST = 1e-12  # as in torch.nn.functional.normalize


class Attended(NamedTuple):
    """Softmax of rows over the centroids, known by its normaliser and its mean.

    Attributes
    ----------
    log_sum_exp : Tensor of shape (rows,)
    mean : Tensor of shape (rows, D)
        ``softmax(logits) @ centroids``.
    """

    log_sum_exp: Tensor
    mean: Tensor


def blocks(n_clusters: int, n_rows: int) -> Iterator[slice]:
    """Cut K clusters into blocks whose (rows, n) stay small; the last one may be shorter."""
    width = min(max(_BLOCK // max(n_rows, 1), _LEAST_WIDTH), _MOST_WIDTH)
    for first in range(0, n_clusters, width):
        yield slice(first, min(first + width, n_clusters))


def lengths(centroids: Tensor) -> Tensor:
    """Euclidean norms of the centroids, (K,), by which they are divided to be unit vectors."""
    return torch.linalg.vector_norm(centroids, dim=-1).clamp_(min=_SHORTEST)


def put_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out = a @ b``; the factors may be of a shorter dtype than ``out``."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``; the factors may be of a shorter dtype than ``total``."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


class RunningSoftmax:
    """Normaliser of a softmax whose logits come block by block: their running maximum and sum.

    Parameters
    ----------
    rows : Tensor of shape (rows, D)
        Whose dtype and device the sums take.
    """

    def __init__(self, rows: Tensor) -> None:
        self._peak = rows.new_full((len(rows),), -torch.inf)  # (rows,)
        self.total = rows.new_zeros(len(rows))  # (rows,), sum of exp(logits - peak)

    def add(self, logits: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
        """Take a block of logits, (rows, n), which is overwritten, and its row maxima, (rows,).

        Returns
        -------
        weights : Tensor of shape (rows, n)
            exp(logits - peak), in the memory of the logits.
        shrink : Tensor of shape (rows,)
            What sums over earlier blocks have to be multiplied by, as the peak has risen.
        """
        peak = torch.maximum(self._peak, highest)
        shrink = torch.exp(self._peak - peak)
        weights = logits.sub_(peak[:, None].to(logits.dtype)).exp_()
        self._peak = peak
        self.total.mul_(shrink).add_(weights.sum(dim=1, dtype=self.total.dtype))
        return weights, shrink

    def log_sum_exp(self) -> Tensor:
        """Of all the logits so far, (rows,)."""
        return self._peak + self.total.log()


class RunningArgmax:
    """Column of the largest value of each row, of values that come block by block.

    The first one among equals.
    """

    def __init__(self, rows: Tensor) -> None:
        self._highest = rows.new_full((len(rows),), -torch.inf)
        self.index = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)

    def add(self, block: Tensor, first: int) -> Tensor:
        """Take a block (rows, n) whose first column is ``first``; return its row maxima."""
        highest, index = block.max(dim=1)
        higher = highest > self._highest
        self._highest = torch.where(higher, highest, self._highest)
        self.index = torch.where(higher, index + first, self.index)
        return highest


def attend(
    rows: Tensor,
    centroids: Tensor,
    lengths: Tensor,
    *,
    temperature: float,
    dtype: torch.dtype,
) -> Attended:
    """Attention of unit rows over the centroids, which are both its keys and its values.

    Parameters
    ----------
    rows : Tensor of shape (rows, D)
        Unit vectors; maxima, sums and results take their dtype.
    centroids : Tensor of shape (K, D)
        Of any length; normalised here, block by block.
    lengths : Tensor of shape (K,)
        Of the centroids.
    temperature : float
        By which the cosine similarities are divided.
    dtype : torch.dtype
        Of the matrix products and of the weights of a block.
    """
    queries = (rows / temperature).to(dtype)
    softmax = RunningSoftmax(rows)
    mean = torch.zeros_like(rows)
    for columns in blocks(len(centroids), len(rows)):
        keys = (centroids[columns] / lengths[columns, None]).to(dtype)  # (n, D)
        logits = queries @ keys.T  # (rows, n)
        weights, shrink = softmax.add(logits, logits.amax(dim=1).to(rows.dtype))
        add_product(mean.mul_(shrink[:, None]), weights, keys)
    return Attended(softmax.log_sum_exp(), mean.div_(softmax.total[:, None]))


def nearest(rows: Tensor, centroids: Tensor, gain: Tensor | None = None) -> Tensor:
    """Index of the centroid most similar to each row, (rows,) int64; of z times gain (K,)."""
    found = RunningArgmax(rows)
    scale = (1 if gain is None else gain) / lengths(centroids)
    for columns in blocks(len(centroids), len(rows)):
        found.add((rows @ centroids[columns].T).mul_(scale[columns]), columns.start)
    return found.index
