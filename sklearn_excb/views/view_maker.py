"""Views of a batch of images, made in the reading threads or on the training device.

Functions that begin work return a function that waits for the result. Memory is reused: views and
crops overwrite an earlier batch, and an image overwrites the previous image.

Axes: ``V`` views of one kind, ``B`` images of a batch, ``b`` images of a part of the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.data.pixels import to_unit
from sklearn_excb.data.resampling import crop_resize
from sklearn_excb.data.sources import ArrayImages, ItemImages
from sklearn_excb.runtime.buffers import BufferPool
from sklearn_excb.runtime.threads import Map
from sklearn_excb.runtime.transfers import to_device
from sklearn_excb.views import augmentation
from sklearn_excb.views.augmentation import finish_views
from sklearn_excb.views.multicrop import (
    ViewKind,
    ViewParameters,
    ViewRecipe,
    draw_attempts,
    draw_views,
    fit_boxes,
)

Finish = Callable[[], list[Tensor]]
Indices = npt.NDArray[np.int64]

_PART = 8  # images that a thread takes at a time


class Drawn(NamedTuple):
    """Random draws for the views of a batch.

    Attributes
    ----------
    recipe : ViewRecipe
        Recipe of the views.
    kinds : sequence of ViewKind
        Kinds of views.
    attempts : ndarray of shape (attempts, V, B, 4)
        Attempts at the crops of all kinds.
    parameters : list of ViewParameters
        Drawn operations of each kind.
    """

    recipe: ViewRecipe
    kinds: Sequence[ViewKind]
    attempts: npt.NDArray[np.float64]
    parameters: list[ViewParameters]

    @classmethod
    def of(
        cls, seed: int, epoch: int, rows: Indices, kinds: Sequence[ViewKind], recipe: ViewRecipe
    ) -> Drawn:
        """Draw the crops and operations for the views of images in ``rows``."""
        parameters = [draw_views(seed, epoch, rows, kind, recipe) for kind in kinds]
        return cls(recipe, kinds, draw_attempts(seed, epoch, rows, kinds), parameters)

    def room(
        self,
        memory: list[Tensor],
        n_channels: int,
        dtype: torch.dtype,
        *,
        pinned: bool = False,
    ) -> list[Tensor]:
        """Return memory for the views or crops (V, B, c, size, size) of each kind.

        The first call fills the empty list ``memory``, and later calls reuse it.
        """
        if not memory:
            for kind, of_kind in zip(self.kinds, self.parameters, strict=True):
                shape = (*of_kind.flip.shape, kind.size, kind.size, n_channels)
                planar = (*shape[:2], n_channels, kind.size, kind.size)
                floats = dtype == torch.float32  # crops have their channels side by side
                taken = torch.empty(planar if floats else shape, dtype=dtype, pin_memory=pinned)
                memory.append(taken if floats else taken.movedim(-1, 2))
        return memory

    def cut(
        self, images: Tensor, part: slice, buffers: Sequence[BufferPool | None] | None = None
    ) -> list[Tensor]:
        """Crop images (b, c, h, w), a part of the batch, to (V, b, c, size, size) for each kind."""
        shapes = np.tile(images.shape[-2:], (len(images), 1))
        boxes = torch.from_numpy(fit_boxes(self.attempts[:, :, part], shapes))
        of_kinds = boxes.split([len(kind.blur) for kind in self.kinds])
        return [
            crop_resize(images, of_kind, kind.size, buffers=room)
            for of_kind, kind, room in zip(
                of_kinds, self.kinds, buffers or [None] * len(self.kinds), strict=True
            )
        ]


def finish_crops(
    crops: Sequence[Tensor], drawn: Drawn, out: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Turn the crops of a batch into views (V * B, c, size, size), on the device of the crops."""
    views = [
        finish_views(of_kind, parameters, drawn.recipe, out=room)
        for of_kind, parameters, room in zip(
            crops, drawn.parameters, out or [None] * len(crops), strict=True
        )
    ]
    return [of_kind.flatten(0, 1) for of_kind in views]


def array_views(
    source: ArrayImages, rows: Indices, drawn: Drawn, memory: list[Tensor], device: torch.device
) -> list[Tensor]:
    """Make views of images from an array, on a device."""
    crops = drawn.cut(to_device(source.load(rows), device), slice(None))
    here = device.type == "cpu"
    out = drawn.room(memory, source.n_channels, torch.float32) if here else None
    return finish_crops(crops, drawn, out)


def begin_views(
    source: ItemImages, rows: Indices, drawn: Drawn, memory: list[Tensor], read: Map
) -> Finish:
    """Begin views that threads make entirely, on a CPU."""
    room = drawn.room(memory, source.n_channels, torch.float32)
    at_once = 1 if augmentation.compiled_loops(drawn.recipe) else _PART

    def make(part: slice) -> None:
        for some, cut in _cut(source, rows, drawn, part, at_once):
            for crops, parameters, views in zip(cut, drawn.parameters, room, strict=True):
                finish_views(crops, parameters.of_images(some), drawn.recipe, out=views[:, some])

    made = read(make, parts(0, len(rows)))

    def finish() -> list[Tensor]:
        deque(made, maxlen=0)
        return [views.flatten(0, 1) for views in room]

    return finish


def begin_crops(
    source: ItemImages,
    rows: Indices,
    drawn: Drawn,
    memory: list[Tensor],
    read: Map,
    *,
    pinned: bool = False,
) -> Finish:
    """Begin the crops (V, B, c, size, size) that threads make for an accelerator.

    The crops are uint8 if all images are uint8.
    """
    room = drawn.room(memory, source.n_channels, torch.uint8, pinned=pinned)

    def make(part: slice) -> list[tuple[slice, list[Tensor]]]:
        others = []
        for some, cut in _cut(source, rows, drawn, part, at_once=1):
            if all(crops.dtype == torch.uint8 for crops in cut):
                for crops, into in zip(cut, room, strict=True):
                    into[:, some] = crops
            else:
                others.append((some, cut))
        return others

    made = read(make, parts(0, len(rows)))

    def finish() -> list[Tensor]:
        others = list(chain.from_iterable(made))
        if not others:
            return room
        floats = [to_unit(crops) for crops in room]
        for some, cut in others:
            for crops, into in zip(cut, floats, strict=True):
                into[:, some] = to_unit(crops)
        return floats

    return finish


def _cut(
    source: ItemImages, rows: Indices, drawn: Drawn, part: slice, at_once: int
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield crops (V, b, c, size, size) of each kind, of ``at_once`` images of a part at a time."""
    side = drawn.recipe.side_for_crops
    of_image, *of_crops = (BufferPool() for _ in range(1 + len(drawn.kinds)))
    buffers = of_crops if at_once == 1 else None
    for some in parts(part.start, part.stop, at_once):
        crops = []
        for place in range(some.start, some.stop):
            image = source.load_one(int(rows[place]), side, buffers=of_image)[None]
            crops.append(drawn.cut(image, slice(place, place + 1), buffers))
        yield some, [_together(of_kind) for of_kind in zip(*crops, strict=True)]


def parts(start: int, stop: int, size: int = _PART) -> list[slice]:
    """Return consecutive slices of up to ``size`` images, the work of a thread at a time."""
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]


def _together(crops: Sequence[Tensor]) -> Tensor:
    """Join crops (V, 1, ...) of several images in one tensor, of float unless all are uint8."""
    if len(crops) == 1:
        return crops[0]
    alike = all(of_image.dtype == torch.uint8 for of_image in crops)
    return torch.cat([c if alike else to_unit(c) for c in crops], dim=1)
