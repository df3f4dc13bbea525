"""What a probe is trained with: the settings of SGD, and features brought to one scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    import torch

Views = Callable[[int, NDArray[np.intp]], Any]
"""From an epoch and places of images to embeddings (rows, d) of their augmented views."""

_BLOCK = 2**20  # elements that are in double precision at once


@dataclass(frozen=True)
class SgdSettings:
    """Of `LinearProbe`, which documents them; checked."""

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
    """Features about their mean, in units of their deviation.

    Attributes
    ----------
    mean, deviation : ndarrays of shape (d,), float64
        A feature that is constant up to rounding has deviation 1.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, X: NDArray) -> Scaling:
        """Measure it on rows (n, d)."""
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
        """Scale rows, or some of them; differences are in double precision, whatever ``dtype``."""
        scaled = np.empty((len(X) if rows is None else len(rows), X.shape[1]), dtype)
        for block in _blocks(scaled):
            some = X[block if rows is None else rows[block]]
            scaled[block] = (some - self.mean) / self.deviation
        return scaled

    def undo(
        self, weights: NDArray, intercept: NDArray
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights (C, d) and intercepts (C,) on features as given, from those on scaled ones."""
        weights = weights / self.deviation
        return weights, intercept - weights @ self.mean


def _blocks(X: NDArray) -> list[slice]:
    size = max(1, _BLOCK // X.shape[1])
    return [slice(start, start + size) for start in range(0, len(X), size)]
