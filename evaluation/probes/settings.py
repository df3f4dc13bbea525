"""Settings of SGD and standardisation of features, for linear probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    import torch

Views = Callable[[int, NDArray[np.intp]], Any]
"""Function of an epoch and positions of images; returns embeddings (rows, d) of augmented views."""

_BLOCK = 2**20  # elements held in double precision at once


@dataclass(frozen=True)
class SgdSettings:
    """Checked settings of SGD; `LinearProbe` documents them."""

    rates: tuple[float, ...]
    epochs: int
    batch_size: int
    weight_decay: float
    validation_fraction: float
    refit: bool
    seed: int
    device: str | torch.device


@dataclass(frozen=True)
class Scaling:
    """Standardisation of features to mean 0 and standard deviation 1.

    Attributes
    ----------
    mean, deviation : ndarrays of shape (d,), float64
        Mean and standard deviation of each feature. The deviation of a feature that is constant up
        to rounding is set to 1.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, X: NDArray) -> Scaling:
        """Compute mean and deviation of rows (n, d)."""
        mean = X.mean(axis=0, dtype=np.float64)
        squares = np.zeros_like(mean)
        for block in _blocks(X):
            squares += np.square(X[block] - mean).sum(axis=0)
        deviation = np.sqrt(squares / len(X))
        rounding = np.finfo(X.dtype).eps * np.abs(mean)
        return cls(mean, np.where(deviation > rounding, deviation, 1.0))

    def __call__(
        self, X: NDArray, dtype: DTypeLike, rows: NDArray[np.intp] | None = None
    ) -> NDArray:
        """Scale all or some rows; differences are in double precision for every ``dtype``."""
        scaled = np.empty((len(X) if rows is None else len(rows), X.shape[1]), dtype)
        for block in _blocks(scaled):
            some = X[block if rows is None else rows[block]]
            scaled[block] = (some - self.mean) / self.deviation
        return scaled

    def undo(
        self, weights: NDArray, intercept: NDArray
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Convert weights (C, d) and intercepts (C,) from scaled features to features as given."""
        weights = weights / self.deviation
        return weights, intercept - weights @ self.mean


def _blocks(X: NDArray) -> list[slice]:
    size = max(1, _BLOCK // X.shape[1])
    return [slice(start, start + size) for start in range(0, len(X), size)]
