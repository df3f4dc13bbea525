"""Samples as inference sees them: whole images, resized and cropped, or standardised rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.data.resampling import centre_crop, resize_short_side, trim_length
from sklearn_excb.data.sources import ArrayImages, ItemImages, Rows, Source
from sklearn_excb.runtime.buffers import BufferPool
from sklearn_excb.runtime.threads import finished, reader_threads
from sklearn_excb.views.augmentation import normalize
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.reading import n_ahead
from sklearn_excb.views.row_views import RowRecipe, standardize
from sklearn_excb.views.view_maker import parts

Indices = npt.NDArray[np.int64]


def whole_images(images: Tensor, recipe: ViewRecipe) -> Tensor:
    """Resize, crop and normalise images (B, c, h, w) for inference, to (B, c, size, size).

    The short side is resized to 8/7 of the size of the global views, and the centre is cropped.
    Below 64 px, where a margin would be a large part of the image, the short side is resized to the
    size itself.
    """
    resized = resize_short_side(trim_length(images), whole_side(recipe), recipe.whole_filter)
    return normalize(centre_crop(resized, recipe.global_size), recipe.mean, recipe.std)


def whole_side(recipe: ViewRecipe) -> int:
    """Return the number of pixels to which the short side of a whole image is resized."""
    size = recipe.global_size
    return size if size < 64 else round(size * 8 / 7)


def inference_inputs(
    source: Source,
    recipe: ViewRecipe | RowRecipe,
    *,
    batch_size: int,
    n_jobs: int,
    device: torch.device,
    sample: Indices | None = None,
) -> Iterator[Tensor]:
    """Return ordered batches of whole images or standardised rows on the device.

    ``sample`` selects samples by index; the default is all samples. On a CPU, a batch of images
    that are opened one by one is valid until the next batch is requested.
    """
    chosen = np.arange(len(source)) if sample is None else sample
    batches = (chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size))
    if isinstance(source, Rows):
        assert isinstance(recipe, RowRecipe)
        return (standardize(source.load(rows), recipe).to(device) for rows in batches)
    assert isinstance(recipe, ViewRecipe)
    if isinstance(source, ArrayImages):
        # a `view` in a user's backbone fails on channels-last memory, and `contiguous` would keep
        # this layout for a single channel
        loaded = (whole_images(source.load(rows).to(device), recipe) for rows in batches)
        return (images.clone(memory_format=torch.contiguous_format) for images in loaded)
    return _opened(source, recipe, batches, min(batch_size, len(chosen)), n_jobs, device)


def _opened(
    source: ItemImages,
    recipe: ViewRecipe,
    batches: Iterable[Indices],
    batch_size: int,
    n_jobs: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield batches of whole images that threads open, ahead of an accelerator's work."""
    ahead, size = n_ahead(source, n_jobs, device), recipe.global_size
    rooms = deque(torch.empty(batch_size, source.n_channels, size, size) for _ in range(ahead + 1))
    with reader_threads(n_jobs, aside=ahead > 0) as read:

        def begin(rows: Indices) -> Callable[[], Tensor]:
            rooms.rotate()
            room = rooms[0][: len(rows)]

            @torch.inference_mode()  # the room may have been made in it
            def open_part(part: slice) -> None:
                buffers = BufferPool()
                for into, row in zip(room[part], rows[part].tolist(), strict=True):
                    image = source.load_one(row, 2 * whole_side(recipe), buffers=buffers)
                    into.copy_(whole_images(image[None], recipe)[0])

            opened = read(open_part, parts(0, len(rows)))

            def finish() -> Tensor:
                deque(opened, maxlen=0)
                return room.to(device)

            return finish

        yield from finished(map(begin, batches), ahead)
