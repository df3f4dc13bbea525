"""Random numbers as a pure function of counters (Philox) instead of a stream.

Every draw of a view depends only on ``(seed, epoch, row, view, operation)``. The number of workers,
the split into batches, the position in a batch and resuming a run therefore cannot change a draw.
The generator is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
2011), as in :class:`numpy.random.Philox`, evaluated for many counters at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_TO_UNIT = 2.0**-53

Words = npt.NDArray[np.uint64]


def _multiply(a: np.uint64, b: Words) -> tuple[Words, Words]:
    """Return the high and low 64 bits of the 128-bit product of a scalar and an array."""
    a_low, a_high = a & _LOW, a >> _HALF
    b_low, b_high = b & _LOW, b >> _HALF
    low = a_low * b_low
    middle = a_high * b_low + (low >> _HALF)
    cross = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (cross >> _HALF), a * b


def philox(counter: Sequence[npt.ArrayLike], key: tuple[int, int]) -> Words:
    """Evaluate Philox4x64-10 for many counters at once.

    Parameters
    ----------
    counter : sequence of 4 integer array-likes
        Four words of the counter, which broadcast against each other.
    key : tuple of two int
        Two words of the key, each in ``[0, 2**64)``.

    Returns
    -------
    ndarray of shape (..., 4), uint64
        Four independent words for each counter.
    """
    words = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    c0, c1, c2, c3 = words
    mask = (1 << 64) - 1
    with np.errstate(over="ignore"):  # products wrap, and NumPy warns of this for scalars
        for number in range(_ROUNDS):
            k0, k1 = (np.uint64((k + number * w) & mask) for k, w in zip(key, _WEYL, strict=True))
            high0, low0 = _multiply(_MULTIPLIERS[0], c0)
            high1, low1 = _multiply(_MULTIPLIERS[1], c2)
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return np.stack([c0, c1, c2, c3], axis=-1)


def uniforms(
    seed: int, epoch: int, row: npt.ArrayLike, view: npt.ArrayLike, operation: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Return four uniform numbers in [0, 1) per (row, view), a pure function of the arguments.

    Parameters
    ----------
    seed : int
        Seed of the fit, in ``[0, 2**64)``.
    epoch : int
        Epoch, from 1.
    row, view : int array-likes
        Row of the image in the data set and index of the view, which broadcast against each other.
    operation : int or array-like of int
        Number of the drawn decision; see :mod:`sklearn_excb.views.multicrop`.

    Returns
    -------
    ndarray of shape (..., 4), float64
    """
    words = philox((row, epoch, view, operation), (seed, 0))
    return (words >> np.uint64(11)).astype(np.float64) * _TO_UNIT


def permutation(seed: int, epoch: int, n_samples: int) -> npt.NDArray[np.int64]:
    """Return the order in which an epoch visits the rows, a pure function of ``(seed, epoch)``."""
    return np.random.default_rng([seed, epoch]).permutation(n_samples)
