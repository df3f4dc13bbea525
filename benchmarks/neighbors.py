"""Exact k-NN predictions, compared with the flat index of FAISS and with float64.

    python -m benchmarks.neighbors
    python -m benchmarks.neighbors --features 768 --k 20

The rows resemble those of a trained network: L2-normalised, in single precision, scattered around a
few directions per class, and one row in ten with a wrong class. ``fit`` and ``predict`` of
`KNNClassifier`, and `nearest_neighbors`, which scores all neighbours again in double precision, run
in turns with ``add`` and ``search`` of ``faiss.IndexFlatIP``. The script prints the median ratio
over the turns, of wall time and of processor time. Ratios below 1 are faster than FAISS.

The script then counts the predictions that differ from those of a float64 search by plain products
and a stable sort. It also counts those that no tie explains: no two similarities around the k-th
place and no votes of two classes are within 1e-6.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from evaluation import KNNClassifier, nearest_neighbors

BACKENDS = ("auto", "faiss", "torch")
TIE = 1e-6
TEMPERATURE = 0.07
BLOCK = 250  # queries of the plain search at once: 100 MB of similarities at 50,000 rows

Rows = NDArray[np.float32]


def clustered(n: int, d: int, n_classes: int, seed: int) -> tuple[Rows, NDArray[np.int64]]:
    """Return unit rows around five directions per class, and classes, of which a tenth is wrong."""
    directions = np.random.default_rng(0).normal(size=(n_classes, 5, d)).astype(np.float32)
    generator = np.random.default_rng(seed)
    y = generator.integers(0, n_classes, n)
    rows = directions[y, generator.integers(0, 5, n)]
    rows = rows + generator.normal(scale=0.7, size=(n, d)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows, np.where(generator.random(n) < 0.1, generator.integers(0, n_classes, n), y)


def speed(queries: Rows, rows: Rows, y: NDArray[np.int64], k: int, repeats: int) -> None:
    """Print the ratios of time."""

    def flat_index() -> None:
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)  # pyright: ignore[reportCallIssue]
        index.search(queries, k)  # pyright: ignore[reportCallIssue]

    runs: dict[str, Callable[[], object]] = {"IndexFlatIP": flat_index}
    for backend in BACKENDS:
        model = KNNClassifier(k, TEMPERATURE, backend=backend)
        runs[f"predict, {backend}"] = lambda model=model: model.fit(rows, y).predict(queries)
    for backend in BACKENDS:
        runs[f"nearest_neighbors, {backend}"] = lambda backend=backend: nearest_neighbors(
            queries, rows, k, backend=backend
        )
    turns = []
    for _ in range(repeats + 1):  # the first warms up
        turn = []
        for run in runs.values():
            start = time.perf_counter(), time.process_time()
            run()
            turn.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        turns.append(turn)
    for i, name in enumerate(runs):
        wall, cpu = (
            statistics.median(turn[i][clock] / turn[0][clock] for turn in turns[1:])
            for clock in (0, 1)
        )
        print(
            f"{torch.get_num_threads()} threads: {name} {wall:.2f}, processor {cpu:.2f}", flush=True
        )


def plain(
    queries: Rows, rows: Rows, y: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the classes predicted in float64, and whether a tie explains another prediction."""

    def unit(x: Rows) -> NDArray[np.float64]:
        return x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)

    database, n_classes = unit(rows), int(y.max()) + 1
    predicted, excused = np.empty(len(queries), np.int64), np.empty(len(queries), bool)
    for start in range(0, len(queries), BLOCK):
        similarities = unit(queries[start : start + BLOCK]) @ database.T
        order = np.argsort(-similarities, axis=1, kind="stable")[:, : k + 1]
        for i, (row, chosen) in enumerate(zip(similarities, order, strict=True), start):
            weights = np.exp(row[chosen[:k]] / TEMPERATURE)
            votes = np.bincount(y[chosen[:k]], weights, minlength=n_classes) / weights.sum()
            predicted[i] = votes.argmax()
            gap = row[chosen[k - 1]] - row[chosen[k]] if k < len(rows) else np.inf
            excused[i] = gap < TIE or np.diff(np.sort(votes)[-2:])[0] < TIE
    return predicted, excused


def main() -> None:
    """Print ratios of time, then counts of different predictions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    rows, y = clustered(given.rows, given.features, 100, 1)
    queries, _ = clustered(given.queries, given.features, 100, 2)
    speed(queries, rows, y, given.k, given.repeats)
    expected, excused = plain(queries, rows, y, given.k)
    for backend in BACKENDS:
        model = KNNClassifier(given.k, TEMPERATURE, backend=backend).fit(rows, y)
        different = model.predict(queries) != expected
        print(
            f"{backend}: {different.sum()} of {len(queries):,} predictions differ from float64, "
            f"{(different & ~excused).sum()} of them without a tie"
        )


if __name__ == "__main__":
    main()
