"""From a source to batches: of views for training, of whole images for inference.

Images that have to be opened one by one are opened, cropped and resized by threads, so
that no more than one full-size image a thread is in memory. What is drawn for a view depends on no
thread: their number changes nothing but the speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from joblib import effective_n_jobs
from torch import Tensor

from sklearn_excb.draws import permutation
from sklearn_excb.resampling import (
    centre_crop,
    crop_resize,
    resize_short_side,
    to_unit,
    trim_length,
)
from sklearn_excb.row_views import RowRecipe, make_row_views, standardize
from sklearn_excb.sources import ArrayImages, ItemImages, Rows, Source
from sklearn_excb.threads import Map, reading_threads
from sklearn_excb.views import (
    ViewKind,
    ViewRecipe,
    draw_attempts,
    draw_views,
    finish_views,
    fit_boxes,
    normalize,
)

Indices = npt.NDArray[np.int64]

_MOST_THREADS = 8


class Batch(NamedTuple):
    """Views of B images, a group a resolution: (G * B, ...) and, if L > 0, (L * B, ...)."""

    epoch: int
    groups: Sequence[Tensor]
    n_images: int


def number_of_jobs(n_jobs: int | str | None, source: Source) -> int:
    """Threads that open images; "auto" is one where nothing is opened, else one a core up to 8."""
    if isinstance(n_jobs, str):
        return min(_MOST_THREADS, effective_n_jobs(-1)) if source.reads_in_parallel else 1
    return effective_n_jobs(n_jobs)


@dataclass(frozen=True)
class ViewBatches:
    """Batches of views of a source, epoch by epoch.

    Attributes
    ----------
    source : Source
        What to read.
    recipe : ViewRecipe or RowRecipe
        What the views are.
    batch_size, n_epochs, seed, n_jobs : int
        Images a batch, length of the run, seed of every draw, reading threads.
    device : torch.device
        Where the views end.
    """

    source: Source
    recipe: ViewRecipe | RowRecipe
    batch_size: int
    n_epochs: int
    seed: int
    n_jobs: int
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        """Yield the shuffled full batches of every epoch; the last partial one is dropped."""
        n_kept = len(self.source) // self.batch_size * self.batch_size
        with reading_threads(self.n_jobs) as read:
            for epoch in range(1, self.n_epochs + 1):
                order = permutation(self.seed, epoch, len(self.source))[:n_kept]
                for rows in order.reshape(-1, self.batch_size):
                    yield Batch(epoch, self._views(rows, epoch, read), self.batch_size)

    def start(self) -> Iterator[Batch]:
        """Every image once, as epoch 0, one global view: the first and the second by turns.

        The last batch is filled up with the first images.
        """
        order = permutation(self.seed, 0, len(self.source))
        order = np.concatenate([order, order[: -len(order) % self.batch_size]])
        with reading_threads(self.n_jobs) as read:
            for number, rows in enumerate(order.reshape(-1, self.batch_size)):
                groups = self._views(rows, 0, read, only=number % 2)
                yield Batch(0, groups, self.batch_size)

    def _views(self, rows: Indices, epoch: int, read: Map, only: int | None = None) -> list[Tensor]:
        """Views of some rows, a tensor a resolution; or ``only`` one global view."""
        recipe, source = self.recipe, self.source
        if isinstance(recipe, RowRecipe):
            assert isinstance(source, Rows)
            x = standardize(source.load(rows), recipe).to(self.device)
            kinds = recipe.kinds() if only is None else [np.array([only])]
            return [make_row_views(x, rows, self.seed, epoch, recipe, views) for views in kinds]
        assert not isinstance(source, Rows)
        kinds = recipe.kinds(max(0, epoch - 1) / max(1, self.n_epochs))
        kinds = kinds if only is None else [kinds[0].only(only)]
        groups = []
        for kind, crops in zip(kinds, self._crops(source, rows, epoch, kinds, read), strict=True):
            drawn = draw_views(self.seed, epoch, rows, kind, recipe)
            groups.append(finish_views(crops, drawn, kind.size, recipe))
        return groups

    def _crops(
        self,
        source: ArrayImages | ItemImages,
        rows: Indices,
        epoch: int,
        kinds: Sequence[ViewKind],
        read: Map,
    ) -> list[Tensor]:
        """Crops (V, B, c, size, size) of each kind, on the device."""
        assert isinstance(self.recipe, ViewRecipe)
        side = self.recipe.side_for_crops
        drawn = [draw_attempts(self.seed, epoch, rows, kind) for kind in kinds]

        def cut(images: Tensor, part: slice) -> list[Tensor]:
            shapes = np.tile(images.shape[-2:], (len(images), 1))
            crops = []
            for kind, attempts in zip(kinds, drawn, strict=True):
                boxes = fit_boxes(attempts[:, :, part], shapes, kind.scale)
                crops.append(crop_resize(images, torch.from_numpy(boxes), kind.size))
            return crops

        if isinstance(source, ArrayImages):
            return cut(source.load(rows).to(self.device), slice(None))

        def cut_one(place: int) -> list[Tensor]:
            image = source.load_one(int(rows[place]), side)
            return cut(image[None], slice(place, place + 1))

        cuts = read(cut_one, range(len(rows)))
        return [_together(views, dim=1).to(self.device) for views in zip(*cuts, strict=True)]


def _together(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Images of different types in one tensor; as they are where all are uint8."""
    alike = all(part.dtype == torch.uint8 for part in parts)
    return torch.cat([part if alike else to_unit(part) for part in parts], dim=dim)


def whole_images(images: Tensor, recipe: ViewRecipe) -> Tensor:
    """Images (B, c, h, w) as inference sees them: (B, c, size, size), normalised.

    The short side is resized to 8/7 of the global views and the centre cropped; below 64 px,
    where a margin is a large part of the image, it is resized to the size itself.
    """
    resized = resize_short_side(trim_length(images), _whole_side(recipe))
    return normalize(centre_crop(resized, recipe.global_size), recipe.mean, recipe.std)


def _whole_side(recipe: ViewRecipe) -> int:
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
    """Whole images, or standardised rows, in batches, in order, on the device; or a sample."""
    chosen = np.arange(len(source)) if sample is None else sample
    batches = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    with reading_threads(n_jobs) as read:
        for rows in batches:
            if isinstance(source, Rows):
                assert isinstance(recipe, RowRecipe)
                yield standardize(source.load(rows), recipe).to(device)
                continue
            assert isinstance(recipe, ViewRecipe)
            if isinstance(source, ArrayImages):
                yield whole_images(source.load(rows).to(device), recipe)
                continue

            def one(row: int, source: ItemImages = source) -> Tensor:
                image = source.load_one(row, 2 * _whole_side(recipe))
                return whole_images(image[None], recipe)

            yield torch.cat(list(read(one, rows.tolist()))).to(device)
