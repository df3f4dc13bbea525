"""Estimate of the memory of a fit by component, before the fit starts.

The training step runs on fake tensors, which have shapes but no data, and the bytes of all living
tensors are counted. The figures therefore come from the training code itself, with any backbone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_excb.data.sources import ArrayImages, ItemImages, Rows
from sklearn_excb.fitting.memory.fake_steps import (
    FLOAT,
    Bytes,
    Shape,
    assignment_bytes,
    kmeans_bytes,
    projection_bytes,
    settling_bytes,
    step_bytes,
)
from sklearn_excb.fitting.memory.live_tensors import LiveTensors, size, tensors_of
from sklearn_excb.method.kmeans import most_start_rows
from sklearn_excb.networks.heads import PROJECTION_DIM
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.views.batches import ViewBatches
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.neighbor_views import N_NEIGHBORS
from sklearn_excb.views.row_views import RowRecipe

_MARGIN, _LIBRARIES = 1.25, 300_000_000  # factor for allocators, bytes for libraries
_INDEX = 8  # bytes of an index
_FEW = 4  # images whose views are made to measure the memory of making views

_PHASES = {
    "features": "computing the features of a frozen backbone",
    "start": "embedding the images for the first centroids",
    "k-means": "finding the first centroids",
    "views": "making the views of a step",
    "step": "a training step",
    "settling": "settling the centroids",
    "labels": "assigning the images",
}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the tensors at the peak of each phase of a fit.

    These are the tensors on the training device, without the images themselves.

    Attributes
    ----------
    phases : mapping of str to mapping of str to int
        Bytes of each component in each phase. The phases are "features" (of a frozen backbone);
        "start" (embedding the images for the first centroids) and, on a CPU, "k-means" (computing
        these centroids); "views" (making the views of a step) and "step"; on a CPU, "settling" (of
        the centroids); and "labels" (assigning the images). The components of a step are "networks"
        (student and teacher), "centroids" (of both), "optimizer" (its momenta), "gradients",
        "views" and "activations" (everything else, mostly kept for the backward pass).
    micro_batch : int
        Number of images that go through the networks at once.
    """

    phases: Mapping[str, Mapping[str, int]]
    micro_batch: int

    @property
    def peak_phase(self) -> str:
        """The phase with the largest memory."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def components(self) -> Mapping[str, int]:
        """Bytes of each component in the peak phase."""
        return self.phases[self.peak_phase]

    @property
    def peak(self) -> int:
        """Bytes of all components in the peak phase."""
        return sum(self.components.values())

    @property
    def needed(self) -> int:
        """Bytes that should be free: the peak, a quarter for the allocator, .3 GB for libraries.

        Fits on a CPU took .3 to .9 of this number (``python -m benchmarks.memory``). Fits on
        accelerators were not measured.
        """
        return round(self.peak * _MARGIN) + _LIBRARIES

    def __str__(self) -> str:
        largest = sorted(self.components.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{name} {readable(n_bytes)}" for name, n_bytes in largest)
        return f"{readable(self.peak)} at the peak, {_PHASES[self.peak_phase]}: {parts}."


def readable(n_bytes: int) -> str:
    """Return a number of bytes in MB or GB."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 0.95e9 else f"{n_bytes / 1e6:.0f} MB"


def estimate_memory(
    networks: StudentTeacher, settings: Settings, batches: ViewBatches
) -> MemoryEstimate:
    """Estimate the bytes at the peak of each phase of a fit.

    Parameters
    ----------
    networks : StudentTeacher
        Networks on the CPU; not changed.
    settings : Settings
        Settings of the fit.
    batches : ViewBatches
        Batches of the fit. The views of a few images are made to measure the memory of that.

    Returns
    -------
    MemoryEstimate
        Bytes of each component in each phase.

    Raises
    ------
    ValueError
        If the backbone cannot run on fake tensors, for example because it reads a value.
    """
    if not settings.freeze_backbone:
        phases = _phases(networks, settings, batches)
        kept = _neighborhoods(settings, batches)
        return MemoryEstimate(
            {phase: of | kept for phase, of in phases.items()}, settings.micro_batch
        )
    d = networks.n_features
    rows = Rows(np.broadcast_to(np.float32(0), (batches.n_samples, d)))
    noise = RowRecipe(settings.n_global, settings.n_local, np.zeros(d), scale=1.0, noise=1.0)
    of_rows = replace(batches, source=rows, recipe=noise, n_ahead=0)
    kept = {"features": len(rows) * d * FLOAT} if batches.device.type == "cpu" else {}
    computing = _of_inference(networks, settings, batches, _view_bytes(batches), {})[0]
    computing["networks"] = size(tensors_of(networks))
    trained = _phases(networks, settings, of_rows)
    phases = {"features": computing} | trained
    kept |= _neighborhoods(settings, of_rows)
    return MemoryEstimate({phase: of | kept for phase, of in phases.items()}, settings.micro_batch)


def _phases(networks: StudentTeacher, settings: Settings, batches: ViewBatches) -> dict[str, Bytes]:
    """Return the bytes of each component in the phases of a fit that trains on these batches."""
    making = _view_bytes(batches)
    B = settings.batch_size
    try:
        trained, step = step_bytes(networks, settings, making.views)
        start = projection_bytes(networks, settings, making.views[0])
    except Exception as error:  # a module of the user may raise anything
        raise _not_traceable(error) from error

    centroids = size([networks.student.centroids.weight, networks.teacher.centroids.weight])
    held = {"networks": size(tensors_of(networks)) - centroids, "centroids": centroids}
    views = {"views": B * sum(map(math.prod, making.views)) * FLOAT}
    one_view = {"views": B * math.prod(making.views[0][1:]) * FLOAT}
    phases = {
        "start": held | one_view | {"activations": start},
        "views": held | {"making views": B * making.of_views},
    }
    phases["labels"], n_features = _of_inference(networks, settings, batches, making, held)
    if settings.epochs:
        phases["views"] |= trained | views  # the tensors of the last step are still alive
        if batches.device.type == "cpu" and not isinstance(batches.source, Rows):  # reused
            making_them = max(0, B * making.of_views - sum(views.values()))
            phases["views"]["making views"] = making_them
        phases["step"] = held | views | step
    if batches.device.type == "cpu":  # it opens images, keeps and clusters projections
        opened = {"opened images": batches.n_jobs * making.thread}
        phases["views"] |= opened
        phases["labels"]["means of features"] = 2 * settings.K * n_features * FLOAT
        if settings.epochs:
            kept = {"last sound teacher": size(tensors_of(networks.teacher))}
            phases["views"] |= kept
            phases["step"] |= kept
        n_rows = min(batches.n_samples, most_start_rows(settings.K))
        phases["start"]["projections"] = n_rows * PROJECTION_DIM * FLOAT
        phases["k-means"] = held | kmeans_bytes(n_rows, settings.K)
        if settings.epochs and settings.settle_passes:
            phases["settling"] = held | settling_bytes(batches.n_samples, settings.K)
    return phases


def _neighborhoods(settings: Settings, batches: ViewBatches) -> Bytes:
    """Return the bytes of the averages over neighbours, and of the neighbours."""
    if settings.views != "neighbours" or batches.device.type != "cpu":
        return {}
    assert isinstance(batches.source, Rows)
    n, d = batches.n_samples, batches.source.load(np.arange(1)).shape[1]
    most = n * (settings.n_global * min(d, PROJECTION_DIM - 1) * FLOAT + N_NEIGHBORS * _INDEX)
    return {"neighbourhoods": most}


def _of_inference(
    networks: StudentTeacher,
    settings: Settings,
    batches: ViewBatches,
    making: _ViewBytes,
    held: Bytes,
) -> tuple[Bytes, int]:
    """Return the bytes of each component in inference, and the backbone's number of features."""
    n = min(batches.n_samples, settings.inference_batch)
    try:
        activations, n_features = assignment_bytes(networks, [n, *making.image])
    except Exception as error:
        raise _not_traceable(error) from error
    found = held | {"images": n * making.of_image, "activations": activations}
    if batches.device.type == "cpu":
        found["opened images"] = batches.n_jobs * making.thread
    return found, n_features


def _not_traceable(error: Exception) -> ValueError:
    return ValueError(f"The memory of this backbone cannot be estimated: {error}")


class _ViewBytes(NamedTuple):
    """Shapes of the inputs, and bytes to make them.

    Attributes
    ----------
    views : tuple of sequences of int
        Shapes (V, ...) of the views of an image, one per resolution.
    image : sequence of int
        Shape of an image at inference.
    thread : int
        Bytes per thread, for the image that it has open.
    of_views, of_image : int
        Bytes per image of the batch, to make its views or to prepare it for inference.
    """

    views: Sequence[Shape]
    image: Shape
    thread: int
    of_views: int
    of_image: int


def _view_bytes(batches: ViewBatches) -> _ViewBytes:
    """Make the inputs of a few images, and count the bytes of the tensors.

    If images are opened one by one, each thread has one open at a time. The peak of a few images
    is then the memory of a thread, and blank images of the size of a view give that of a batch.
    """
    few = replace(
        batches,
        batch_size=min(_FEW, batches.batch_size),
        n_epochs=1,
        n_jobs=1,
        device=torch.device("cpu"),
        n_ahead=0,
    )
    thread = 0
    if isinstance(few.source, ItemImages):
        assert isinstance(few.recipe, ViewRecipe)
        thread = max(_views(few)[0], _images(few)[0])
        side = few.recipe.global_size
        blank = np.zeros((_FEW, side, side, few.source.n_channels), np.uint8)
        few = replace(few, source=ArrayImages(blank))
    of_views, groups = _views(few)
    of_images, images = _images(few)
    return _ViewBytes(
        views=[(len(group) // few.batch_size, *group.shape[1:]) for group in groups],
        image=images.shape[1:],
        thread=thread,
        of_views=of_views // few.batch_size,
        of_image=of_images // len(images),
    )


def _views(few: ViewBatches) -> tuple[int, Sequence[Tensor]]:
    counted = LiveTensors("views")
    with counted:
        groups = next(iter(few)).groups
    return counted.peak, groups


def _images(few: ViewBatches) -> tuple[int, Tensor]:
    counted = LiveTensors("images")
    with counted:
        images = next(few.whole(few.batch_size))
    return counted.peak, images


def generous_bound(networks: StudentTeacher, settings: Settings, batches: ViewBatches) -> int:
    """Return an upper bound on the bytes of a fit, without running its steps.

    If the device has more free memory, the fit needs no warning and no estimate, which can take as
    long as a fit of a few hundred rows. Measured steps took up to 150 times their views. If images
    are opened one by one, the bound is four times the largest of a few, because others may be
    larger.

    Parameters
    ----------
    networks, settings, batches
        Networks, settings and batches, as in :func:`estimate_memory`.
    """
    n_samples, source = batches.n_samples, batches.source
    if isinstance(source, ItemImages):
        one = 4 * source.n_channels * max(map(math.prod, source.probed_shapes))
    else:
        one = math.prod(source.load(np.arange(1)).shape)
    values = max(1024, one, settings.image_size**2 * 3)
    n_views = settings.batch_size * (settings.n_global + settings.n_local)
    step = 500 * max(n_views, settings.inference_batch) * values * FLOAT
    start = sum(kmeans_bytes(min(n_samples, most_start_rows(settings.K)), settings.K).values())
    return 30 * size(tensors_of(networks)) + step + start + _LIBRARIES
