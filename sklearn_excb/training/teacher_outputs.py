"""Outputs of the teacher: embeddings and labels, with one batch in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_excb.method.attention import nearest
from sklearn_excb.networks.student_teacher import ClusterNetwork

Embedding = Literal["projection", "backbone", "similarity"]

_MULTIPLE = 32  # batches are padded to a multiple of this number


@torch.inference_mode()
def outputs(
    teacher: ClusterNetwork, batches: Iterable[Tensor], embedding: Embedding
) -> Iterator[Tensor]:
    """Yield the outputs of the teacher for each batch, on the device of the batch.

    Parameters
    ----------
    teacher : ClusterNetwork
        Teacher. It is set to evaluation mode, where BatchNorm uses its running statistics.
    batches : iterable of Tensors (B, ...)
        Prepared images or rows.
    embedding : {"projection", "backbone", "similarity"}
        Kind of the outputs: h(f(x)) as unit rows (B, D); f(x), (B, d); or the cosine similarities
        z, (B, K).
    """
    for features, rows in _outputs(teacher, batches, project=embedding != "backbone"):
        if embedding == "similarity":
            rows = teacher.centroids(rows)
        yield features if embedding == "backbone" else rows


@torch.inference_mode()
def _outputs(
    teacher: ClusterNetwork, batches: Iterable[Tensor], *, project: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features and projections of each batch, or the features twice if not ``project``."""
    teacher.eval()
    for batch in batches:
        # padding, because kernels compute a remainder of rows with other rounding
        padded = F.pad(batch, [0, 0] * (batch.ndim - 1) + [0, -len(batch) % _MULTIPLE])
        features = rows = teacher.backbone(padded)
        if project:
            rows = F.normalize(teacher.projector(features), dim=-1)
        yield features[: len(batch)].float(), rows[: len(batch)].float()


def embed(
    teacher: ClusterNetwork,
    batches: Iterable[Tensor],
    embedding: Embedding,
    *,
    out: npt.NDArray[np.float32],
) -> None:
    """Write the embeddings of a whole source to ``out`` (n_samples, d); see :func:`outputs`."""
    done = 0
    for rows in outputs(teacher, batches, embedding):
        out[done : done + len(rows)] = rows.cpu().numpy()
        done += len(rows)


def assign(
    teacher: ClusterNetwork,
    batches: Iterable[Tensor],
    groups: npt.NDArray[np.int64] | None = None,
    *,
    out: npt.NDArray[np.int64],
    sums: npt.NDArray[np.float32] | None = None,
    projections: npt.NDArray[np.float32] | None = None,
) -> None:
    """Write the label of each sample to ``out``: the cluster of the largest plain similarity.

    Where the network has gains, the similarity to a cluster is multiplied by its gain.

    Parameters
    ----------
    teacher, batches
        Teacher and batches, as in :func:`outputs`.
    groups : ndarray of shape (K,), optional
        Group of each cluster, to write instead of the cluster.
    out : ndarray of shape (n_samples,)
        Array for the labels.
    sums : ndarray of shape (K, d), optional
        Sum of the backbone's features in each cluster. The features are added to it.
    projections : ndarray of shape (n_samples, D), float32, optional
        Array for the projections that the labels come from.
    """
    done = 0
    for features, rows in _outputs(teacher, batches):
        centroids = teacher.centroids
        found = nearest(rows, centroids.weight, centroids.gain).cpu().numpy()
        if sums is not None:
            np.add.at(sums, found, features.cpu().numpy())
        if projections is not None:
            projections[done : done + len(rows)] = rows.cpu().numpy()
        out[done : done + len(rows)] = found if groups is None else groups[found]
        done += len(rows)
