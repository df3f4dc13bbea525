"""Coarse groups: the cost of their tree, and their agreement with classes compared with k-means.

    python -m benchmarks.coarse_groups
    python -m benchmarks.coarse_groups --sizes 65536
    python -m benchmarks.coarse_groups --data DIR/mnist10k_npm.npz --run RUN

Without ``--run``, the script compares ``merge_tree`` with SciPy's ``linkage``, which holds all
K (K - 1) / 2 distances. It also compares it with the blocked products of all centroids, which are
necessary without a neighbour graph, and with ``merge_tree`` along a graph of the 16 nearest
neighbours until an eighth of the clusters is left. The centroids are unit vectors from a mixture of
mixtures in 256 dimensions, with cluster sizes around 20. The methods run in turns. The script
prints the median ratio over the turns, and the additional memory of a process that runs one method.

With ``--run``, a folder that ``save`` wrote, the script compares coarse groups by
``predict(n_groups=k)`` and by other positions of the clusters with k-means and with Ward's method
on all images, up to 20,000, on projections and on backbone features. ``--data`` are the images of
the fit in their order: an npz file with ``images`` and ``labels``, or "digits".
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.hierarchy import linkage
from sklearn.cluster import KMeans, ward_tree
from sklearn.datasets import load_digits

from evaluation import clustering_scores
from sklearn_excb import ExCBEstimator
from sklearn_excb.training.coarse_groups import cut, group_centroids, merge_tree

SIZES = (1_000, 8_000, 65_536)
DIM = 256
SCIPY_UP_TO = 16_384  # largest K for SciPy: a gigabyte of distances
WARD_UP_TO = 20_000  # images
SEEDS = 3
BLOCK = 1024


def centroids(K: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return unit centroids in nested groups, and cluster sizes."""
    rng = np.random.default_rng(0)
    n_groups = K // 20
    rows = rng.normal(size=(20, DIM))[rng.integers(0, 20, K)]
    rows += 0.7 * rng.normal(size=(n_groups, DIM))[rng.integers(0, n_groups, K)]
    rows += 0.5 * rng.normal(size=(K, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), rng.poisson(20, K).clip(1)


def products(rows: npt.NDArray[np.float32]) -> None:
    """Compute all similarities, one block at a time."""
    database = torch.from_numpy(rows)
    for block in database.split(BLOCK):
        for other in database.split(BLOCK):
            torch.mm(block, other.T)


def ways(K: int) -> dict[str, Callable[[], Any]]:
    """Return the methods to compare, by name."""
    rows, sizes = centroids(K)
    found: dict[str, Callable[[], Any]] = {
        "merge_tree": lambda: merge_tree(rows, sizes, exact_up_to=K),
        "products": lambda: products(rows),
        "merge_tree along a graph": lambda: merge_tree(rows, sizes, exact_up_to=K // 8),
    }
    if K <= SCIPY_UP_TO:
        found["SciPy's linkage"] = lambda: linkage(rows, "ward")
    return found


def speed(sizes: list[int], repeats: int) -> None:
    """Print ratios of time, and the memory."""
    for K in sizes:
        compared = ways(K)
        turns = []
        for _ in range(repeats):
            seconds = {}
            for name, run in compared.items():
                start = time.perf_counter()
                run()
                seconds[name] = time.perf_counter() - start
            turns.append(seconds)
        for name in compared:
            ratio = statistics.median(turn["merge_tree"] / turn[name] for turn in turns)
            if name != "merge_tree":
                print(f"K = {K:,}: merge_tree takes {ratio:.2f} of {name}", flush=True)
        print(f"K = {K:,}: merge_tree took {turns[-1]['merge_tree']:.1f} s of this machine's")
        for name in compared:
            command = [
                sys.executable,
                "-m",
                "benchmarks.coarse_groups",
                "--peak",
                name,
                "--sizes",
                str(K),
            ]
            subprocess.run(command, check=True)


def most_held() -> int:
    """Return the peak memory of this process in KB (Linux; getrusage may report its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def peak(K: int, name: str) -> None:
    """Print the memory that this process needs for one method."""
    run = ways(K)[name]
    ways(64)[name]()  # libraries load code at their first call
    before = most_held()
    run()
    megabytes = (most_held() - before) / 1024
    print(f"K = {K:,}: {name} takes {megabytes:,.0f} MB", flush=True)


def quality(data: str, run: Path, n_groups: int) -> None:
    """Print the agreement of groups and of k-means on the same embeddings with the classes."""
    if data == "digits":
        digits = load_digits()
        images, y = digits.images / 16, digits.target
    else:
        with np.load(data) as file:
            images, y = file["images"], file["labels"]
    excb = ExCBEstimator.load(run)
    if len(excb.labels_) != len(y):
        raise SystemExit(
            f"{run} was fitted on {len(excb.labels_)} images and {data} has {len(y)}. Pass the "
            "images of the fit as --data."
        )
    embeddings = {}
    for name in ("projection", "backbone"):
        embeddings[name] = excb.set_params(embedding=name).transform(images)

    def show(name: str, found: list[npt.NDArray[Any]]) -> None:
        scores = [clustering_scores(y, labels) for labels in found]
        parts = []
        for measure in ("accuracy", "nmi", "ari"):
            values = [getattr(score, measure) for score in scores]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            parts.append(f"{measure} {statistics.mean(values):.3f}{spread}")
        print(f"{name}: {', '.join(parts)}", flush=True)

    K = excb.resolved_params_["K"]
    show(f"K = {K:,} merged to {n_groups}", [excb.predict(images, n_groups=n_groups)])
    sums = np.zeros((K, embeddings["backbone"].shape[1]), np.float32)
    np.add.at(sums, excb.labels_, embeddings["backbone"])
    means = sums / np.maximum(np.bincount(excb.labels_, minlength=K), 1)[:, None]
    for name, places in {
        "directions of mean features": group_centroids(sums, excb.labels_, excb.cluster_centers_),
        "mean features": means,
        "centroids": excb.cluster_centers_,
    }.items():
        tree = merge_tree(places, excb.relative_cluster_sizes_)
        show(f"  by {name}", [cut(tree, n_groups)[excb.labels_]])
    lengths = np.linalg.norm(embeddings["backbone"], axis=1, keepdims=True)
    embeddings["backbone, unit rows"] = embeddings["backbone"] / np.maximum(lengths, 1e-12)
    for name, rows in embeddings.items():
        kmeans = [
            KMeans(n_groups, n_init=10, random_state=seed).fit_predict(rows)
            for seed in range(SEEDS)
        ]
        show(f"k-means on {name}, n_init=10, {SEEDS} seeds", kmeans)
        if len(rows) <= WARD_UP_TO:
            children = ward_tree(rows)[0]
            tree = np.column_stack([children, np.arange(len(children))])
            show(f"Ward on {name}, all images", [cut(tree, n_groups)])


def main() -> None:
    """Compare speed and memory, or the quality with ``--run``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", help='npz file with the images of the fit, or "digits"')
    parser.add_argument("--run", type=Path, help="folder of the fitted estimator")
    parser.add_argument("--n-groups", type=int, default=10)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak(arguments.sizes[0], arguments.peak)
    elif arguments.data and arguments.run:
        quality(arguments.data, arguments.run, arguments.n_clusters)
    else:
        speed(arguments.sizes, arguments.repeats)


if __name__ == "__main__":
    main()
