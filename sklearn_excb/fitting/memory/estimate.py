"""What a fit takes in memory, a component at a time, before it starts.

The step that will be trained is run on fake tensors, which have shapes and hold nothing, while the
bytes of all that live are counted. So the figures are those of the code itself, with any backbone.
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
from sklearn_excb.views.row_views import RowRecipe

_MARGIN, _LIBRARIES = 1.25, 300_000_000  # what allocators and libraries take beyond the tensors
_FEW = 4  # images whose views are made, to see what making them takes

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
    """Bytes of the tensors that live at the peak of each phase of a fit.

    They are those on the device that trains, beyond the images themselves.

    Attributes
    ----------
    phases : mapping of str to mapping of str to int
        Bytes of each component in each phase: "features" (of a frozen backbone); "start" (embedding
        the images for the first centroids) and, on a CPU, "k-means" (finding them); "views" (making
        those of a step) and "step"; on a CPU, where they settle, "settling" (of the centroids);
        "labels" (assigning the images). Components of a step are "networks" (student and teacher),
        "centroids" (of both), "optimizer" (its momenta), "gradients", "views" and "activations"
        (all else; most of it is kept for the backward pass).
    micro_batch : int
        Images that go through the networks at once.
    """

    phases: Mapping[str, Mapping[str, int]]
    micro_batch: int

    @property
    def peak_phase(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def components(self) -> Mapping[str, int]:
        """Bytes of each component in that phase."""
        return self.phases[self.peak_phase]

    @property
    def peak(self) -> int:
        """Bytes of all components in that phase."""
        return sum(self.components.values())

    @property
    def needed(self) -> int:
        """Bytes to have free: the peak, a quarter for the allocator, and .3 GB for libraries.

        Fits on a CPU took .3 to .9 of it (``python -m benchmarks.memory``); on accelerators it is
        not measured.
        """
        return round(self.peak * _MARGIN) + _LIBRARIES

    def __str__(self) -> str:
        largest = sorted(self.components.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{name} {readable(n_bytes)}" for name, n_bytes in largest)
        return f"{readable(self.peak)} at the peak, {_PHASES[self.peak_phase]}: {parts}."


def readable(n_bytes: int) -> str:
    """Bytes in MB or GB."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 0.95e9 else f"{n_bytes / 1e6:.0f} MB"


def estimate_memory(
    networks: StudentTeacher, settings: Settings, batches: ViewBatches
) -> MemoryEstimate:
    """Bytes at the peak of each phase of a fit.

    Parameters
    ----------
    networks : StudentTeacher
        On the CPU; not changed.
    settings : Settings
        Of the fit.
    batches : ViewBatches
        Of the fit. The views of a few images are made, to see what that takes.

    Returns
    -------
    MemoryEstimate

    Raises
    ------
    ValueError
        If the backbone does what fake tensors cannot follow, such as looking at a value.
    """
    if not settings.freeze_backbone:
        return MemoryEstimate(_phases(networks, settings, batches), settings.micro_batch)
    d = networks.n_features
    rows = Rows(np.broadcast_to(np.float32(0), (batches.n_samples, d)))
    noise = RowRecipe(settings.n_global, settings.n_local, np.zeros(d), scale=1.0, noise=1.0)
    of_rows = replace(batches, source=rows, recipe=noise, n_ahead=0)
    kept = {"features": len(rows) * d * FLOAT} if batches.device.type == "cpu" else {}
    computing = _of_inference(networks, settings, batches, _view_bytes(batches), {})[0]
    computing["networks"] = size(tensors_of(networks))
    trained = _phases(networks, settings, of_rows)
    phases = {"features": computing} | trained
    return MemoryEstimate({phase: of | kept for phase, of in phases.items()}, settings.micro_batch)


def _phases(networks: StudentTeacher, settings: Settings, batches: ViewBatches) -> dict[str, Bytes]:
    """Bytes of each component in the phases of a fit whose batches are what is trained on."""
    making = _view_bytes(batches)
    B = settings.batch_size
    try:
        trained, step = step_bytes(networks, settings, making.views)
        start = projection_bytes(networks, settings, making.views[0])
    except Exception as error:  # whatever a module of the user's own does
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
        phases["views"] |= trained | views  # those of the last step still lie there
        if batches.device.type == "cpu" and not isinstance(batches.source, Rows):  # used again
            making_them = max(0, B * making.of_views - sum(views.values()))
            phases["views"]["making views"] = making_them
        phases["step"] = held | views | step
    if batches.device.type == "cpu":  # images are opened, projections kept and clustered there
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


def _of_inference(
    networks: StudentTeacher,
    settings: Settings,
    batches: ViewBatches,
    making: _ViewBytes,
    held: Bytes,
) -> tuple[Bytes, int]:
    """Bytes of each component while whole images are embedded, and features of the backbone."""
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
    return ValueError(f"What this backbone takes in memory cannot be told: {error}")


class _ViewBytes(NamedTuple):
    """What making inputs takes.

    Attributes
    ----------
    views : tuple of sequences of int
        Shapes of the views of an image, one a resolution: (V, ...).
    image : sequence of int
        Shape of an image at inference.
    thread, of_views, of_image : int
        Bytes a thread, for the image it has open; and bytes an image of the batch.
    """

    views: Sequence[Shape]
    image: Shape
    thread: int
    of_views: int
    of_image: int


def _view_bytes(batches: ViewBatches) -> _ViewBytes:
    """Make the inputs of a few images, counting the tensors.

    Of images that are opened one by one a thread has one open at a time: what the few take at their
    peak is a thread's. What is a batch's is then seen on blank images of the size of a view.
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
    """Bytes that a fit stays below, without a look at its steps.

    Where a device has more there is nothing to warn of, and the estimate, which can take as long as
    a fit of a few hundred rows, is saved. Steps measured took up to 150 times their views. Of
    images that are opened one by one, the largest of some counts four times: others may be larger.

    Parameters
    ----------
    networks, settings, batches
        As in :func:`estimate_memory`.
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
