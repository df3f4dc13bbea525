"""What others do in the place of balancing by size: centering (DINO), Sinkhorn-Knopp (SwAV).

Both are affine maps of each column of the similarities too, so they take the place of
:class:`sklearn_excb.method.balancing.ClusterSizes` with nothing else changed, and never make
(rows, K).
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
    """Targets as the similarities are.

    Parameters
    ----------
    n_clusters : int
        K.
    device : torch.device or str, optional
        Of the map.
    """

    sees_rows = False

    def __init__(self, n_clusters: int, *, device: torch.device | str | None = None) -> None:
        self._scale = torch.ones(n_clusters, device=device)
        self._bias = torch.zeros(n_clusters, device=device)

    def see(self, rows: Tensor, centroids: Tensor, temperature: float) -> None:
        """Nothing follows from the batch."""

    def affine(self) -> Affine:
        """Return the map: the identity, unless a subclass has a bias."""
        return Affine(self._scale, self._bias)

    def update(self, labels: Tensor) -> None:
        """Nothing follows from the labels."""

    def state_dict(self) -> dict[str, Any]:
        """Return the bias between two steps."""
        return {"bias": self._bias}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a bias."""
        self._bias = state["bias"].to(self._bias)


class Centering(NoBalancing):
    """Subtract a running mean of the similarities to each cluster, as DINO does.

    From M. Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021,
    Algorithm 1.

    Parameters
    ----------
    n_clusters : int
        K.
    momentum : float, default=0.9
        Of the running mean; the published value.
    device : torch.device or str, optional
        Of the mean.
    """

    sees_rows = True

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
    def see(self, rows: Tensor, centroids: Tensor, temperature: float) -> None:
        """Add up the similarities of a batch, or of a part of it, for the next step."""
        rows = F.normalize(rows.to(centroids.dtype), dim=-1).flatten(0, -2)
        self._sum += F.normalize(centroids, dim=-1) @ rows.sum(dim=0)
        self._n_rows += len(rows)

    @torch.no_grad()
    def update(self, labels: Tensor) -> None:
        """Move the mean towards that of the step."""
        mean = self._sum / self._n_rows
        self._bias = self.momentum * self._bias - (1 - self.momentum) * mean
        self._sum, self._n_rows = torch.zeros_like(mean), 0


class Sinkhorn(NoBalancing):
    """Assign every batch to equal clusters, by Sinkhorn-Knopp, as SwAV does.

    From M. Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments", NeurIPS 2020. The scaling of the columns is the exponential of a bias, and that of
    the rows is the softmax. Where a batch has few rows a cluster, those of earlier batches take
    part, as in SwAV's queue.

    Parameters
    ----------
    n_clusters : int
        K.
    n_iterations : int, default=3
        The published value.
    rows_a_cluster : float, default=1.5
        As many rows times K take part, once they have been seen. SwAV: 4,096 for 3,000, of each
        view apart. A step takes time in proportion to K squared.
    device : torch.device or str, optional
        Of the map.
    """

    sees_rows = True

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
    def see(self, rows: Tensor, centroids: Tensor, temperature: float) -> None:
        """Find the scaling of the columns for a batch, or for a part of it."""
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
        """Go on from such a bias and queue."""
        super().load_state_dict(state)
        queue = state["queue"]
        self._queue = None if queue is None else queue.to(self._bias)


def _column_scaling(
    rows: Tensor, centroids: Tensor, temperature: float, n_iterations: int
) -> Tensor:
    """Logarithms (K,) of what makes the columns of exp(z / temperature) sum to the same.

    Columns and rows by turns; the last rows are left to the softmax.
    """
    unit = F.normalize(centroids, dim=-1)
    of_rows = rows.new_zeros(len(rows))  # logarithms of their scaling
    of_columns = rows.new_zeros(len(unit))
    for _ in range(n_iterations):
        sums = RunningSoftmax(rows)
        for columns in blocks(len(unit), len(rows)):
            logits = (rows @ unit[columns].T).div_(temperature)  # (rows, n)
            of_columns[columns] = -torch.logsumexp(logits + of_rows[:, None], dim=0)
            logits += of_columns[columns]
            sums.add(logits, logits.amax(dim=1))
        of_rows = -sums.log_sum_exp()
    return of_columns - of_columns.mean()
