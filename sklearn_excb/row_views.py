"""Views of feature vectors: noise and feature dropout in place of crops and colours.

Rows are standardised first, so the noise is in standard deviations of each feature and a dropped
feature takes the value 0, its mean. Local views see fewer features, as local crops see less of
an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.draws import uniforms

Indices = npt.NDArray[np.int64]

_STATISTICS_BLOCK = 2**20  # elements: 8 MB of float64
_NOISE, _DROPOUT = 1 << 32, 2 << 32  # operations; the block of four features is added


@dataclass(frozen=True)
class RowRecipe:
    """Views of rows.

    Attributes
    ----------
    n_global, n_local : int
        G and L.
    mean, std : ndarrays of shape (d,)
        Of each feature; features without spread have std 1.
    noise : float
        Standard deviation of the added noise, in those of the features.
    global_dropout, local_dropout : float
        Probability that a feature of a view is replaced by its mean.
    """

    n_global: int
    n_local: int
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    noise: float = 0.1
    global_dropout: float = 0.1
    local_dropout: float = 0.3

    def kinds(self) -> list[npt.NDArray[np.int64]]:
        """Indices of the global and, if there are any, of the local views."""
        views = np.arange(self.n_global + self.n_local)
        return [v for v in np.split(views, [self.n_global]) if len(v)]


def _draws(
    seed: int,
    epoch: int,
    rows: npt.NDArray[np.int64],
    views: npt.NDArray[np.int64],
    operation: int,
    n_features: int,
) -> npt.NDArray[np.float64]:
    """Uniforms of shape (V, B, n_features rounded up to a multiple of four)."""
    blocks = operation + np.arange(-(-n_features // 4))
    words = uniforms(seed, epoch, rows[:, None], views[:, None, None], blocks)
    return words.reshape(len(views), len(rows), -1)


def make_row_views(
    rows: Tensor,
    indices: npt.NDArray[np.int64],
    seed: int,
    epoch: int,
    recipe: RowRecipe,
    views: npt.NDArray[np.int64],
) -> Tensor:
    """Some views of a batch of rows.

    Parameters
    ----------
    rows : Tensor of shape (B, d), float32
        Standardised feature vectors.
    indices : ndarray of shape (B,)
        Their places in the data set.
    seed, epoch : int
        What the draws are a function of.
    recipe : RowRecipe
        Strengths.
    views : ndarray of shape (V,)
        Which views: 0 to G - 1 are global, G to G + L - 1 local.

    Returns
    -------
    Tensor of shape (V * B, d)
        The rows of a view are contiguous.
    """
    n_features = rows.shape[1]
    shape = len(views), len(indices), -1
    u = _draws(seed, epoch, indices, views, _NOISE, n_features).reshape(*shape, 4)
    # Box and Muller: of each four words, two give radii and two angles, for four normals
    radius, angle = np.sqrt(-2 * np.log1p(-u[..., :2])), 2 * np.pi * u[..., 2:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    noise = normal.reshape(shape)[..., :n_features].astype(np.float32)
    dropout = np.where(views < recipe.n_global, recipe.global_dropout, recipe.local_dropout)
    u = _draws(seed, epoch, indices, views, _DROPOUT, n_features)[..., :n_features]
    kept = torch.from_numpy(u >= dropout[:, None, None]).to(rows.device)
    noisy = rows + recipe.noise * torch.from_numpy(noise).to(rows.device)
    return (noisy * kept).flatten(0, 1)


def standardize(rows: npt.NDArray[Any], recipe: RowRecipe) -> Tensor:
    """Rows with the training set's mean 0 and standard deviation 1 in each feature, float32.

    The difference is taken in float64: features far from zero keep their digits.
    """
    standard = (rows.astype(np.float64) - recipe.mean) / recipe.std
    return torch.from_numpy(standard.astype(np.float32))


def row_statistics(
    load: Callable[[Indices], npt.NDArray[Any]], n_rows: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each feature; 1 for features without spread.

    Parameters
    ----------
    load : callable
        From indices to rows (n, d); asked for a block at a time.
    n_rows : int
        How many there are.
    """
    step = max(1, _STATISTICS_BLOCK // load(np.arange(1)).shape[1])
    blocks = [np.arange(i, min(i + step, n_rows)) for i in range(0, n_rows, step)]
    mean = np.sum([load(block).sum(axis=0, dtype=np.float64) for block in blocks], axis=0) / n_rows
    squares = np.sum([np.square(load(block) - mean).sum(axis=0) for block in blocks], axis=0)
    std = np.sqrt(squares / n_rows)
    return mean, np.where(std > 1e-12 * np.maximum(1, np.abs(mean)), std, 1.0)
