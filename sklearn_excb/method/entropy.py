"""Entropies of the assignments of teacher and student, to monitor a fit. Not in the paper."""

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
    """Return the mean entropies of teacher and student on global views, divided by log K.

    1 means that all clusters are equally likely, 0 that the assignment is certain. The mean is over
    the first images of a batch, which is enough for the mean of an epoch.

    Parameters
    ----------
    targets : Targets
        Targets of the batch.
    projections : Tensor of shape (V, B, D)
        Projections of the student, global views first; normalised here.
    centroids : Tensor of shape (K, D)
        Centroids of the student.
    temperature : float
        Temperature tau_s of the student.
    n_images : int, default=16
        Largest number of images to use.

    Returns
    -------
    Tensor of shape (2,)
        Entropy of the teacher's probabilities p_t and of the student's, both in [0, 1].
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
