"""Embed and assign, streamed: one batch in memory, plus the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_excb.attention import nearest
from sklearn_excb.networks import ClusterNetwork

Embedding = Literal["projection", "backbone", "similarity"]

_MULTIPLE = 32  # batches are padded to a multiple of it


@torch.inference_mode()
def outputs(
    teacher: ClusterNetwork, batches: Iterable[Tensor], embedding: Embedding
) -> Iterator[Tensor]:
    """Yield what the teacher makes of each batch, on the device of the batch.

    Parameters
    ----------
    teacher : ClusterNetwork
        Set to evaluation mode: BatchNorm with its running statistics.
    batches : iterable of Tensors (B, ...)
        Prepared images or rows.
    embedding : {"projection", "backbone", "similarity"}
        h(f(x)) as unit rows (B, D); f(x), (B, d); or the cosine similarities z, (B, K).
    """
    teacher.eval()
    for batch in batches:
        # matrix kernels treat a remainder of rows differently, in the last bits: pad it away
        padded = F.pad(batch, [0, 0] * (batch.ndim - 1) + [0, -len(batch) % _MULTIPLE])
        result = teacher.backbone(padded)
        if embedding != "backbone":
            result = F.normalize(teacher.projector(result), dim=-1)
        if embedding == "similarity":
            result = teacher.centroids(result)
        yield result[: len(batch)].float()


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
    teacher: ClusterNetwork, batches: Iterable[Tensor], *, out: npt.NDArray[np.int64]
) -> None:
    """Write labels of a whole source to ``out`` (n_samples,): argmax of the plain similarity."""
    done = 0
    for rows in outputs(teacher, batches, "projection"):
        found = nearest(rows, teacher.centroids.weight)
        out[done : done + len(rows)] = found.cpu().numpy()
        done += len(rows)
