"""Weighted votes of neighbours, from fast similarities where rounding cannot change the result.

Names: ``codes`` are classes numbered from 0; ``ks`` are numbers of neighbours.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .search import Backend, Floats, Index

TOGETHER = 4096
"""Number of queries searched at once."""

_BLOCK = 2**22  # votes (rows x classes) held at once


def predicted_codes(
    queries: NDArray,
    rows_of_train: NDArray,
    codes: NDArray[np.intp],
    ks: list[int],
    temperature: float,
    backend: Backend,
    *,
    rows: NDArray[np.intp] | None = None,
    alone: bool = False,
) -> Iterator[tuple[NDArray[np.intp], list[NDArray[np.intp]]]]:
    """Predict classes in batches: yield the positions of the queries and their classes for each k.

    ``rows`` selects the queries, all by default. Positions are positions in ``rows``.
    """
    index = Index.of(rows_of_train, metric="cosine", backend=backend, name="train")
    rows = np.arange(len(queries)) if rows is None else rows
    n_classes = int(codes.max()) + 1
    for start in range(0, len(rows), TOGETHER):
        positions = np.arange(start, min(start + TOGETHER, len(rows)))
        whole = len(rows) == len(queries)
        batch = queries[start : start + TOGETHER] if whole else queries[rows[positions]]
        batch = index.prepare(batch, "test", rows[positions])
        own = positions if alone else None
        yield positions, _vote(index, batch, codes, n_classes, ks, temperature, own)


def _vote(
    index: Index,
    queries: Floats,
    codes: NDArray[np.intp],
    n_classes: int,
    ks: list[int],
    temperature: float,
    own: NDArray[np.intp] | None,
) -> list[NDArray[np.intp]]:
    """Return the class with the most votes for each query, (rows,), for each k.

    Single-precision similarities are used where rounding cannot change the winner, and exact ones
    elsewhere.
    """
    k, available = max(ks), len(index.rows) - (own is not None)
    similarities, indices = index.search_roughly(queries, min(k + 1, available), own=own)
    error = index.error(queries)
    near = codes[indices]
    winners, certain = [], []
    for each in ks:
        winner, sure = _certain_winners(similarities, near, each, error, n_classes, temperature)
        winners.append(winner)
        certain.append(sure)
    left = np.flatnonzero(~np.logical_and.reduce(certain))
    if len(left):
        exact = index.search(queries[left], k, own=None if own is None else own[left])
        for winner, each in zip(winners, ks, strict=True):
            part = exact[0][:, :each], codes[exact[1][:, :each]]
            winner[left] = _winners(*part, n_classes, temperature)
    return winners


def _certain_winners(
    similarities: Floats,
    codes: NDArray[np.intp],
    k: int,
    error: NDArray[np.float64],
    n_classes: int,
    temperature: float,
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the class with the most votes and whether rounding cannot change it, (rows,) each.

    Rounding has two effects: a vote may be off by a factor exp(error / temperature), and the wrong
    rows may vote. Only voters within twice the error of the first row that does not vote can be
    wrong, and each would be replaced by a row of at most that similarity.
    """
    winners, certain = np.empty(len(codes), np.intp), np.empty(len(codes), bool)
    step = max(1, _BLOCK // n_classes)
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        sorted_ = similarities[part].astype(np.float64)
        votes = votes_of(sorted_[:, :k], codes[part, :k], n_classes, temperature)
        rows = np.arange(len(votes))
        winners[part] = winner = votes.argmax(axis=1)
        most = votes[rows, winner]
        votes[rows, winner] = -1.0
        second = np.maximum(votes.max(axis=1), 0.0)
        # Beyond this limit the bounds are useless and exp may overflow.
        factor = np.exp(np.minimum(4 * error[part] / temperature, 50.0))
        moved = 0.0
        if k < similarities.shape[1]:
            edge = sorted_[:, k] + 2 * error[part]
            n_moved = (sorted_[:, :k] <= edge[:, None]).sum(axis=1)
            moved = n_moved * np.exp(np.minimum((sorted_[:, k] - sorted_[:, 0]) / temperature, 0.0))
        certain[part] = most / factor - second * factor > 2 * factor * moved + 1e-9
    return winners, certain


def votes_of(
    similarities: NDArray[np.floating], codes: NDArray[Any], n_classes: int, temperature: float
) -> NDArray[np.float64]:
    """Sum the votes for each class, (rows, n_classes), scaled so that the nearest vote is 1."""
    logits = similarities.astype(np.float64) / temperature
    weights = np.exp(logits - logits[:, :1])  # neighbours are sorted: the first is the largest
    cells = np.arange(len(codes))[:, None] * n_classes + codes
    # bincount returns integers when there is nothing to count
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(codes) * n_classes)
    return votes.astype(np.float64, copy=False).reshape(len(codes), n_classes)


def _winners(
    similarities: Floats, codes: NDArray[Any], n_classes: int, temperature: float
) -> NDArray[np.intp]:
    """Return the code of the class with the most votes, (rows,)."""
    winners = np.empty(len(codes), np.intp)
    step = max(1, _BLOCK // n_classes)
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        votes = votes_of(similarities[part], codes[part], n_classes, temperature)
        winners[part] = votes.argmax(axis=1)
    return winners
