"""A bounded uniform sample of a stream, in which all samples are equally likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sklearn_excb.data.sources import ArrayImages, ItemImages, Rows, Source
from sklearn_excb.runtime.philox import permutation, uniforms
from sklearn_excb.runtime.threads import Map
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.row_views import RowRecipe

Sample = npt.NDArray[Any]  # an image (h, w, c), or a row (d,)

_MOST_BYTES = 256_000_000


class Reservoir:
    """Uniform sample of a stream, drawn by Vitter's algorithm R.

    Parameters
    ----------
    capacity : int
        Largest number of samples. The reservoir holds fewer if they would take more than 256 MB.
    seed : int
        Seed of all random draws.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self._capacity = capacity
        self._seed = seed
        self._samples: list[Sample] = []
        self._n_bytes = 0
        self._n_offered = 0

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def is_full(self) -> bool:
        """Whether the reservoir cannot hold more samples."""
        return len(self) >= self._capacity

    def offer(self, samples: Sequence[Sample]) -> None:
        """Offer the next samples of the stream, some of which the reservoir keeps."""
        numbers = self._n_offered + np.arange(len(samples))
        draws = uniforms(self._seed, 0, numbers, 0, 0)[:, 0]
        for sample, number, draw in zip(samples, numbers.tolist(), draws.tolist(), strict=True):
            if len(self) < self._capacity and self._n_bytes + sample.nbytes <= _MOST_BYTES:
                self._samples.append(sample)
                self._n_bytes += sample.nbytes
                continue
            self._capacity = len(self)
            place = int(draw * (number + 1))
            if place < self._capacity:
                self._n_bytes += sample.nbytes - self._samples[place].nbytes
                self._samples[place] = sample
                while self._n_bytes > _MOST_BYTES:  # the new sample is larger than the old one
                    leaving = permutation(self._seed, number, len(self))[0]
                    self._n_bytes -= self._samples.pop(leaving).nbytes
                self._capacity = len(self)
        self._n_offered += len(samples)

    def draw(self, number: int, n: int) -> list[Sample]:
        """Draw n different samples, a function of the seed and ``number``."""
        return [self._samples[place] for place in permutation(self._seed, number, len(self))[:n]]

    def state(self) -> tuple[Any, ...]:
        """Return the state for :meth:`restore`."""
        return self._capacity, list(self._samples), self._n_bytes, self._n_offered

    def restore(self, state: tuple[Any, ...]) -> None:
        """Return to a state of :meth:`state`, and forget all later samples."""
        self._capacity, self._samples, self._n_bytes, self._n_offered = state


def samples_of(
    source: Source, rows: npt.NDArray[np.int64], recipe: ViewRecipe | RowRecipe, read: Map
) -> list[Sample]:
    """Open samples of a source, images at the size that their crops need."""
    if isinstance(source, Rows):
        return list(source.load(rows))
    if isinstance(source, ArrayImages):
        return [image.movedim(0, -1).numpy().copy() for image in source.load(rows)]

    assert isinstance(recipe, ViewRecipe)
    side = recipe.side_for_crops

    def opened(row: int) -> Sample:
        return source.load_one(row, side).movedim(0, -1).numpy().copy()

    return list(read(opened, rows.tolist()))


def source_of(samples: Sequence[Sample], n_channels: int) -> Source:
    """Return a source of samples from :func:`samples_of`."""
    if samples[0].ndim == 1:
        return Rows(np.stack(samples))
    if len({(sample.shape, sample.dtype) for sample in samples}) == 1:
        return ArrayImages(np.stack(samples))
    return ItemImages(samples, torch.from_numpy, n_channels=n_channels)
