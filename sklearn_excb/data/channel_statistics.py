"""Mean and standard deviation of each channel of a collection, which normalise the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sklearn_excb.data.pixels import to_unit
from sklearn_excb.data.sources import ArrayImages, ItemImages, probes

_LOOKED_AT = 1024  # images


def channel_statistics(
    source: ArrayImages | ItemImages,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel over up to 1,024 images, in [0, 1]."""
    moments = torch.zeros(2, source.n_channels, dtype=torch.float64)
    n_pixels = 0
    for image in _each(source, probes(source, _LOOKED_AT)):
        pixels = to_unit(image).flatten(1).double()
        moments += torch.stack([pixels.sum(dim=1), (pixels**2).sum(dim=1)])
        n_pixels += pixels.shape[1]
    mean, square = moments / n_pixels
    std = (square - mean**2).clamp(min=1e-6).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def _each(source: ArrayImages | ItemImages, indices: Sequence[int]) -> Iterator[Tensor]:
    """Yield images (c, h, w) with one image in memory at a time."""
    for index in indices:
        if isinstance(source, ArrayImages):
            yield source.load(np.array([index]))[0]
        else:
            yield source.load_one(index)
