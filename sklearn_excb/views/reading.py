"""Numbers of threads that open images, and of batches that they begin ahead of the network."""

from __future__ import annotations

import torch
from joblib import effective_n_jobs

from sklearn_excb.data.sources import ItemImages, Source

_MOST_THREADS = 8
AHEAD = 2  # batches that are read while an accelerator works; a CPU has no free core for this


def n_ahead(source: Source, n_jobs: int, device: torch.device) -> int:
    """Return the number of batches that threads begin while one batch is used.

    The number is 0 on a CPU, for sources that open no files or items, and for data sets that only
    the calling thread may read.
    """
    opened_aside = isinstance(source, ItemImages) and (source.reads_in_parallel or n_jobs > 1)
    return AHEAD if opened_aside and device.type != "cpu" else 0


def number_of_jobs(n_jobs: int | str | None, source: Source) -> int:
    """Return the number of threads that open images.

    "auto" is one thread per core, up to 8, if the source can be read in parallel, and else one
    thread.
    """
    if isinstance(n_jobs, str):
        return min(_MOST_THREADS, effective_n_jobs(-1)) if source.reads_in_parallel else 1
    return effective_n_jobs(n_jobs)
