"""The balancing operator B(z; s), its affine form, and the measurement of cluster sizes.

The operator is Eq. 10 of the paper. Sec. 2 and Algorithm 1 of its supplementary discuss it.

Symbols: ``z`` are cosine similarities in [-1, 1], of shape (rows, K), where a row is one view of
one image and K is the number of clusters. ``s`` are the measured cluster sizes, with sum 1.
``r = s K`` are relative sizes: 1 is balanced, 0 is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

Below = Literal["linear", "exponential"]


# Lower bound of the weight of z in a fit. Without it, every row has a similarity of exactly 1 to
# every empty cluster, and the empty cluster with the lowest index takes all the rows. With it, the
# similarity to an empty cluster is 1 - 0.001 (1 - z), and the nearest empty cluster takes the row,
# without randomness. Other clusters are not affected in the linear form. Their weight is r, which
# falls this low only after seven windows of the size measurement without a label.
TIE_FLOOR = 1e-3


class Affine(NamedTuple):
    """Balanced similarities as ``scale * z + bias``; both tensors have shape (K,)."""

    scale: Tensor
    bias: Tensor


class Balancing(Protocol):
    """Interface of the methods that keep clusters from collapsing.

    The loss uses nothing of a method but its affine map of the similarities.
    """

    needs_rows: bool  # whether the method needs calls of `observe`

    def observe(self, rows: Tensor, centroids: Tensor, temperature: float) -> None:
        """Take in the teacher's projections (G, B, D) of a batch, before :meth:`affine`."""

    def affine(self) -> Affine:
        """Return the affine map of each column of the similarities, before the temperature."""
        ...

    def update(self, labels: Tensor) -> None:
        """Take in the labels of a step, after the step."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state on which the following steps depend."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""


def relative_sizes(sizes: Tensor) -> Tensor:
    """Return ``r = s K``, shape (K,): 1 for a cluster of size 1/K, 0 for an empty cluster."""
    return sizes * sizes.shape[-1]


def beyond_tolerance(r: Tensor, tolerance: float) -> Tensor:
    """Return relative sizes as the balancing sees them: 1 within a factor ``tolerance`` of 1.

    Larger sizes are divided by the tolerance, and smaller ones multiplied by it, so the result is
    continuous. Tolerance is not in the paper, which has a tolerance of 1.

    Parameters
    ----------
    r : Tensor of any shape
        Relative sizes.
    tolerance : float
        Factor, at least 1.
    """
    return torch.where(r > 1, (r / tolerance).clamp(min=1.0), (r * tolerance).clamp(max=1.0))


def _weight_below(r: Tensor, below: Below) -> Tensor:
    """Return the weight of z in clusters smaller than 1/K: 0 if r = 0, and 1 from r = 1 on."""
    if below == "linear":
        return r.clamp(max=1.0)  # 1 - relu(1 - sK) in Algorithm 1
    if below == "exponential":
        # at r = 0 this is the limit, 0: 1 / 0 is inf, and exp(-inf) is 0
        return torch.exp(1.0 - 1.0 / r.clamp(max=1.0))
    raise ValueError(f"below={below!r} is not one of {get_args(Below)}.")


def balance(z: Tensor, sizes: Tensor, below: Below = "linear", tolerance: float = 1.0) -> Tensor:
    """Raise similarities to small clusters and lower those to large ones: the operator B(z; s).

    This is Eq. 10 of the paper. With ``r = s K``, it first computes
    ``1 - (1 - z) * min(r, 1)``, which raises similarities to clusters smaller than 1/K, and then
    ``(1 + that) * min(1, 1/r) - 1``, which lowers similarities to clusters larger than 1/K.

    Parameters
    ----------
    z : Tensor of shape (..., K)
        Cosine similarities of rows to clusters, in [-1, 1].
    sizes : Tensor of shape (K,)
        Measured relative frequencies of the clusters; non-negative, with sum 1.
    below : {"linear", "exponential"}, default="linear"
        Form of the operator for clusters smaller than 1/K. "linear" is the method. "exponential" is
        the ablation in Table 1 of the supplementary, which does not print its formula. Here,
        ``exp(1 - 1/r)`` takes the place of the weight ``r``: it is 0 for an empty cluster, and 1 at
        ``r = 1``.
    tolerance : float, default=1.0
        Factor by which r may differ from 1 without an effect; see :func:`beyond_tolerance`.

    Returns
    -------
    Tensor of shape (..., K)
        Balanced similarities, in [-1, 1]: unchanged where ``s = 1/K``, 1 where ``s = 0``, and
        about -1 where one cluster holds everything.

    Raises
    ------
    ValueError
        If ``below`` is unknown.
    """
    r = beyond_tolerance(relative_sizes(sizes), tolerance)
    raised = 1.0 - (1.0 - z) * _weight_below(r, below)
    return (1.0 + raised) / r.clamp(min=1.0) - 1.0


def affine_form(
    sizes: Tensor,
    below: Below = "linear",
    relative_floor: float = 0.0,
    tolerance: float = 1.0,
) -> Affine:
    """Return the balancing operator as an affine map of each column of z.

    For a cluster with relative size ``r``, the map is ``r z + (1 - r)`` if ``r <= 1``, and
    ``z / r + (1/r - 1)`` if ``r > 1``. It can be applied to the centroids, which costs O(K D), in
    place of the similarities, which costs O(rows K).

    Parameters
    ----------
    sizes : Tensor of shape (K,)
        Measured cluster sizes, as in :func:`balance`.
    below : {"linear", "exponential"}, default="linear"
        Form for clusters smaller than 1/K, as in :func:`balance`.
    relative_floor : float, default=0.0
        Lower bound of the weight of z in clusters smaller than 1/K; in the linear form this weight
        is ``r``. With a floor of 0, the map equals :func:`balance`, and every row has a similarity
        of exactly 1 to every empty cluster. A small floor lets ``z`` order the empty clusters.
    tolerance : float, default=1.0
        Factor by which r may differ from 1 without an effect, as in :func:`balance`.

    Returns
    -------
    Affine
        ``scale`` and ``bias`` such that ``balance(z, sizes) == scale * z + bias``, if the floor
        is 0.
    """
    r = beyond_tolerance(relative_sizes(sizes), tolerance)
    weight = _weight_below(r, below).clamp(min=relative_floor)
    above = r.clamp(min=1.0)
    return Affine(scale=weight / above, bias=(2.0 - weight) / above - 1.0)


def count_labels(labels: Tensor, n_clusters: int) -> Tensor:
    """Count the rows of each cluster, (K,) int64; unlike bincount, never wait for the device."""
    flat = labels.flatten()
    counts = torch.zeros(n_clusters, dtype=torch.int64, device=labels.device)
    return counts.index_add_(0, flat, torch.ones_like(flat))


class ClusterSizes:
    """Measured cluster sizes s: an exponential moving average (EMA) of label frequencies.

    After each step, ``s <- m_s s + (1 - m_s) s_B``, where ``s_B`` are the frequencies of the labels
    of the step, over all global views and devices.

    Parameters
    ----------
    n_clusters : int
        Number of clusters K. Every size starts at 1/K.
    momentum : float
        Momentum m_s, in [0, 1).
    below : {"linear", "exponential"}, default="linear"
        Form of the balancing operator for clusters smaller than 1/K; see :func:`balance`.
    relative_floor : float, default=0.0
        Lower bound of the weight of z in small clusters; see :func:`affine_form`.
    tolerance : float, default=1.0
        Factor by which sizes may differ from 1/K without an effect; see :func:`beyond_tolerance`.
    device : torch.device or str, optional
        Device of the sizes.

    Attributes
    ----------
    sizes : Tensor of shape (K,), float32
        The measured sizes, with sum 1. Only :meth:`update` and :meth:`load_state_dict` write them.

    Notes
    -----
    The window of the average holds ``G B / (1 - m_s)`` labels, 31 per cluster in the paper.
    Algorithm 1 of the supplementary counts the labels before balancing, the authors' code counts
    them after balancing. A fit passes labels after balancing unless ``count_labels="plain"``.
    """

    needs_rows = False

    def __init__(
        self,
        n_clusters: int,
        momentum: float,
        *,
        below: Below = "linear",
        relative_floor: float = 0.0,
        tolerance: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum={momentum!r} is not in [0, 1).")
        if not tolerance >= 1.0:
            raise ValueError(f"tolerance={tolerance!r} is not at least 1.")
        self.n_clusters = n_clusters
        self.momentum = momentum
        self.below: Below = below
        self.relative_floor = relative_floor
        self.tolerance = tolerance
        self.sizes = torch.full((n_clusters,), 1.0 / n_clusters, dtype=torch.float32, device=device)

    def observe(self, rows: Tensor, centroids: Tensor, temperature: float) -> None:
        """Do nothing: sizes follow from labels alone. The baselines use the projections.

        Parameters
        ----------
        rows : Tensor of shape (G, B, D)
            Projections of the teacher.
        centroids : Tensor of shape (K, D)
            Centroids of the teacher.
        temperature : float
            Temperature tau_t.
        """

    def affine(self) -> Affine:
        """Return the balancing operator for the current sizes, as an affine map of each column.

        Returns
        -------
        Affine
            ``scale`` and ``bias``, Tensors of shape (K,).
        """
        return affine_form(self.sizes, self.below, self.relative_floor, self.tolerance)

    @torch.no_grad()
    def update(self, labels: Tensor) -> None:
        """Move the sizes towards the label frequencies of one step.

        Parameters
        ----------
        labels : Tensor of any shape, int64
            Hard labels that the teacher gives to all global views of the step, in [0, K).
        """
        batch_sizes = count_labels(labels, self.n_clusters).to(self.sizes.dtype) / labels.numel()
        self.sizes.mul_(self.momentum).add_(batch_sizes, alpha=1.0 - self.momentum)
        self.sizes /= self.sizes.sum()

    def state_dict(self) -> dict[str, Any]:
        """Return the sizes.

        Returns
        -------
        dict
            "sizes", a float32 tensor of shape (K,). It is not a copy.
        """
        return {"sizes": self.sizes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore sizes that were measured before.

        Parameters
        ----------
        state : mapping
            Result of :meth:`state_dict` for the same number of clusters.
        """
        self.sizes.copy_(state["sizes"])
