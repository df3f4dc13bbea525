"""Softmax over all centroids, one block of clusters at a time. No (rows, K) tensor ever exists.

With K = 65,536 clusters, a matrix of all similarities would take most of the memory of the loss.
The functions here read the centroids block by block, and keep a running maximum and sum instead.

Axes: ``rows`` (a row is one view of one image), ``K`` clusters, ``D`` dimensions, ``n`` clusters of
one block. Rows and centroids are normalised to unit vectors before use. Logits are cosine
similarities divided by a temperature.

Plain matrix products in blocks (of 4 MB, or of 256 clusters) are as fast on CPUs as torch's fused
attention in float32, and three times as fast in bfloat16 (``python -m benchmarks.attention``). They
also give the log-sum-exp, and run alike on every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 2**20  # elements of a (rows, n) block: 4 MB of float32
_LEAST_WIDTH = 256  # clusters of a block; products with fewer are slow
_MOST_WIDTH = 2048  # keeps a block of centroids, (n, D), small as well
_SHORTEST = 1e-12  # lower bound of a norm, as in torch.nn.functional.normalize


class Attended(NamedTuple):
    """Result of :func:`attend`.

    Attributes
    ----------
    log_sum_exp : Tensor of shape (rows,)
        Logarithm of the normaliser of the softmax.
    mean : Tensor of shape (rows, D)
        Mean centroid under the softmax, ``softmax(logits) @ centroids``.
    """

    log_sum_exp: Tensor
    mean: Tensor


def blocks(n_clusters: int, n_rows: int) -> Iterator[slice]:
    """Cut K clusters into blocks of n such that (rows, n) stays small; the last may be shorter."""
    width = min(max(_BLOCK // max(n_rows, 1), _LEAST_WIDTH), _MOST_WIDTH)
    for first in range(0, n_clusters, width):
        yield slice(first, min(first + width, n_clusters))


def lengths(centroids: Tensor) -> Tensor:
    """Return the Euclidean norms (K,) of the centroids, as divisors that are never 0."""
    return torch.linalg.vector_norm(centroids, dim=-1).clamp_(min=_SHORTEST)


def put_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Compute ``out = a @ b``; the factors may have a shorter dtype than ``out``."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Compute ``total += a @ b``; the factors may have a shorter dtype than ``total``."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


class RunningSoftmax:
    """Normaliser of a softmax whose logits come block by block: a running maximum and sum.

    Parameters
    ----------
    rows : Tensor of shape (rows, D)
        Rows of the softmax. The sums take their dtype and device.
    """

    def __init__(self, rows: Tensor) -> None:
        self._peak = rows.new_full((len(rows),), -torch.inf)  # (rows,)
        self.total = rows.new_zeros(len(rows))  # (rows,), sum of exp(logits - peak)

    def add(self, logits: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
        """Add a block of logits.

        Parameters
        ----------
        logits : Tensor of shape (rows, n)
            Logits of the block; overwritten.
        highest : Tensor of shape (rows,)
            Largest logit of each row.

        Returns
        -------
        weights : Tensor of shape (rows, n)
            ``exp(logits - peak)``, in the memory of the logits; ``peak`` is the running maximum.
        shrink : Tensor of shape (rows,)
            Factor for sums over earlier blocks, which corrects them for the new peak.
        """
        peak = torch.maximum(self._peak, highest)
        shrink = torch.exp(self._peak - peak)
        weights = logits.sub_(peak[:, None].to(logits.dtype)).exp_()
        self._peak = peak
        self.total.mul_(shrink).add_(weights.sum(dim=1, dtype=self.total.dtype))
        return weights, shrink

    def log_sum_exp(self) -> Tensor:
        """Return the log-sum-exp (rows,) of all logits so far."""
        return self._peak + self.total.log()


class RunningArgmax:
    """Index of the largest value in each row, if columns come block by block.

    Among equal values, the first one counts.
    """

    def __init__(self, rows: Tensor) -> None:
        self._highest = rows.new_full((len(rows),), -torch.inf)
        self.index = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)

    def add(self, block: Tensor, first: int) -> Tensor:
        """Add a block (rows, n) whose first column has index ``first``; return its row maxima."""
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
    """Compute attention of unit rows over the centroids, which are both keys and values.

    Parameters
    ----------
    rows : Tensor of shape (rows, D)
        Unit vectors. Maxima, sums and results take their dtype.
    centroids : Tensor of shape (K, D)
        Centroids of any length; normalised here, block by block.
    lengths : Tensor of shape (K,)
        Norms of the centroids, from :func:`lengths`.
    temperature : float
        Divisor of the cosine similarities.
    dtype : torch.dtype
        Dtype of the matrix products and of the weights of a block.
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
    """Return the index (rows,) of the centroid with the largest z, or z times gain (K,)."""
    found = RunningArgmax(rows)
    scale = (1 if gain is None else gain) / lengths(centroids)
    for columns in blocks(len(centroids), len(rows)):
        found.add((rows @ centroids[columns].T).mul_(scale[columns]), columns.start)
    return found.index
