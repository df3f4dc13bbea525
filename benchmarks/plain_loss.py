"""Plain implementations of the loss, with all similarities in memory and gradients by autograd.

``per_pair`` follows Algorithm 1 literally, with one log-softmax per pair of views. ``per_view`` is
the fastest plain implementation: it sums the targets first and needs one log-softmax per student
view. Both compute the same loss as ``sklearn_excb.method.loss.excb_loss``; tests compare the three.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_excb.method.balancing import Affine
from sklearn_excb.method.loss import Loss


@torch.no_grad()
def targets(
    projections: Tensor, centroids: Tensor, affine: Affine, *, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities of the teacher (G, B, K), and its balanced and plain labels (G, B)."""
    z = F.normalize(projections, dim=-1) @ F.normalize(centroids, dim=-1).T  # (G, B, K)
    balanced = z * affine.scale + affine.bias
    probabilities = torch.softmax(balanced / temperature, dim=-1)
    return probabilities, balanced.argmax(dim=-1), z.argmax(dim=-1)


def _similarities(
    projections: Tensor, predictions: Tensor, centroids: Tensor, n_global: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return similarities (B, K) of views; centroids get gradients only from global views of h."""
    unit = F.normalize(centroids, dim=-1)
    detached = unit.detach()
    of_h = [
        F.normalize(rows, dim=-1) @ (unit if view < n_global else detached).T
        for view, rows in enumerate(projections)
    ]
    return of_h, [F.normalize(rows, dim=-1) @ detached.T for rows in predictions]


def _cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    return -(target * torch.log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def per_pair(
    p: Tensor, projections: Tensor, predictions: Tensor, centroids: Tensor, *, temperature: float
) -> Loss:
    """Return the loss of Algorithm 1: the mean over pairs of views, with a log-softmax for each."""
    n_global, n_views = len(p), len(projections)
    of_h, of_g = _similarities(projections, predictions, centroids, n_global)

    pairs = [(v, u) for v in range(n_global) for u in range(n_views)]
    in_h = [_cross_entropy(p[v], of_h[u] / temperature) for v, u in pairs if v != u]
    in_g = [_cross_entropy(p[v], of_g[u] / temperature) for v, u in pairs]
    projector, predictor = torch.stack(in_h).mean(), torch.stack(in_g).mean()
    return Loss((projector + predictor) / 2, projector, predictor)


def per_view(
    p: Tensor, projections: Tensor, predictions: Tensor, centroids: Tensor, *, temperature: float
) -> Loss:
    """Return the loss with one log-softmax per student view, against the sum of its targets."""
    n_global, n_views = len(p), len(projections)
    of_h, of_g = _similarities(projections, predictions, centroids, n_global)
    every = p.sum(dim=0)  # (B, K)

    met = [every - p[u] if u < n_global else every for u in range(n_views)]
    in_h = [_cross_entropy(t, z / temperature) for t, z in zip(met, of_h, strict=True)]
    in_g = [_cross_entropy(every, z / temperature) for z in of_g]
    projector = torch.stack(in_h).sum() / (n_global * (n_views - 1))
    predictor = torch.stack(in_g).sum() / (n_global * n_views)
    return Loss((projector + predictor) / 2, projector, predictor)
