"""Exact nearest neighbours by inner product, bit for bit the same with every backend.

A fast single-precision search proposes slightly more rows than needed. The proposals are scored
again in double precision, ranked and truncated. A bound on the rounding error of the fast search
then proves that no better row was left out; if it cannot, the query takes a slower exhaustive
search. Fast searches alone are not exact: matrix products round identical rows differently in
different positions, and neither FAISS nor ``torch.topk`` orders ties.

Names: ``queries`` (rows, d), ``database`` (n, d), ``similarities`` and ``indices`` (rows, k).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import scaled
from .._checks import check_choice, check_count, check_finite, check_rows
from ._fast_search import Backend, Floats, Ints, Propose
from ._fast_search import proposer as _proposer

__all__ = ["Backend", "Floats", "Ints", "nearest_neighbors"]

Metric = Literal["cosine", "dot"]

_BLOCK = 2**23  # elements of the largest temporary: 32 MB in single precision
_PREPARED = 2**17  # elements prepared at once: they fit into the cache
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

    Similarities are computed in double precision from single-precision rows and rounded to single
    precision. They are sorted in descending order, ties by ascending index, including ties at the
    k-th place. The result depends on neither the backend nor the batch size.

    Parameters
    ----------
    queries : array-like of shape (n_queries, d)
        Real, finite rows. They are read in batches and may be a memory map.
    database : array-like of shape (n, d)
        Real, finite rows.
    k : int
        Number of neighbours, in [1, n]; with ``exclude_self``, in [1, n - 1].
    metric : {"cosine", "dot"}, default="cosine"
        Similarity: inner product of L2-normalised rows ("cosine") or of the given rows ("dot"). A
        row of zeros has cosine 0 with every row.
    backend : {"auto", "faiss", "torch"}, default="auto"
        Library that proposes candidates. FAISS uses a GPU if it was built for GPUs and one is
        available, torch if CUDA is available. "auto" uses FAISS if it is installed, otherwise
        torch.
    batch_size : int, default=4096
        Number of queries processed at once. In addition to the database in single precision, the
        search uses a few hundred megabytes at most, for any number of rows.
    exclude_self : bool, default=False
        Whether to leave row i out of the neighbours of query i. Use it if the queries are the
        database.

    Returns
    -------
    similarities : ndarray of shape (n_queries, k), float32
        Similarities to the neighbours, in [-1, 1] up to rounding for "cosine", unbounded for "dot".
    indices : ndarray of shape (n_queries, k), int64
        Row numbers of the neighbours in ``database``.

    Raises
    ------
    ValueError
        If shapes disagree, ``k`` exceeds the database, or a row holds NaN or infinity.
    ImportError
        If the requested backend is not installed.

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
            f"queries have {queries.shape[1]} features and the database {database.shape[1]}, "
            "needed the same number. Embed both with the same model."
        )
    if exclude_self and len(queries) != len(database):
        raise ValueError(
            f"exclude_self=True with {len(queries)} queries and {len(database)} database rows, "
            "needed the same rows in both. Use exclude_self=False if the queries are other images."
        )
    available = len(database) - bool(exclude_self)
    if k > available:
        others = " other" if exclude_self else ""
        raise ValueError(
            f"k={k} exceeds the {available}{others} rows of the database. Lower k, or pass a "
            "larger database."
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
    """A database prepared for searches."""

    rows: Floats
    metric: Metric
    largest: float  # largest norm of a row
    propose: Propose
    rounding: float  # relative rounding of inputs in the fast search

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
        """Prepare a database; errors mention ``name`` and ``positions``."""
        rows = _prepare(database, metric, name, positions=positions)
        propose, rounding = _proposer(rows, backend)
        # Bound on the norm of a unit row after rounding to single precision.
        largest = 1 + 2.0**-23 if metric == "cosine" else float(_norms(rows).max())
        return cls(rows, metric, largest, propose, rounding)

    def prepare(self, queries: NDArray, name: str, positions: NDArray[np.int64]) -> Floats:
        """Prepare queries; ``positions`` are their rows in the whole array, for errors."""
        return _prepare(queries, self.metric, name, positions=positions)

    def error(self, queries: Floats) -> NDArray[np.float64]:
        """Return a bound on the error of the fast similarities, (rows,)."""
        norms = _norms(queries)
        if norms.max(initial=0.0) * self.largest > np.finfo(np.float32).max:
            raise ValueError(
                "The inner products overflow single precision. Scale the rows down, or use "
                'metric="cosine".'
            )
        # The error of a sum of d products is at most (d + 1) roundoffs of |q| |x|, in any order.
        # The other three roundoffs cover the scores that are compared with it.
        relative = (queries.shape[1] + 4) * 2.0**-24 + self.rounding
        return relative * norms * self.largest + np.finfo(np.float32).tiny

    def search(self, queries: Floats, k: int, *, own: Ints | None = None) -> tuple[Floats, Ints]:
        """Return the k nearest rows of each query, (rows, k), without its ``own`` row."""
        wanted = k + (own is not None)
        found = _search(queries, self.rows, wanted, self.propose, self.error(queries))
        return found if own is None else _without(own, *found)

    def search_roughly(
        self, queries: Floats, k: int, *, own: Ints | None = None
    ) -> tuple[Floats, Ints]:
        """Return neighbours like `search`, by fast similarities with errors up to `error`."""
        wanted = k + (own is not None)
        similarities, indices = self.propose(queries, wanted)
        order = np.argsort(-similarities, axis=1, kind="stable")
        found = np.take_along_axis(similarities, order, 1), np.take_along_axis(indices, order, 1)
        return found if own is None else _without(own, *found)


def _search(
    queries: Floats, rows: Floats, k: int, propose: Propose, error: NDArray[np.float64]
) -> tuple[Floats, Ints]:
    """Propose candidates, score and rank them, then prove each result or replace it."""
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
    """Return the numbers of candidates to try before the exhaustive search.

    One additional candidate proves nearly every query at k = 1, the assignment step of k-means.
    With more neighbours, the similarities around the k-th place are closer together. The second,
    wider search helps with embeddings in a narrow cone and small groups of duplicates. It costs a
    third of the exhaustive search.
    """
    first = 2 if k == 1 else k + 8 + k // 8
    return [min(n, first)] if first >= n else [first, min(n, 2 * first + 32)]


def _score(queries: Floats, rows: Floats, candidates: Ints) -> Floats:
    """Return similarities of queries to their candidates from double precision, (rows, width).

    This uses einsum instead of a matrix product: its result for a pair of rows does not depend on
    their positions, so identical rows have identical scores.
    """
    scores = np.empty(candidates.shape, np.float32)
    step = max(1, _BLOCK // 2 // (candidates.shape[1] * rows.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        chosen = rows[candidates[part]].astype(np.float64)  # (rows, width, d)
        scores[part] = np.einsum("qd,qwd->qw", queries[part].astype(np.float64), chosen)
    return scores


def _exhaustive(queries: Floats, rows: Floats, k: int) -> tuple[Floats, Ints]:
    """Score all database rows in double precision and keep the first k by rank."""
    doubles = queries.astype(np.float64)
    step = max(k, _BLOCK // max(len(queries), rows.shape[1]))
    best = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.float64)
        # Rounding to single precision removes the position-dependent last bit of the product.
        scores = (doubles @ block.T).astype(np.float32)
        keys = _keys(scores, np.arange(start, start + len(block)))
        best = _largest(np.concatenate([best, keys], axis=1), k)
    return _unpack(np.sort(best, axis=1)[:, ::-1])


def _rank(similarities: Floats, indices: Ints, k: int) -> tuple[Floats, Ints]:
    """Sort by descending similarity, ties by ascending index, and keep k."""
    return _unpack(np.sort(_keys(similarities, indices), axis=1)[:, : -k - 1 : -1])


def _keys(similarities: Floats, indices: Ints) -> Ints:
    """Pack (similarity, index) into one integer such that descending order is the ranking.

    The high half is the bit pattern of the float, made monotonic for negative numbers. The low half
    is the reversed index. All keys are distinct, so any sort or partition orders ties correctly.
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
    """Drop the own row of each query from its neighbours, or the last one if it is missing."""
    drop = indices == own[:, None]
    drop[~drop.any(axis=1), -1] = True
    shape = (len(own), indices.shape[1] - 1)
    return similarities[~drop].reshape(shape), indices[~drop].reshape(shape)


def _norms(rows: Floats) -> NDArray[np.float64]:
    """Return the L2 norm of each row in double precision, (rows,)."""
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
            out = prepared[start : start + step]
            np.divide(*scaled(block), out=out, casting="same_kind")
            continue
        if np.abs(block).max(initial=0.0) > np.finfo(np.float32).max:
            raise ValueError(
                f"{name} holds values beyond single precision. Scale the rows down, or use "
                'metric="cosine".'
            )
        prepared[start : start + step] = block
    return prepared
