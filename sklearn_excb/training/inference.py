"""Embed and assign, streamed: one batch in memory, plus the result."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_excb.data.open_source import StreamPart, stream_parts
from sklearn_excb.data.sources import Skipped, Source
from sklearn_excb.data.unusable_images import skipped_of
from sklearn_excb.method.attention import nearest
from sklearn_excb.networks.student_teacher import ClusterNetwork

Embedding = Literal["projection", "backbone", "similarity"]

_STREAM_PART = 64  # images of a stream that are in memory together
_MULTIPLE = 32  # batches are padded to a multiple of it


def split_among_devices(
    devices: Sequence[torch.device],
    teacher: ClusterNetwork,
    n_samples: int,
    batch_size: int,
    work: Callable[[ClusterNetwork, torch.device, slice], None],
) -> None:
    """Share samples among devices: a thread each, and a copy of the teacher but on the first.

    Parameters
    ----------
    devices : sequence of torch.device
    teacher : ClusterNetwork
        Moved to the first.
    n_samples, batch_size : int
        Shares are whole batches: each is the one that it would be on one device.
    work : callable
        Of a teacher, its device and the rows that are its share.
    """
    n_batches = -(-n_samples // batch_size)
    ends = [n_batches * i // len(devices) * batch_size for i in range(len(devices) + 1)]
    shares = [slice(a, min(b, n_samples)) for a, b in itertools.pairwise(ends)]
    teachers = [copy.deepcopy(teacher).to(device) for device in devices[1:]]
    teachers.insert(0, teacher.to(devices[0]))
    if len(devices) == 1:
        work(teacher, devices[0], shares[0])
        return
    with ThreadPoolExecutor(len(devices), "ExCB infers") as pool:
        deque(pool.map(work, teachers, devices, shares), maxlen=0)  # raises what one has raised


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
    for features, rows in _outputs(teacher, batches, project=embedding != "backbone"):
        if embedding == "similarity":
            rows = teacher.centroids(rows)
        yield features if embedding == "backbone" else rows


@torch.inference_mode()
def _outputs(
    teacher: ClusterNetwork, batches: Iterable[Tensor], *, project: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features and projections of each batch; the features twice where that is enough."""
    teacher.eval()
    for batch in batches:
        # matrix kernels treat a remainder of rows differently, in the last bits: pad it away
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
) -> None:
    """Write labels of a whole source to ``out`` (n_samples,): argmax of the plain similarity.

    Times the gain of each cluster where the network has one.

    Parameters
    ----------
    teacher, batches
        As in :func:`outputs`.
    groups : ndarray of shape (K,), optional
        What to write for each cluster, if not its number.
    out : ndarray of shape (n_samples,)
        Where to write.
    sums : ndarray of shape (K, d), optional
        To which the backbone's features of the images of each cluster are added.
    """
    done = 0
    for features, rows in _outputs(teacher, batches):
        centroids = teacher.centroids
        found = nearest(rows, centroids.weight, centroids.gain).cpu().numpy()
        if sums is not None:
            np.add.at(sums, found, features.cpu().numpy())
        out[done : done + len(rows)] = found if groups is None else groups[found]
        done += len(rows)


def infer_stream(
    open_part: Callable[[StreamPart], Source],
    function: Callable[[Source, npt.NDArray[Any] | None], npt.NDArray[Any]],
    X: Iterable[Any],
    out: npt.NDArray[Any] | None,
) -> tuple[npt.NDArray[Any], list[Skipped]]:
    """Results of a stream, whose length nobody knows before its end, a part at a time.

    Parameters
    ----------
    open_part : callable
        From a part of the stream to a source.
    function : callable
        Of a source and of the array to write to, if there is one; gives the results.
    X : iterable
        Of images.
    out : ndarray or None
        For the results of all.

    Returns
    -------
    results : ndarray
    skipped : list of Skipped
        By their places in the stream.

    Raises
    ------
    ValueError
        If there is nothing in it, or its images are not as many as ``out`` takes.
    """
    found: list[npt.NDArray[Any]] = []
    skipped: list[Skipped] = []
    done = 0
    for part in stream_parts(X, _STREAM_PART):
        end = done + len(part)
        if out is not None and end > len(out):
            raise ValueError(
                f"out has {len(out):,} rows, but X goes on after as many images. "
                "Give it a row for each."
            )
        source = open_part(part)
        found.append(function(source, None if out is None else out[done:end]))
        skipped += skipped_of(source)
        done = end
        del part, source  # before the next part is read
    if not done:
        raise ValueError("X is empty: there is no image in it.")
    if out is None:
        return np.concatenate(found), skipped
    if done < len(out):
        raise ValueError(
            f"out has {len(out):,} rows, but X ended after {done:,} images: those rows are filled. "
            "Give it a row for each."
        )
    return out, skipped
