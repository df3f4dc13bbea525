"""From a source to batches: of views for training, of whole images for inference.

Samples are read by joblib's threads, ahead of the model and in order; what is drawn for a view
depends on no thread, so their number changes nothing but the speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from joblib import Parallel, cpu_count, delayed
from torch import Tensor

from sklearn_excb.draws import permutation
from sklearn_excb.images import Source
from sklearn_excb.resampling import centre_crop, resize_short_side, to_unit
from sklearn_excb.row_views import RowRecipe, make_row_views, standardize
from sklearn_excb.views import ViewRecipe, draw_views, make_views, normalize

Samples = Tensor | list[Tensor]
Indices = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Views of B images, a group a resolution: (G * B, ...) and, if L > 0, (L * B, ...)."""

    epoch: int
    groups: Sequence[Tensor]
    n_images: int


def number_of_jobs(n_jobs: int | str, source: Source) -> int:
    """Threads that read samples: one for arrays, which need no decoding, else one a core."""
    if isinstance(n_jobs, str):
        return min(8, cpu_count()) if source.reads_in_parallel else 1
    return n_jobs


def read(source: Source, batches: list[Indices], n_jobs: int) -> Iterator[Samples]:
    """Yield the samples of each batch, in order, read ahead by ``n_jobs`` threads."""
    parallel = Parallel(n_jobs=n_jobs, backend="threading", return_as="generator")
    yield from parallel(delayed(source.load)(batch) for batch in batches)  # pyright: ignore


def to_device(samples: Samples, device: torch.device) -> Samples:
    """Move the samples of a batch."""
    if isinstance(samples, Tensor):
        return samples.to(device)
    return [sample.to(device) for sample in samples]


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
        Where the views are made.
    """

    source: Source
    recipe: ViewRecipe | RowRecipe
    batch_size: int
    n_epochs: int
    seed: int
    n_jobs: int
    device: torch.device

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Shuffled full batches of an epoch (from 1); the last partial one is dropped."""
        order = permutation(self.seed, epoch, len(self.source))
        return self._batches(order[: len(order) // self.batch_size * self.batch_size], epoch)

    def start(self) -> Iterator[Batch]:
        """Every image once, as epoch 0; the last batch is filled up with the first images."""
        order = permutation(self.seed, 0, len(self.source))
        missing = -len(order) % self.batch_size
        return self._batches(np.concatenate([order, order[:missing]]), 0)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the whole run."""
        for epoch in range(1, self.n_epochs + 1):
            yield from self.epoch(epoch)

    def _batches(self, order: Indices, epoch: int) -> Iterator[Batch]:
        rows = list(order.reshape(-1, self.batch_size))
        for indices, samples in zip(rows, read(self.source, rows, self.n_jobs), strict=True):
            groups = self._views(to_device(samples, self.device), indices, epoch)
            yield Batch(epoch, groups, len(indices))

    def _views(self, samples: Samples, indices: Indices, epoch: int) -> list[Tensor]:
        if isinstance(self.recipe, RowRecipe):
            assert isinstance(samples, Tensor)
            return make_row_views(samples, indices, self.seed, epoch, self.recipe)
        shapes = np.array([sample.shape[-2:] for sample in samples], dtype=np.int64)
        groups = []
        for kind in self.recipe.kinds(max(0, epoch - 1) / max(1, self.n_epochs)):
            drawn = draw_views(self.seed, epoch, indices, kind, self.recipe, shapes)
            groups.append(make_views(samples, drawn, kind.size, self.recipe))
        return groups


def whole_images(images: Samples, recipe: ViewRecipe) -> Tensor:
    """Images as inference sees them: (B, c, size, size), normalised.

    The short side is resized to 8/7 of the global views and the centre cropped; below 64 px,
    where a margin is a large part of the image, it is resized to the size itself.
    """
    size = recipe.global_size
    short = size if size < 64 else round(size * 8 / 7)
    if isinstance(images, Tensor) and images.shape[-2] == images.shape[-1]:
        whole = F.interpolate(
            to_unit(images), size=(short, short), mode="bicubic", antialias=True
        ).clamp_(0, 1)
        crops = torch.stack([centre_crop(image, size) for image in whole])
    else:
        crops = torch.stack([centre_crop(resize_short_side(i, short), size) for i in images])
    return normalize(crops, recipe.mean, recipe.std)


def inference_inputs(
    source: Source,
    recipe: ViewRecipe | RowRecipe,
    *,
    batch_size: int,
    n_jobs: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Whole images, or standardised rows, in order, on the device."""
    starts = range(0, len(source), batch_size)
    batches = [np.arange(i, min(i + batch_size, len(source))) for i in starts]
    for samples in read(source, batches, n_jobs):
        here = to_device(samples, device)
        if isinstance(recipe, RowRecipe):
            assert isinstance(here, Tensor)
            yield standardize(here, recipe)
        else:
            yield whole_images(here, recipe)
