"""Time of ``cluster_occupancy`` for 1.28 million labels in 65,536 clusters.

    python -m benchmarks.occupancy

`cluster_occupancy` runs in turns with ``np.sort(np.bincount(labels, minlength=K))``, on labels of a
balanced model, of a model with few large clusters, and with skipped images. The script prints the
median ratio over the turns, of wall time and of processor time.
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
    """Return the wall time and the processor time of a run."""
    start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def labelings() -> dict[str, NDArray[np.int64]]:
    """Return the labels to count, by name."""
    generator = np.random.default_rng(0)
    balanced = generator.integers(0, K, N)
    collapsed = (K * generator.random(N) ** 6).astype(np.int64)
    skipped = np.where(generator.random(N) < 0.01, -1, balanced)
    return {"balanced": balanced, "collapsed": collapsed, "one in a hundred skipped": skipped}


def main() -> None:
    """Print the ratios for each labeling."""
    for name, labels in labelings().items():
        counted = np.maximum(labels, 0)  # bincount does not accept the label -1
        turns = []
        for _ in range(REPEATS + 1):  # the first warms up
            plain = seconds(lambda counted=counted: np.sort(np.bincount(counted, minlength=K)))
            ours = seconds(lambda labels=labels: cluster_occupancy(labels, K))
            turns.append((ours[0] / plain[0], ours[1] / plain[1]))
        wall, cpu = (statistics.median(turn[i] for turn in turns[1:]) for i in (0, 1))
        print(f"{name}: {wall:.2f}, processor {cpu:.2f}", flush=True)


if __name__ == "__main__":
    main()
