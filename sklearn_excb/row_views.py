"""Views of feature vectors: noise and feature dropout in place of crops and colours.

Rows are standardised first, so the noise is in standard deviations of each feature and a dropped
feature takes the value 0, its mean. Local views see fewer features, as local crops see less of
an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.draws import uniforms

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
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    noise: float = 0.1
    global_dropout: float = 0.1
    local_dropout: float = 0.3


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
) -> list[Tensor]:
    """Global and, if there are any, local views of a batch of rows.

    Parameters
    ----------
    rows : Tensor of shape (B, d), float32
        Feature vectors as they came.
    indices : ndarray of shape (B,)
        Their places in the data set.
    seed, epoch : int
        What the draws are a function of.
    recipe : RowRecipe
        Strengths and statistics.

    Returns
    -------
    list of Tensors of shapes (G * B, d) and (L * B, d)
        The rows of a view are contiguous.
    """
    n_features = rows.shape[1]
    x = standardize(rows, recipe)
    n_views = recipe.n_global + recipe.n_local
    views = np.arange(n_views)
    u = _draws(seed, epoch, indices, views, _NOISE, n_features)
    # Box and Muller, two by two: words 0, 1 of each four give the radii, words 2, 3 the angles
    u = u.reshape(n_views, len(indices), -1, 4)
    radius, angle = np.sqrt(-2 * np.log1p(-u[..., :2])), 2 * np.pi * u[..., 2:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    noise = normal.reshape(n_views, len(indices), -1)[..., :n_features]
    dropout = np.where(views < recipe.n_global, recipe.global_dropout, recipe.local_dropout)
    u = _draws(seed, epoch, indices, views, _DROPOUT, n_features)[..., :n_features]
    kept = torch.from_numpy(u >= dropout[:, None, None]).to(x.device)
    noisy = x + recipe.noise * torch.from_numpy(noise.astype(np.float32)).to(x.device)
    crops = noisy * kept  # (V, B, d)
    groups = [crops[: recipe.n_global].flatten(0, 1)]
    if recipe.n_local:
        groups.append(crops[recipe.n_global :].flatten(0, 1))
    return groups


def standardize(rows: Tensor, recipe: RowRecipe) -> Tensor:
    """Rows with the training set's mean 0 and standard deviation 1 in each feature."""
    mean, std = (torch.from_numpy(a).to(rows.device) for a in (recipe.mean, recipe.std))
    return (rows - mean) / std
