"""Stratified draws of rows: samples, few-shot subsets and held-out rows.

Names: ``codes`` (n,) are classes numbered from 0 to C - 1; each class has at least one row.
"""

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.intp]


def draw_rows(n: int, wanted: int, y: NDArray | None, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw ``wanted`` of ``n`` rows in proportion to the classes ``y``; return them ascending.

    Each class keeps at least one row if ``wanted`` allows it. Without ``y``, the draw is not
    stratified.
    """
    if y is None:
        return np.sort(rng.choice(n, wanted, replace=False))
    codes, counts = np.unique(y, return_inverse=True, return_counts=True)[1:]
    least = np.full_like(counts, wanted >= len(counts))
    return _draw(codes, _shares(counts, wanted, least, counts), rng)


def few_shot(codes: Codes, fraction: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw a share of the rows in proportion to the classes, at least one row per class.

    Parameters
    ----------
    codes : ndarray of shape (n,)
        Classes of the rows.
    fraction : float
        Share of the rows, in (0, 1]; 1 draws all rows.
    rng : numpy.random.Generator
        Generator of the draw.

    Returns
    -------
    rows : ndarray of shape (m,)
        Drawn rows in ascending order; ``m`` is ``round(fraction * n)``, or the number of classes if
        that is larger.
    """
    counts = np.bincount(codes)
    wanted = max(len(counts), round(fraction * len(codes)))
    return _draw(codes, _shares(counts, wanted, np.ones_like(counts), counts), rng)


def hold_out(
    codes: Codes, fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split the rows into training rows and held-out rows; each class keeps a training row.

    Parameters
    ----------
    codes : ndarray of shape (n,)
        Classes of the rows.
    fraction : float
        Share of the rows to hold out, in (0, 1). At least one row is held out, unless every class
        has only one.
    rng : numpy.random.Generator
        Generator of the draw.

    Returns
    -------
    kept, held : ndarrays of shapes (n - m,) and (m,)
        Training rows and held-out rows, in ascending order.
    """
    counts = np.bincount(codes)
    wanted = max(1, round(fraction * len(codes)))
    held = _draw(codes, _shares(counts, wanted, np.zeros_like(counts), counts - 1), rng)
    return np.setdiff1d(np.arange(len(codes)), held), held


def _shares(
    counts: NDArray[np.intp],
    total: int,
    least: NDArray[np.intp],
    most: NDArray[np.intp],
) -> NDArray[np.intp]:
    """Return the number of rows per class, (C,), by largest remainders within bounds."""
    exact = counts * (total / counts.sum())
    shares = np.clip(np.floor(exact).astype(np.intp), least, most)
    while (missing := total - shares.sum()) > 0 and (open_ := shares < most).any():
        behind = np.where(open_, exact - shares, -np.inf)
        shares[np.argsort(-behind, kind="stable")[: min(missing, open_.sum())]] += 1
    while (extra := shares.sum() - total) > 0 and (closed := shares > least).any():
        ahead = np.where(closed, shares - exact, -np.inf)
        shares[np.argsort(-ahead, kind="stable")[: min(extra, closed.sum())]] -= 1
    return shares


def _draw(codes: Codes, shares: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw the given number of rows of each class at random."""
    shuffled = rng.permutation(len(codes))
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    starts = np.cumsum(np.bincount(codes)) - np.bincount(codes)
    place = np.arange(len(codes)) - starts[codes[by_class]]  # rank within its class
    return np.sort(by_class[place < shares[codes[by_class]]])
