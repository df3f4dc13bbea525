"""SGD for linear probes: one head per learning rate, of which held-out rows choose one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._checks import check_finite, check_rows
from .heads import Heads, resolve_device, score_heads, train_heads
from .settings import Scaling, SgdSettings, Views
from .stratified import hold_out

_RATES_FOR = 256  # the batch size that learning rates are stated for


class Chosen(NamedTuple):
    """The chosen head.

    Attributes
    ----------
    weights : ndarray of shape (C, d), float64
        Weights, for the standardised features.
    intercept : ndarray of shape (C,), float64
        Intercepts, for the standardised features.
    rate : float
        Chosen learning rate.
    scores : ndarray of shape (R,)
        Accuracy of each rate on the held-out rows; NaN for a single rate.
    """

    weights: NDArray[np.float64]
    intercept: NDArray[np.float64]
    rate: float
    scores: NDArray[np.float64]


def train_and_choose(
    X: NDArray,
    codes: NDArray[np.intp],
    settings: SgdSettings,
    *,
    scaling: Scaling | None,
    views: Views | None,
) -> Chosen:
    """Train one head per rate, and choose the one with the highest accuracy on held-out rows.

    Among equal accuracies, the head with the lowest loss is chosen.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Embeddings that score the heads and, without ``views``, train them.
    codes : ndarray of shape (n,)
        Classes, in [0, C).
    settings : SgdSettings
        Settings of the training.
    scaling : Scaling or None
        Standardisation of the features; None leaves them unchanged.
    views : callable or None
        Function that returns embeddings of augmented images; see `LinearProbe.fit_views`.

    Raises
    ------
    FloatingPointError
        If no head is finite.
    """
    every, rates = np.arange(len(X)), settings.rates
    kept, held = every, every[:0]
    if len(rates) > 1:
        rng = np.random.default_rng(settings.seed)
        kept, held = hold_out(codes, settings.validation_fraction, rng)
    data = _Rows(X, codes, scaling, views)
    heads, best, scores = _train(data, kept, rates, settings), 0, np.full(len(rates), np.nan)
    if len(rates) > 1:
        judges = held if len(held) else every
        scores, loss = score_heads(heads, data.of(judges), data.labels(judges))
        best = int(np.lexsort([loss, -np.where(np.isfinite(loss), scores, -1)])[0])
    at = best
    if settings.refit and len(held):
        heads, at = _train(data, every, rates[best : best + 1], settings), 0
    weights, intercept = (
        part.cpu().numpy().astype(np.float64) for part in (heads.weights[at], heads.biases[at])
    )
    if not (np.isfinite(weights).all() and np.isfinite(intercept).all()):
        raise FloatingPointError(
            f"The best head, with learning rate {rates[best]:g}, diverged. Lower learning_rates, "
            "or set standardize=True to scale the features."
        )
    return Chosen(weights, intercept, rates[best], scores)


class _Rows(NamedTuple):
    """Access to rows, scaled, and their classes, as tensors."""

    X: NDArray
    codes: NDArray[np.intp]
    scaling: Scaling | None
    views: Views | None

    def labels(self, rows: NDArray[np.intp]) -> Tensor:
        return torch.from_numpy(self.codes[rows].astype(np.int64))

    def of(self, rows: NDArray[np.intp]) -> Tensor:
        """Return scaled rows of ``X``."""
        if self.scaling:
            return torch.from_numpy(self.scaling(self.X, np.float32, rows))
        return torch.from_numpy(self.X[rows].astype(np.float32, copy=False))

    def epochs(self, rows: NDArray[np.intp]) -> Callable[[int], Tensor]:
        """Return a function from an epoch to its training rows: the same rows, or their views."""
        if self.views is not None:
            return partial(self._of_views, self.views, rows)
        same = self.of(rows)
        return lambda _: same

    def _of_views(self, views: Views, rows: NDArray[np.intp], epoch: int) -> Tensor:
        name = f"views({epoch}, rows)"
        fresh = check_rows(views(epoch, rows), name)
        if fresh.shape != (len(rows), self.X.shape[1]):
            raise ValueError(
                f"{name} has shape {fresh.shape}, expected {(len(rows), self.X.shape[1])}: one "
                "embedding per row, in the order of rows, with as many features as X."
            )
        check_finite(fresh, name)
        scaled = self.scaling(fresh, np.float32) if self.scaling else fresh.astype(np.float32)
        return torch.from_numpy(scaled)


def _train(
    data: _Rows, rows: NDArray[np.intp], rates: Sequence[float], settings: SgdSettings
) -> Heads:
    """Train heads with the given rates on the given rows or on their views."""
    batch_size = min(settings.batch_size, len(rows))
    return train_heads(
        data.epochs(rows),
        data.labels(rows),
        int(data.codes.max()) + 1,
        [rate * batch_size / _RATES_FOR for rate in rates],
        epochs=settings.epochs,
        batch_size=batch_size,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        device=resolve_device(settings.device),
    )
