"""Exact nearest neighbours by inner product, the same to the last bit whatever computes them.

A fast single-precision search proposes a few more rows than are wanted; the proposals are scored
again in double precision, ranked, and cut. A bound on the rounding error of the fast search then
either proves that nothing better was left out, or sends the query to a slower exhaustive pass. Fast
searches alone cannot promise this: matrix products round identical rows differently depending on
where they stand, and neither FAISS nor ``torch.topk`` orders ties.

Names: ``queries`` (rows, d), ``database`` (n, d), ``similarities`` and ``indices`` (rows, k).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import check_choice, check_count, check_finite, check_rows
from ._fast_search import Backend, Floats, Ints, Propose
from ._fast_search import proposer as _proposer

__all__ = ["Backend", "Floats", "Ints", "nearest_neighbors"]

Metric = Literal["cosine", "dot"]

_BLOCK = 2**23  # elements of the largest temporary: 32 MB in single precision
_PREPARED = 2**17  # elements made ready at once: they stay in cache
_INDEX_BITS = np.int64(0xFFFFFFFF)


def nearest_neighbors(
    queries: ArrayLike,
    database: ArrayLike,
    k: int,
    *,
    metric: Metric = "cosine",
    backend: Backend = "auto",
    batch_size: int = 4096,
    exclude_self: bool = False,
) -> tuple[Floats, Ints]:
    """Find the k most similar rows of a database for each query, exactly.

    Similarities are computed in double precision from single-precision rows, and rounded to single
    precision. They are sorted in descending order; equal ones by index, lowest first, also where
    they straddle the k-th place. The answer depends on neither the backend nor the batch size.

    Parameters
    ----------
    queries : array-like of shape (n_queries, d)
        Real, finite rows. Read in batches, so a memory map works.
    database : array-like of shape (n, d)
        Real, finite rows.
    k : int
        Number of neighbours, in [1, n]; with ``exclude_self``, in [1, n - 1].
    metric : {"cosine", "dot"}, default="cosine"
        Inner product of L2-normalised rows, or of the rows as they are. A row of zeros has cosine 0
        with everything.
    backend : {"auto", "faiss", "torch"}, default="auto"
        What proposes candidates. FAISS uses a GPU if it was built for one and one is present, torch
        if CUDA is available. ``"auto"`` takes FAISS where it is installed, else torch.
    batch_size : int, default=4096
        Queries handled at once. Beside the database in single precision, memory is bounded by a
        few hundred megabytes for any number of rows.
    exclude_self : bool, default=False
        For queries that *are* the database: leave row i out of the neighbours of query i.

    Returns
    -------
    similarities : ndarray of shape (n_queries, k), float32
        In [-1, 1] up to rounding for ``"cosine"``; unbounded for ``"dot"``.
    indices : ndarray of shape (n_queries, k), int64
        Rows of ``database``.

    Raises
    ------
    ValueError
        If shapes disagree, ``k`` exceeds the database, or a row holds NaN or infinity.
    ImportError
        If the backend asked for is not installed.

    Examples
    --------
    >>> from evaluation import nearest_neighbors
    >>> similarities, indices = nearest_neighbors([[1, 0]], [[0, 1], [2, 0], [1, 0]], k=2)
    >>> indices
    array([[1, 2]])
    """
    queries, database = check_rows(queries, "queries"), check_rows(database, "database")
    check_choice(metric, "metric", ("cosine", "dot"))
    check_choice(backend, "backend", ("auto", "faiss", "torch"))
    batch_size = check_count(batch_size, "batch_size")
    k = check_count(k, "k")
    if queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} features and the database {database.shape[1]}: "
            "needed the same number. Embed both with the same model."
        )
    if exclude_self and len(queries) != len(database):
        raise ValueError(
            f"exclude_self=True with {len(queries)} queries and {len(database)} database rows: "
            "needed the same in both. Leave it out when the queries are other images."
        )
    available = len(database) - bool(exclude_self)
    if k > available:
        others = " other" if exclude_self else ""
        raise ValueError(
            f"k={k} exceeds the {available}{others} rows of the database. Lower k, or search in "
            "more rows."
        )

    index = Index.of(database, metric=metric, backend=backend)
    similarities = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), batch_size):
        rows = np.arange(start, min(start + batch_size, len(queries)))
        batch = index.prepare(queries[start : start + batch_size], "queries", rows)
        found = index.search(batch, k, own=rows if exclude_self else None)
        similarities[rows], indices[rows] = found
    return similarities, indices


@dataclass(frozen=True)
class Index:
    """A database ready to be searched."""

    rows: Floats
    metric: Metric
    largest: float  # the norm of the longest row
    propose: Propose
    rounding: float  # how far the fast search rounds its inputs

    @classmethod
    def of(
        cls,
        database: NDArray,
        *,
        metric: Metric,
        backend: Backend,
        name: str = "database",
        positions: NDArray[np.int64] | None = None,
    ) -> "Index":
        """Make a database ready; its ``name`` and ``positions`` are what errors speak of."""
        rows = _prepare(database, metric, name, positions=positions)
        propose, rounding = _proposer(rows, backend)
        # Rounded to single precision, a row of length 1 is no longer than this.
        largest = 1 + 2.0**-23 if metric == "cosine" else float(_norms(rows).max())
        return cls(rows, metric, largest, propose, rounding)

    def prepare(self, queries: NDArray, name: str, positions: NDArray[np.int64]) -> Floats:
        """Make queries ready; ``positions`` are theirs in the whole array, for errors."""
        return _prepare(queries, self.metric, name, positions=positions)

    def error(self, queries: Floats) -> NDArray[np.float64]:
        """Return how far a fast similarity may lie from the exact one, (rows,)."""
        norms = _norms(queries)
        if norms.max(initial=0.0) * self.largest > np.finfo(np.float32).max:
            raise ValueError(
                "The inner products overflow single precision. Scale the rows down, or use "
                'metric="cosine".'
            )
        # A sum of d products is off by at most (d + 1) roundoffs of |q| |x|, in any order; the
        # other three cover the rounding of the scores compared here.
        relative = (queries.shape[1] + 4) * 2.0**-24 + self.rounding
        return relative * norms * self.largest + np.finfo(np.float32).tiny

    def search(self, queries: Floats, k: int, *, own: Ints | None = None) -> tuple[Floats, Ints]:
        """Return the k nearest rows of each query, (rows, k), leaving out its ``own``."""
        wanted = k + (own is not None)
        found = _search(queries, self.rows, wanted, self.propose, self.error(queries))
        return found if own is None else _without(own, *found)

    def search_roughly(
        self, queries: Floats, k: int, *, own: Ints | None = None
    ) -> tuple[Floats, Ints]:
        """As `search`, of similarities that may be off by `error`, and are sorted by these."""
        wanted = k + (own is not None)
        similarities, indices = self.propose(queries, wanted)
        order = np.argsort(-similarities, axis=1, kind="stable")
        found = np.take_along_axis(similarities, order, 1), np.take_along_axis(indices, order, 1)
        return found if own is None else _without(own, *found)


def _search(
    queries: Floats, rows: Floats, k: int, propose: Propose, error: NDArray[np.float64]
) -> tuple[Floats, Ints]:
    """Propose, score again, rank; then prove each answer or replace it."""
    similarities = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    left = np.arange(len(queries))
    for width in _widths(k, len(rows)):
        proposed, candidates = propose(queries[left], width)
        ranked = _rank(_score(queries[left], rows, candidates), candidates, k)
        similarities[left], indices[left] = ranked
        if width == len(rows):
            return similarities, indices
        left = left[ranked[0][:, -1] <= proposed.min(axis=1) + error[left]]
        if len(left) == 0:
            return similarities, indices
    similarities[left], indices[left] = _exhaustive(queries[left], rows, k)
    return similarities, indices


def _widths(k: int, n: int) -> list[int]:
    """Numbers of candidates to try in turn before going through all n rows.

    One spare row proves nearly every query at k = 1, the assignment step of k-means; more
    neighbours lie closer together at the k-th place. The second, wider try is for embeddings in a
    narrow cone and for small groups of duplicates: it costs a third of the exhaustive pass.
    """
    first = 2 if k == 1 else k + 8 + k // 8
    return [min(n, first)] if first >= n else [first, min(n, 2 * first + 32)]


def _score(queries: Floats, rows: Floats, candidates: Ints) -> Floats:
    """Double-precision similarity of each query to its own candidates, (rows, width).

    By einsum rather than a matrix product: its result for a pair of rows does not depend on where
    they stand, so identical rows score identically.
    """
    scores = np.empty(candidates.shape, np.float32)
    step = max(1, _BLOCK // 2 // (candidates.shape[1] * rows.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        chosen = rows[candidates[part]].astype(np.float64)  # (rows, width, d)
        scores[part] = np.einsum("qd,qwd->qw", queries[part].astype(np.float64), chosen)
    return scores


def _exhaustive(queries: Floats, rows: Floats, k: int) -> tuple[Floats, Ints]:
    """Score every database row in double precision and keep the first k by rank."""
    doubles = queries.astype(np.float64)
    step = max(k, _BLOCK // max(len(queries), rows.shape[1]))
    best = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.float64)
        # Rounding to single precision absorbs the position-dependent last bit of the product.
        scores = (doubles @ block.T).astype(np.float32)
        keys = _keys(scores, np.arange(start, start + len(block)))
        best = _largest(np.concatenate([best, keys], axis=1), k)
    return _unpack(np.sort(best, axis=1)[:, ::-1])


def _rank(similarities: Floats, indices: Ints, k: int) -> tuple[Floats, Ints]:
    """Sort by descending similarity, equal ones by ascending index, and keep k."""
    return _unpack(np.sort(_keys(similarities, indices), axis=1)[:, : -k - 1 : -1])


def _keys(similarities: Floats, indices: Ints) -> Ints:
    """Pack (similarity, index) into one integer whose descending order is the ranking.

    The high half is the float's bit pattern, made monotonic for negatives; the low half the index,
    reversed. The keys are distinct, so any sort or partition of them obeys the rule for ties.
    """
    bits = (similarities + np.float32(0)).view(np.int32)  # adding 0 makes -0.0 equal to 0.0
    monotonic = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return (monotonic.astype(np.int64) << 32) | (_INDEX_BITS - indices)


def _unpack(keys: Ints) -> tuple[Floats, Ints]:
    """Undo `_keys`."""
    monotonic = (keys >> 32).astype(np.int32)
    bits = monotonic ^ ((monotonic >> 31) & np.int32(0x7FFFFFFF))
    return bits.view(np.float32), _INDEX_BITS - (keys & _INDEX_BITS)


def _largest(keys: Ints, k: int) -> Ints:
    """Keep the k largest keys of each row, in any order."""
    if keys.shape[1] <= k:
        return keys
    if k == 1:  # a maximum is many times faster than a partition
        return keys.max(axis=1, keepdims=True)
    return np.partition(keys, -k, axis=1)[:, -k:]


def _without(own: Ints, similarities: Floats, indices: Ints) -> tuple[Floats, Ints]:
    """Drop each query's own row from its neighbours, or the last one if it is not among them."""
    drop = indices == own[:, None]
    drop[~drop.any(axis=1), -1] = True
    shape = (len(own), indices.shape[1] - 1)
    return similarities[~drop].reshape(shape), indices[~drop].reshape(shape)


def _norms(rows: Floats) -> NDArray[np.float64]:
    """L2 norm of each row in double precision, (rows,)."""
    return np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64, casting="safe"))


def _prepare(
    x: NDArray, metric: Metric, name: str, *, positions: NDArray[np.int64] | None = None
) -> Floats:
    """Check the values and return contiguous single-precision rows, normalised for cosine."""
    prepared = np.empty(x.shape, np.float32)
    step = max(1, _PREPARED // x.shape[1])
    for start in range(0, len(x), step):
        block = np.array(x[start : start + step], dtype=np.float64)
        if not np.isfinite(block.sum()):  # or the sum of finite numbers overflows
            rows = positions[start : start + step] if positions is not None else None
            check_finite(block, name, rows=rows, first_row=start)
        if metric == "cosine":
            norms = np.linalg.norm(block, axis=1, keepdims=True)
            np.divide(
                block,
                np.where(norms > 0, norms, 1.0),
                out=prepared[start : start + step],
                casting="same_kind",
            )
            continue
        if np.abs(block).max(initial=0.0) > np.finfo(np.float32).max:
            raise ValueError(
                f"{name} holds values beyond single precision. Scale the rows down, or use "
                'metric="cosine".'
            )
        prepared[start : start + step] = block
    return prepared
