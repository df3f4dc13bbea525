"""The single-precision searches that propose neighbours: FAISS, or products and a selection.

Names: ``queries`` (rows, d), ``database`` (n, d), ``width`` candidates a query.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation._optional import importable, require

Backend = Literal["auto", "faiss", "torch"]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
# Given query rows and a width w: the w most similar database rows, up to rounding, in any order.
Propose = Callable[[Floats, int], tuple[Floats, Ints]]

_BLOCK = 2**25  # similarities held at once: 128 MB
_FEWEST, _MOST = 256, 1024  # queries at once: products of fewer are slower
_COPIED = 2**19  # similarities that a thread copies at once while it selects: they stay in cache
_GROUP = 32  # similarities whose largest stands for all
_WIDEST_ON_GPU = 2048  # the most neighbours FAISS selects there


def proposer(rows: Floats, backend: Backend) -> tuple[Propose, float]:
    """Return the fast search over ``rows`` and how far it rounds the inputs."""
    if backend == "auto":
        backend = "faiss" if importable("faiss") else "torch"
    return _faiss_proposer(rows) if backend == "faiss" else _torch_proposer(rows)


def _n_gpus(faiss: Any) -> int:
    return getattr(faiss, "get_num_gpus", int)()


def _faiss_proposer(rows: Floats) -> tuple[Propose, float]:
    faiss = require("faiss", extra="faiss", purpose='backend="faiss"')

    def search(queries: Floats, width: int) -> tuple[Floats, Ints]:
        # What IndexFlatIP.search computes, without the index's copy of the database.
        return faiss.knn(queries, rows, width, metric=faiss.METRIC_INNER_PRODUCT)

    if _n_gpus(faiss) == 0:
        return search, 0.0
    index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(rows.shape[1]))
    index.add(rows)

    def search_on_gpu(queries: Floats, width: int) -> tuple[Floats, Ints]:
        fits = width <= _WIDEST_ON_GPU
        return index.search(queries, width) if fits else search(queries, width)

    return search_on_gpu, 0.0


def _torch_proposer(rows: Floats) -> tuple[Propose, float]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            'backend="torch" needs PyTorch, which could not be imported. Install it with '
            'pip install torch, or use FAISS: pip install "sklearn-excb[faiss]"'
        ) from error

    if torch.cuda.is_available():
        return _cuda_proposer(rows, torch)

    @torch.inference_mode()
    def propose(queries: Floats, width: int) -> tuple[Floats, Ints]:
        n = len(rows)
        together = max(1, min(len(queries), max(_FEWEST, min(_MOST, _BLOCK // n))))
        step = min(n, max(width, _BLOCK // together))
        n_threads = torch.get_num_threads()
        # Memory that is used again: touching new pages takes as long as filling them.
        scratch = np.empty((together, -(-step // _GROUP), _GROUP), np.float32)
        found: list[tuple[Floats, Ints]] = []
        with ThreadPoolExecutor(n_threads) as threads:
            for first in range(0, len(queries), together):
                batch = queries[first : first + together]
                groups = scratch[: len(batch)]
                share = min(max(1, _COPIED // (width * _GROUP)), -(-len(batch) // n_threads))
                parts = [slice(i, i + share) for i in range(0, len(batch), share)]
                best = None
                for start in range(0, n, step):
                    block = rows[start : start + step]
                    product = groups.reshape(len(batch), -1)
                    product[:, len(block) :] = -np.inf
                    # By NumPy's BLAS, which took five sixths of the time of torch's.
                    np.matmul(batch, block.T, out=product[:, : len(block)])
                    maxima = torch.from_numpy(groups).amax(-1).numpy()
                    floor = _floor(best, len(batch))
                    pieces = threads.map(
                        _select,
                        (groups[part] for part in parts),
                        (maxima[part] for part in parts),
                        (floor[part] for part in parts),
                        repeat(min(width, len(block))),
                    )
                    values, columns = _stacked(pieces)
                    best = _merge(best, (values, columns + start), width)
                assert best is not None  # the database has at least one row
                found.append(best)
        return _stacked(found)

    return propose, 0.0


def _cuda_proposer(rows: Floats, torch: Any) -> tuple[Propose, float]:
    database = torch.from_numpy(rows).to("cuda")
    # A user may have allowed products of TF32 or bfloat16 numbers, with 11 and 8 significant bits:
    # two inputs, half a unit in the last place each, and as much again for safety.
    rounding = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}

    @torch.inference_mode()
    def propose(queries: Floats, width: int) -> tuple[Floats, Ints]:
        batch = torch.from_numpy(queries).to("cuda")
        step = max(width, _BLOCK // max(1, len(queries)))
        best = None
        for start in range(0, len(database), step):
            product = batch @ database[start : start + step].T  # (rows, step)
            values, columns = product.topk(min(width, product.shape[1]), dim=1)
            found = values.cpu().numpy(), columns.cpu().numpy() + start
            best = _merge(best, found, width)
        assert best is not None  # the database has at least one row
        return best

    return propose, rounding[torch.get_float32_matmul_precision()]


def _select(groups: Floats, maxima: Floats, floor: Floats, width: int) -> tuple[Floats, Ints]:
    """Return the ``width`` largest of each row and their columns, (rows, width), in any order.

    ``groups`` are (rows, n_groups, group): the ``width`` groups of largest ``maxima`` hold them.
    Values below the ``floor`` of their row, (rows,), may be left out, and -inf returned instead.
    """
    n_rows, n_groups = maxima.shape
    if n_groups <= 2 * width:
        return _partition(groups.reshape(n_rows, -1), width)
    least = np.partition(maxima, n_groups - width, axis=1)[:, n_groups - width]
    least = np.maximum(least, floor)
    group = np.flatnonzero(maxima >= least[:, None])
    members = groups.reshape(-1, _GROUP)[group]
    kept = np.flatnonzero(members >= least[group // n_groups, None])
    cell = group[kept // _GROUP] * _GROUP + kept % _GROUP
    row = cell // (n_groups * _GROUP)
    counts = np.bincount(row, minlength=n_rows)
    place = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    values = np.full((n_rows, max(width, counts.max())), -np.inf, np.float32)
    columns = np.zeros(values.shape, np.int64)
    values[row, place] = members.reshape(-1)[kept]
    columns[row, place] = cell - row * (n_groups * _GROUP)
    return _take(values, columns, width)


def _floor(best: tuple[Floats, Ints] | None, n_rows: int) -> Floats:
    """Return what a similarity must reach to be among the best, (rows,)."""
    return np.full(n_rows, -np.inf, np.float32) if best is None else best[0].min(axis=1)


def _stacked(parts: Iterable[tuple[Floats, Ints]]) -> tuple[Floats, Ints]:
    values, columns = zip(*parts, strict=True)
    return np.concatenate(values), np.concatenate(columns)


def _partition(values: Floats, width: int) -> tuple[Floats, Ints]:
    """As `_select`, of plain rows."""
    chosen = np.argpartition(values, -width, axis=1)[:, -width:]
    return np.take_along_axis(values, chosen, 1), chosen


def _take(values: Floats, indices: Ints, width: int) -> tuple[Floats, Ints]:
    """Keep the ``width`` largest values of each row, and their indices."""
    if values.shape[1] <= width:
        return values, indices
    largest, chosen = _partition(values, width)
    return largest, np.take_along_axis(indices, chosen, 1)


def _merge(
    first: tuple[Floats, Ints] | None, second: tuple[Floats, Ints], width: int
) -> tuple[Floats, Ints]:
    """Keep the ``width`` largest of two sets of candidates."""
    if first is None:
        return second
    return _take(
        np.concatenate([first[0], second[0]], 1), np.concatenate([first[1], second[1]], 1), width
    )
