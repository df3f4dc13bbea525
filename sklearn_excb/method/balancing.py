"""The balancing operator, its affine form, and the measure of cluster sizes.

Axes: ``rows`` are (view, image) pairs, ``K`` clusters. ``z`` are cosine similarities in [-1, 1],
``s`` measured sizes that sum to 1, ``r = s K`` relative sizes (1 balanced, 0 empty).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

Below = Literal["linear", "exponential"]


# Under the weight of z in a fit. Without it every row gives every empty cluster exactly 1, and the
# one with the lowest number takes them all; with it z^B = 1 - 0.001 (1 - z) there: the nearest one
# does, with no randomness. Nothing else feels it in the linear form, whose weight is r: that falls
# so low after seven windows of sizes without a label.
TIE_FLOOR = 1e-3


class Affine(NamedTuple):
    """Balanced similarity of a cluster as ``scale * z + bias``; both of shape (K,)."""

    scale: Tensor
    bias: Tensor


class Balancing(Protocol):
    """What keeps the clusters from collapsing; the loss sees nothing of it but its affine map."""

    sees_rows: bool  # whether :meth:`see` is of any use

    def see(self, rows: Tensor, centroids: Tensor, temperature: float) -> None:
        """Look at the teacher's projections (G, B, D) of a batch, before :meth:`affine`."""

    def affine(self) -> Affine:
        """Return the map of each column of the similarities, before the temperature."""
        ...

    def update(self, labels: Tensor) -> None:
        """Look at the labels of the step, after it."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the next steps depend on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""


def relative_sizes(sizes: Tensor) -> Tensor:
    """``r = s K``, shape (K,): 1 for a cluster of the size 1/K, 0 for an empty one."""
    return sizes * sizes.shape[-1]


def _weight_below(r: Tensor, below: Below) -> Tensor:
    """Weight of the similarity in a cluster smaller than 1/K: 0 if empty, 1 from r = 1 on."""
    if below == "linear":
        return r.clamp(max=1.0)
    if below == "exponential":
        # exp(1 - 1/r), continued by its limit 0 at r = 0: 1 / 0 is inf, exp(-inf) is 0
        return torch.exp(1.0 - 1.0 / r.clamp(max=1.0))
    raise ValueError(f"below={below!r} is not one of {get_args(Below)}.")


def balance(z: Tensor, sizes: Tensor, below: Below = "linear") -> Tensor:
    """Raise similarities to small clusters, lower those to large ones: the operator B(z; s).

    [seed, section 2 and Alg. 1; METHOD.md 3]

    Parameters
    ----------
    z : Tensor of shape (..., K)
        Cosine similarities of rows to clusters, in [-1, 1].
    sizes : Tensor of shape (K,)
        Measured relative frequencies of the clusters; non-negative, sum 1.
    below : {"linear", "exponential"}, default="linear"
        Form for clusters smaller than 1/K. "linear" is the method; "exponential" is the
        ablation of the seed's Table 1, whose formula the seed does not print: here the weight
        ``r`` becomes ``exp(1 - 1/r)``, which is 0 for an empty cluster and 1 at ``r = 1``.

    Returns
    -------
    Tensor of shape (..., K)
        Balanced similarities, in [-1, 1]: unchanged where ``s = 1/K``, 1 where ``s = 0``,
        about -1 where one cluster holds everything.

    Raises
    ------
    ValueError
        If ``below`` is unknown.
    """
    r = relative_sizes(sizes)
    raised = 1.0 - (1.0 - z) * _weight_below(r, below)
    return (1.0 + raised) / r.clamp(min=1.0) - 1.0


def affine_form(sizes: Tensor, below: Below = "linear", relative_floor: float = 0.0) -> Affine:
    """Write the balancing operator as an affine map of each column of z. [METHOD.md 3]

    Balancing then costs O(K D) on the centroids instead of O(rows K) on the similarities.

    Parameters
    ----------
    sizes : Tensor of shape (K,)
        As in :func:`balance`.
    below : {"linear", "exponential"}, default="linear"
        As in :func:`balance`.
    relative_floor : float, default=0.0
        Lower bound of the weight that the similarity has in clusters smaller than 1/K, which is
        ``r`` in the linear form. At 0 the map equals :func:`balance`, in which every empty cluster
        gets exactly 1 from every row; a small floor lets ``z`` order them.

    Returns
    -------
    Affine
        ``scale`` and ``bias``, such that ``balance(z, sizes) == scale * z + bias``.
    """
    r = relative_sizes(sizes)
    weight = _weight_below(r, below).clamp(min=relative_floor)
    above = r.clamp(min=1.0)
    return Affine(scale=weight / above, bias=(2.0 - weight) / above - 1.0)


def count_labels(labels: Tensor, n_clusters: int) -> Tensor:
    """Rows a cluster, (K,) int64; unlike bincount it never waits for the device."""
    flat = labels.flatten()
    counts = torch.zeros(n_clusters, dtype=torch.int64, device=labels.device)
    return counts.index_add_(0, flat, torch.ones_like(flat))


class ClusterSizes:
    """Running measure of the cluster sizes: an EMA of label frequencies. [METHOD.md 4]

    Parameters
    ----------
    n_clusters : int
        K; every size starts at 1/K.
    momentum : float
        m_s in ``s <- m_s s + (1 - m_s) s_B``, in [0, 1).
    below : {"linear", "exponential"}, default="linear"
        Form of the balancing operator below 1/K.
    relative_floor : float, default=0.0
        See :func:`affine_form`.
    device : torch.device or str, optional
        Where the sizes live.

    Attributes
    ----------
    sizes : Tensor of shape (K,), float32
        The measured sizes, sum 1. :meth:`update` is their only writer.
    """

    sees_rows = False

    def __init__(
        self,
        n_clusters: int,
        momentum: float,
        *,
        below: Below = "linear",
        relative_floor: float = 0.0,
        device: torch.device | str | None = None,
    ) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum={momentum!r} is not in [0, 1).")
        self.n_clusters = n_clusters
        self.momentum = momentum
        self.below: Below = below
        self.relative_floor = relative_floor
        self.sizes = torch.full((n_clusters,), 1.0 / n_clusters, dtype=torch.float32, device=device)

    def see(self, rows: Tensor, centroids: Tensor, temperature: float) -> None:
        """Nothing follows from the batch but its labels.

        Parameters
        ----------
        rows : Tensor of shape (G, B, D)
            Unit projections of the teacher; the baselines look at them.
        centroids : Tensor of shape (K, D)
            The teacher's.
        temperature : float
            tau_t.
        """

    def affine(self) -> Affine:
        """Return the balancing operator at the present sizes, as an affine map of each column.

        Returns
        -------
        Affine
            ``scale`` and ``bias``, Tensors of shape (K,).
        """
        return affine_form(self.sizes, self.below, self.relative_floor)

    @torch.no_grad()
    def update(self, labels: Tensor) -> None:
        """Move the sizes towards the label frequencies of one step.

        Parameters
        ----------
        labels : Tensor of any shape, int64
            Hard labels of all the teacher's global views of the step, in [0, K).
        """
        batch_sizes = count_labels(labels, self.n_clusters).to(self.sizes.dtype) / labels.numel()
        self.sizes.mul_(self.momentum).add_(batch_sizes, alpha=1.0 - self.momentum)
        self.sizes /= self.sizes.sum()

    def state_dict(self) -> dict[str, Any]:
        """Return the sizes.

        Returns
        -------
        dict
            "sizes", a Tensor of shape (K,), float32, not copied.
        """
        return {"sizes": self.sizes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from sizes measured before.

        Parameters
        ----------
        state : mapping
            Of :meth:`state_dict`, for as many clusters.
        """
        self.sizes.copy_(state["sizes"])
