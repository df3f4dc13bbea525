"""Rows drawn class by class: samples, few-shot subsets, and rows held out to choose by.

Names: ``codes`` (n,), the classes as 0 to C - 1, each of them present.
"""

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.intp]


def draw_rows(n: int, wanted: int, y: NDArray | None, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw ``wanted`` of ``n`` rows, each class in proportion to its share, ascending.

    At least one row of each class, as long as there are places enough; any rows where ``y``, the
    classes, is None.
    """
    if y is None:
        return np.sort(rng.choice(n, wanted, replace=False))
    codes, counts = np.unique(y, return_inverse=True, return_counts=True)[1:]
    least = np.full_like(counts, wanted >= len(counts))
    return _draw(codes, _shares(counts, wanted, least, counts), rng)


def few_shot(codes: Codes, fraction: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw a share of the rows, as many of each class as its share, and at least one.

    Parameters
    ----------
    codes : ndarray of shape (n,)
    fraction : float
        In (0, 1]; 1 draws every row.
    rng : numpy.random.Generator

    Returns
    -------
    rows : ndarray of shape (m,)
        In ascending order; ``m`` is ``round(fraction * n)``, or the number of classes if that is
        more.
    """
    counts = np.bincount(codes)
    wanted = max(len(counts), round(fraction * len(codes)))
    return _draw(codes, _shares(counts, wanted, np.ones_like(counts), counts), rng)


def hold_out(
    codes: Codes, fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Part the rows in those to train on and those to choose by; no class loses its last row.

    Parameters
    ----------
    codes : ndarray of shape (n,)
    fraction : float
        In (0, 1), the share to hold out: at least one row, unless every class has only one.
    rng : numpy.random.Generator

    Returns
    -------
    kept, held : ndarrays of shapes (n - m,) and (m,)
        In ascending order.
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
    """Rows of each class, (C,), in proportion by largest remainders, within bounds."""
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
    """So many rows of each class, at random."""
    shuffled = rng.permutation(len(codes))
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    starts = np.cumsum(np.bincount(codes)) - np.bincount(codes)
    place = np.arange(len(codes)) - starts[codes[by_class]]  # of a row among those of its class
    return np.sort(by_class[place < shares[codes[by_class]]])
