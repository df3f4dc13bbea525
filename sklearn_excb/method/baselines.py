"""Baselines in place of balancing by size: centering (DINO) and Sinkhorn-Knopp (SwAV).

Both are affine maps of each column of the similarities, like the balancing operator. They replace
:class:`sklearn_excb.method.balancing.ClusterSizes` while everything else stays the same. They never
make a tensor of shape (rows, K).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_excb.method.attention import RunningSoftmax, blocks
from sklearn_excb.method.balancing import Affine


class NoBalancing:
    """No balancing: the identity map of the similarities.

    Parameters
    ----------
    n_clusters : int
        Number of clusters K.
    device : torch.device or str, optional
        Device of the map.
    """

    needs_rows = False

    def __init__(self, n_clusters: int, *, device: torch.device | str | None = None) -> None:
        self._scale = torch.ones(n_clusters, device=device)
        self._bias = torch.zeros(n_clusters, device=device)

    def observe(self, rows: Tensor, centroids: Tensor, temperature: float) -> None:
        """Do nothing; some subclasses use the projections."""

    def affine(self) -> Affine:
        """Return the map: the identity, unless a subclass sets a bias."""
        return Affine(self._scale, self._bias)

    def update(self, labels: Tensor) -> None:
        """Do nothing; some subclasses update their map."""

    def state_dict(self) -> dict[str, Any]:
        """Return the bias."""
        return {"bias": self._bias}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the bias that :meth:`state_dict` returned."""
        self._bias = state["bias"].to(self._bias)


class Centering(NoBalancing):
    """Centering: subtract a running mean from the similarities to each cluster, as DINO does.

    See M. Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021,
    Algorithm 1.

    Parameters
    ----------
    n_clusters : int
        Number of clusters K.
    momentum : float, default=0.9
        Momentum of the running mean. The default is the published value.
    device : torch.device or str, optional
        Device of the mean.
    """

    needs_rows = True

    def __init__(
        self,
        n_clusters: int,
        momentum: float = 0.9,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(n_clusters, device=device)
        self.momentum = momentum
        self._sum, self._n_rows = torch.zeros_like(self._bias), 0

    @torch.no_grad()
    def observe(self, rows: Tensor, centroids: Tensor, temperature: float) -> None:
        """Add the similarities of a batch, or of a part of it, to the sums for the next step."""
        rows = F.normalize(rows.to(centroids.dtype), dim=-1).flatten(0, -2)
        self._sum += F.normalize(centroids, dim=-1) @ rows.sum(dim=0)
        self._n_rows += len(rows)

    @torch.no_grad()
    def update(self, labels: Tensor) -> None:
        """Move the running mean towards the mean of the step."""
        mean = self._sum / self._n_rows
        self._bias = self.momentum * self._bias - (1 - self.momentum) * mean
        self._sum, self._n_rows = torch.zeros_like(mean), 0


class Sinkhorn(NoBalancing):
    """Sinkhorn-Knopp: assign the rows of a batch to clusters of equal size, as SwAV does.

    See M. Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments", NeurIPS 2020. The algorithm scales rows and columns of exp(z / tau_t) in turn. The
    scaling of a column is the exponential of a bias, and the scaling of the rows is the softmax. If
    a batch has few rows per cluster, rows of earlier batches take part, as in SwAV's queue.

    Parameters
    ----------
    n_clusters : int
        Number of clusters K.
    n_iterations : int, default=3
        Number of iterations. The default is the published value.
    rows_a_cluster : float, default=1.5
        Number of rows per cluster that take part, as soon as enough rows have been seen. SwAV uses
        4,096 rows for 3,000 clusters, separately for each view. The time of a step is proportional
        to K squared.
    device : torch.device or str, optional
        Device of the map.
    """

    needs_rows = True

    def __init__(
        self,
        n_clusters: int,
        n_iterations: int = 3,
        rows_a_cluster: float = 1.5,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(n_clusters, device=device)
        self.n_iterations = n_iterations
        self._n_rows = round(n_clusters * rows_a_cluster)
        self._queue: Tensor | None = None

    @torch.no_grad()
    def observe(self, rows: Tensor, centroids: Tensor, temperature: float) -> None:
        """Compute the scaling of the columns for a batch, or for a part of it."""
        rows = F.normalize(rows.to(centroids.dtype), dim=-1).flatten(0, -2)
        queue = rows[:0] if self._queue is None else self._queue
        taking_part = torch.cat([rows, queue[: max(0, self._n_rows - len(rows))]])
        self._queue = taking_part[: self._n_rows]
        bias = _column_scaling(taking_part, centroids, temperature, self.n_iterations)
        self._bias = temperature * bias

    def state_dict(self) -> dict[str, Any]:
        """Return the bias and the queue."""
        return {**super().state_dict(), "queue": self._queue}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the bias and the queue that :meth:`state_dict` returned."""
        super().load_state_dict(state)
        queue = state["queue"]
        self._queue = None if queue is None else queue.to(self._bias)


def _column_scaling(
    rows: Tensor, centroids: Tensor, temperature: float, n_iterations: int
) -> Tensor:
    """Return log factors (K,) that give the columns of exp(z / temperature) equal sums.

    Sinkhorn-Knopp scales columns and rows in turn. The last scaling of the rows is left out, since
    the softmax does it.
    """
    unit = F.normalize(centroids, dim=-1)
    log_row_scale = rows.new_zeros(len(rows))
    log_column_scale = rows.new_zeros(len(unit))
    for _ in range(n_iterations):
        sums = RunningSoftmax(rows)
        for columns in blocks(len(unit), len(rows)):
            logits = (rows @ unit[columns].T).div_(temperature)  # (rows, n)
            log_column_scale[columns] = -torch.logsumexp(logits + log_row_scale[:, None], dim=0)
            logits += log_column_scale[columns]
            sums.add(logits, logits.amax(dim=1))
        log_row_scale = -sums.log_sum_exp()
    return log_column_scale - log_column_scale.mean()
