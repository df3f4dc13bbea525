"""How sure teacher and student are: what a fit is watched by, and no part of its loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_excb.method.attention import attend, blocks, lengths
from sklearn_excb.method.loss import Targets


@torch.no_grad()
def mean_entropies(
    targets: Targets,
    projections: Tensor,
    centroids: Tensor,
    *,
    temperature: float,
    n_images: int = 16,
) -> Tensor:
    """Mean entropy of what the teacher and the student say of global views, (2,), over log K.

    1 is saying nothing, 0 being certain. Of the first images of a batch only: an epoch's mean needs
    no more.

    Parameters
    ----------
    targets : Targets
        Of the batch.
    projections : Tensor of shape (V, B, D)
        The student's, global views first; normalised here.
    centroids : Tensor of shape (K, D)
        The student's.
    temperature : float
        tau_s.
    n_images : int, default=16
        How many, at the most.
    """
    few = targets._replace(
        log_sum_exp=targets.log_sum_exp[:, :n_images], rows=targets.rows[:, :n_images]
    )
    teacher = torch.zeros_like(few.log_sum_exp).flatten()  # (G * n,)
    for columns in blocks(len(few.centroids), len(teacher)):
        teacher += torch.special.entr(few.probabilities(columns)).sum(dim=1)
    global_rows = projections[: len(few.rows), :n_images].flatten(0, 1)
    rows = F.normalize(global_rows.to(centroids.dtype), dim=-1)
    log_sum_exp, mean = attend(
        rows, centroids, lengths(centroids), temperature=temperature, dtype=rows.dtype
    )
    student = log_sum_exp - (rows * mean).sum(dim=1) / temperature
    return torch.stack([teacher.mean(), student.mean()]) / math.log(len(centroids))
