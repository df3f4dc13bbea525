"""Views of feature vectors: noise in the place of crops and colours.

Rows are centred and divided by one number, so distances keep their meaning, as in k-means. The
noise follows from them: it is a multiple of the distance within which a row has as many neighbours
as half a cluster holds, whatever the number of features and of clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from sklearn_excb.runtime.philox import uniforms
from sklearn_excb.runtime.transfers import to_device

Indices = npt.NDArray[np.int64]

_STATISTICS_BLOCK = 2**20  # elements: 8 MB of float64
_NOISE = 1 << 32  # operation; the block of four features is added
_STRENGTH, _MOST = 1.8, 1.2  # of the noise: in neighbourhood radii, and at most in units of scale
_LENGTHS = 3.0  # interquartile ranges of the rows' lengths that the constant feature is
_SHORT = 1e-6  # lengths, in units of scale, that rounding alone may give
_QUERIES = 64  # rows whose neighbours are looked for
_FEWEST, _A_CLUSTER = 20_000, 4  # rows among which they are: as many, or as many a cluster


@dataclass(frozen=True)
class RowRecipe:
    """Views of rows.

    Attributes
    ----------
    n_global, n_local : int
        G and L.
    mean : ndarray of shape (d,)
        Of each feature.
    scale : float
        Root mean square of the features' standard deviations.
    noise : float
        Standard deviation of the noise on each feature, in units of ``scale``.
    """

    n_global: int
    n_local: int
    mean: npt.NDArray[np.float64]
    scale: float
    noise: float

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
    return (rows + recipe.noise * to_device(torch.from_numpy(noise), rows.device)).flatten(0, 1)


def standardize(rows: npt.NDArray[Any], recipe: RowRecipe) -> Tensor:
    """Rows about the training set's mean, in units of its scale, float32.

    The difference is taken in float64: features far from zero keep their digits.
    """
    standard = (rows.astype(np.float64) - recipe.mean) / recipe.scale
    return torch.from_numpy(standard.astype(np.float32))


def row_recipe(
    load: Callable[[Indices], npt.NDArray[Any]],
    n_rows: int,
    *,
    n_clusters: int,
    n_global: int,
    n_local: int,
) -> RowRecipe:
    """Recipe of a set of rows, measured on it.

    Noise of 1.8 radii, at most 1.2: in many dimensions without structure the radius is that of the
    whole set, and its noise would drown the rows. The linear projector of rows averages noise out:
    1.8, 3 and 4.5 radii gave an NMI of .676 each on embeddings of digits (three seeds), limits of
    1.2 and 2 gave .512 and .513 on MNIST (one seed). With hidden layers (``backbone="mlp"``)
    1.2, 1.5 and 1.8 gave .625, .632 and .647 on digits' pixels. Noise with the covariance of
    differences between neighbours gave .679 on those embeddings, and was no better on MNIST.

    Parameters
    ----------
    load : callable
        From indices to rows (n, d); asked for a block at a time.
    n_rows : int
        How many there are.
    n_clusters : int
        K.
    n_global, n_local : int
        G and L.
    """
    mean, scale = row_statistics(load, n_rows)
    radius = neighborhood_radius(load, n_rows, n_clusters) / scale / math.sqrt(len(mean))
    return RowRecipe(n_global, n_local, mean, scale, min(_MOST, _STRENGTH * radius))


def row_statistics(
    load: Callable[[Indices], npt.NDArray[Any]], n_rows: int
) -> tuple[npt.NDArray[np.float64], float]:
    """Mean of each feature, and the root mean square of their deviations; 1 without any spread.

    Raises
    ------
    ValueError
        If the rows are so large that their squares overflow.
    """
    blocks = _blocks(load, np.arange(n_rows))
    with np.errstate(over="ignore", invalid="ignore"):
        sums = [load(block).sum(axis=0, dtype=np.float64) for block in blocks]
        mean = np.sum(sums, axis=0) / n_rows
        squares = np.sum([np.square(load(block) - mean).sum() for block in blocks])
    if not np.isfinite(squares):
        raise ValueError("The rows of X are so large that their squares overflow. Divide them.")
    scale = math.sqrt(squares / n_rows / len(mean))
    return mean, scale if scale > 1e-12 * max(1.0, np.abs(mean).max()) else 1.0


def constant_feature(
    load: Callable[[Indices], npt.NDArray[Any]], n_rows: int, recipe: RowRecipe
) -> float:
    """Value of the constant feature that is put beside those of the rows, in units of their scale.

    Three interquartile ranges of the rows' lengths: as much as most lengths where there are few
    features, and little beside them where there are many and all rows are about as long; at least
    a tenth of the median length. Two moons (K = 51), of which it makes 3.2, came to an NMI of .19
    without it and to .30, as by k-means, with 1.0, 2.1 and 3.1; MNIST, of which it makes 15.8, to
    .519, .512 and .511 with 8, 16 and 24 (one seed).

    Parameters
    ----------
    load, n_rows
        As for :func:`row_recipe`.
    recipe : RowRecipe
        With their mean and scale.
    """
    blocks = _blocks(load, _spread(n_rows, _FEWEST))
    lengths = np.concatenate(
        [np.linalg.norm((load(block) - recipe.mean) / recipe.scale, axis=1) for block in blocks]
    )
    low, median, high = np.quantile(lengths, [0.25, 0.5, 0.75])
    constant = max(_LENGTHS * (high - low), median / 10)
    return float(constant) if constant > _SHORT else 1.0


def neighborhood_radius(
    load: Callable[[Indices], npt.NDArray[Any]], n_rows: int, n_clusters: int
) -> float:
    """Median distance within which a row finds n / (2 K) others.

    Measured for a few rows, among 20,000 or four a cluster, all of them spread over the set.
    """
    others = _spread(n_rows, max(_FEWEST, _A_CLUSTER * n_clusters))
    queries = load(_spread(n_rows, _QUERIES)).astype(np.float64)
    distances = np.concatenate(
        [
            cdist(queries, load(block).astype(np.float64)).astype(np.float32)
            for block in _blocks(load, others)
        ],
        axis=1,
    )
    # a row is its own nearest one
    rank = min(len(others) - 1, max(1, round(len(others) / (2 * n_clusters))))
    return float(np.median(np.partition(distances, rank, axis=1)[:, rank]))


def _spread(n_rows: int, most: int) -> Indices:
    """At most so many indices, evenly apart."""
    return np.linspace(0, n_rows - 1, min(n_rows, most)).round().astype(np.int64)


def _blocks(load: Callable[[Indices], npt.NDArray[Any]], indices: Indices) -> list[Indices]:
    step = max(1, _STATISTICS_BLOCK // load(indices[:1]).shape[1])
    return [indices[i : i + step] for i in range(0, len(indices), step)]
