"""Occupancy of 1.28 million labels in 65,536 clusters, beside counting and sorting alone.

    python -m benchmarks.occupancy

`cluster_occupancy` takes turns with ``np.sort(np.bincount(labels, minlength=K))``, on labels of a
balanced model, of one with few large clusters, and with skipped images. Printed is the median of
the ratios of a turn, of wall and of processor time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evaluation import cluster_occupancy

N, K, REPEATS = 1_281_167, 65_536, 30


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor time of a run."""
    start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def labelings() -> dict[str, NDArray[np.int64]]:
    """Labels to count."""
    generator = np.random.default_rng(0)
    balanced = generator.integers(0, K, N)
    collapsed = (K * generator.random(N) ** 6).astype(np.int64)
    skipped = np.where(generator.random(N) < 0.01, -1, balanced)
    return {"balanced": balanced, "collapsed": collapsed, "one in a hundred skipped": skipped}


def main() -> None:
    """Print a ratio a labeling."""
    for name, labels in labelings().items():
        counted = np.maximum(labels, 0)  # bincount refuses what was skipped
        turns = []
        for _ in range(REPEATS + 1):  # the first warms up
            plain = seconds(lambda counted=counted: np.sort(np.bincount(counted, minlength=K)))
            ours = seconds(lambda labels=labels: cluster_occupancy(labels, K))
            turns.append((ours[0] / plain[0], ours[1] / plain[1]))
        wall, cpu = (statistics.median(turn[i] for turn in turns[1:]) for i in (0, 1))
        print(f"{name}: {wall:.2f}, processor {cpu:.2f}", flush=True)


if __name__ == "__main__":
    main()
