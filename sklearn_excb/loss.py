"""The view-pair cross-entropy of ExCB. [seed, Alg. 1; METHOD.md 5]

Axes: ``G`` global views, ``V = G + L`` all views (global first), ``B`` images, ``K`` clusters,
``D`` dimensions. The loss of a pair (teacher view v, student view u) is the cross-entropy
``-sum_k p_t[v] log p_s[u]``, a mean over the batch. Cross-entropy is linear in its target, so
the targets that one student view meets are summed first: one log-softmax a student view.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_excb.balancing import Affine


class Targets(NamedTuple):
    """What the teacher says of a batch.

    Attributes
    ----------
    probabilities : Tensor of shape (G, B, K)
        softmax(z^B / tau_t).
    labels : Tensor of shape (G, B), int64
        argmax of z^B, the similarities after balancing.
    plain_labels : Tensor of shape (G, B), int64
        argmax of z, the similarities before balancing.
    """

    probabilities: Tensor
    labels: Tensor
    plain_labels: Tensor


class Loss(NamedTuple):
    """The loss and its two halves, scalars: ``total = (projector + predictor) / 2``."""

    total: Tensor
    projector: Tensor
    predictor: Tensor


@torch.no_grad()
def teacher_targets(
    projections: Tensor, centroids: Tensor, affine: Affine, *, temperature: float
) -> Targets:
    """Balance the teacher's similarities and turn them into targets and labels.

    Parameters
    ----------
    projections : Tensor of shape (G, B, D)
        Teacher projections of the global views; normalised here.
    centroids : Tensor of shape (K, D)
        Teacher centroids; normalised here.
    affine : Affine
        The balancing operator of this step.
    temperature : float
        tau_t.
    """
    z = F.normalize(projections, dim=-1) @ F.normalize(centroids, dim=-1).T  # (G, B, K)
    balanced = z * affine.scale + affine.bias
    return Targets(
        probabilities=torch.softmax(balanced / temperature, dim=-1),
        labels=balanced.argmax(dim=-1),
        plain_labels=z.argmax(dim=-1),
    )


def _log_probabilities(rows: Tensor, centroids: Tensor, temperature: float) -> Tensor:
    """Log p_s of some views, (views, B, K), from their rows (views, B, D) and unit centroids."""
    return torch.log_softmax(F.normalize(rows, dim=-1) @ centroids.T / temperature, dim=-1)


def _mean_over_pairs(p: Tensor, log_p: Tensor, *, same_view: bool, local: bool) -> Tensor:
    """Mean cross-entropy of the admitted (teacher view, student view) pairs.

    ``p`` is (G, B, K), ``log_p`` (V, B, K). Without ``same_view`` a global view does not meet its
    own target; without ``local`` the local views are left out. No pair, no term: then it is 0.
    """
    n_global, n_views = len(p), len(log_p) if local else len(p)
    n_pairs = n_global * (n_views if same_view else n_views - 1)
    if n_pairs == 0:
        return log_p.new_zeros(())
    all_targets = p.sum(dim=0)  # (B, K)
    loss = log_p.new_zeros(())
    for view in range(n_views):
        own = view < n_global and not same_view
        target = all_targets - p[view] if own else all_targets
        loss = loss - (target * log_p[view]).sum(dim=-1).mean()
    return loss / n_pairs


def excb_loss(
    targets: Targets,
    projections: Tensor,
    predictions: Tensor,
    centroids: Tensor,
    *,
    temperature: float,
    local_in_projector_loss: bool = True,
) -> Loss:
    """Cross-entropy of the student's views under the teacher's targets. [METHOD.md 5]

    The gradient reaches the centroids only through the projections of global views; local views
    and predictions see them detached [seed, Alg. 2].

    Parameters
    ----------
    targets : Targets
        Of the same batch; G global views.
    projections, predictions : Tensors of shape (V, B, D)
        The student's h and g outputs for all views, global views first; normalised here.
    centroids : Tensor of shape (K, D)
        The student's centroids, raw rows; normalised here.
    temperature : float
        tau_s.
    local_in_projector_loss : bool, default=True
        Whether local views take part in the projector's half of the loss.

    Returns
    -------
    Loss
        ``projector`` is the mean over the G (G + L - 1) pairs that are not one and the same global
        view, ``predictor`` the mean over all G (G + L) pairs. A half without pairs is 0.
    """
    n_global = len(targets.probabilities)
    unit = F.normalize(centroids, dim=-1)
    log_h = torch.cat(
        [
            _log_probabilities(projections[:n_global], unit, temperature),
            _log_probabilities(projections[n_global:], unit.detach(), temperature),
        ]
    )
    log_g = _log_probabilities(predictions, unit.detach(), temperature)
    p = targets.probabilities
    projector = _mean_over_pairs(p, log_h, same_view=False, local=local_in_projector_loss)
    predictor = _mean_over_pairs(p, log_g, same_view=True, local=True)
    return Loss((projector + predictor) / 2, projector, predictor)
