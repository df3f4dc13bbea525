"""Single-precision searches that propose neighbours: FAISS, or matrix products of torch.

Names: ``queries`` (rows, d), ``database`` (n, d), ``width`` candidates per query.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._optional import importable, require

Backend = Literal["auto", "faiss", "torch"]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
# Function of query rows and a width w: the w most similar database rows, up to rounding, in any
# order.
Propose = Callable[[Floats, int], tuple[Floats, Ints]]

_BLOCK = 2**24  # similarities held at once: 64 MB
_WIDEST_ON_GPU = 2048  # maximum number of neighbours that FAISS selects on a GPU


def proposer(rows: Floats, backend: Backend) -> tuple[Propose, float]:
    """Return the fast search over ``rows`` and the relative rounding of its inputs."""
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

    device = "cuda" if torch.cuda.is_available() else "cpu"
    database = torch.from_numpy(rows).to(device)
    # The user may have allowed products of TF32 or bfloat16 numbers, with 11 and 8 significant
    # bits. The bound is half a unit in the last place for each of two inputs, doubled for safety.
    rounding = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}

    @torch.inference_mode()
    def propose(queries: Floats, width: int) -> tuple[Floats, Ints]:
        batch = torch.from_numpy(queries).to(device)
        step = max(width, _BLOCK // max(1, len(queries)))
        best: tuple[Any, Any] | None = None
        for start in range(0, len(database), step):
            product = batch @ database[start : start + step].T  # (rows, step)
            values, columns = product.topk(min(width, product.shape[1]), dim=1)
            columns += start
            if best is not None:
                values, columns = torch.cat([best[0], values], 1), torch.cat([best[1], columns], 1)
                values, order = values.topk(min(width, values.shape[1]), dim=1)
                columns = columns.gather(1, order)
            best = values, columns
        assert best is not None  # the database has at least k rows, and k is at least 1
        return best[0].cpu().numpy(), best[1].cpu().numpy()

    with warnings.catch_warnings(action="ignore"):  # torch 2.9 warns that this name is deprecated
        precision = torch.get_float32_matmul_precision()
    return propose, rounding[precision]
