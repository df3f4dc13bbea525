"""Kinds of clustering compared on the same rows: ExCB, k-means, mixtures, trees and densities.

    python -m benchmarks.kinds run                          # sets that need no file
    python -m benchmarks.kinds run --data DIR --sets iris features_cifar mnist10k_npm
    python -m benchmarks.kinds run --methods k-means Ward --seeds 0
    python -m benchmarks.kinds show                         # prints Markdown tables
    python -m benchmarks.kinds forget --methods ExCB        # ... and ``run`` measures them again

A cell is one clustering: a set, a choice of K, a method and a seed. Each cell writes one JSON file
into ``--results``, so that a run can be stopped at any time and resumed. K is the number of
classes, five times as many, or one per 19.5 training rows (the default of ExCB). A fifth of the
rows is held out, and scored where the method predicts. Rows that a method calls noise are one more
cluster. Time is processor time of the fit and the prediction. Set ``OMP_NUM_THREADS=1``.

NMI and purity rise with the number of clusters, even if these are random, so neither is compared
across numbers of clusters. AMI and ARI are adjusted for chance. "purity above k-means" is purity
less that of k-means at an equal number of effective clusters, exp of the entropy of their sizes.
For this, k-means (``n_init=1``) runs on the same rows with the K of the tables and twelve others,
from 1 to a tenth of their number or to ten times the classes if that is more. Its purity is
interpolated over the logarithm of its effective clusters, and the curves of all seeds are averaged.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from benchmarks.cells import RESULTS, SEEDS
from benchmarks.clusterers import METHODS, Found, Labels
from benchmarks.data_sets import Split
from benchmarks.feature_sets import BUILT_IN, load_rows
from benchmarks.kind_tables import Tables
from benchmarks.stored import hashed, store
from evaluation import cluster_occupancy, clustering_scores
from sklearn_excb import __version__
from sklearn_excb.settings.auto_rules import n_clusters

CHOICES = ("classes", "5 x classes", "n / 19.5")
FOUND = "found by the method"
CURVE, N_CURVE = "k-means at many K", 12
Result = dict[str, Any]
load_set = cache(load_rows)
_WARM: set[tuple[str, str]] = set()  # methods that have run on a set


@dataclass(frozen=True)
class Cell:
    """One clustering.

    Attributes
    ----------
    data : str
        Name of a set, as for :func:`benchmarks.feature_sets.load_rows`.
    choice : str
        Choice of K: one of CHOICES, or FOUND.
    method : str
        Name of the method, one of METHODS, or CURVE.
    seed : int
        Seed of the method.
    """

    data: str
    choice: str
    method: str
    seed: int

    def path(self, results: Path) -> Path:
        """Return the path of the result."""
        revision = 1 if self.method == CURVE else METHODS[self.method].revision
        return results / f"{hashed(asdict(self) | {'revision': revision})[:16]}.json"

    def result(self, results: Path) -> Result | None:
        """Return the result; None if it is missing."""
        path = self.path(results)
        return json.loads(path.read_text()) if path.exists() else None

    def __str__(self) -> str:
        return f"{self.data}, K {self.choice}: {self.method}, seed {self.seed}"


def cells_of(sets: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
    """Yield cells in the order of the runs: baselines first; all sets with a seed, then the next.

    The curves of k-means, which all methods need, come first.
    """
    for excb in (False, True):
        for seed in seeds:
            for data in sets:
                if not excb:
                    yield Cell(data, FOUND, CURVE, seed)
                for name in methods:
                    method = METHODS[name]
                    if name.startswith("ExCB") is excb and (method.seeded or seed == seeds[0]):
                        few = CHOICES[:1] if method.few_only else CHOICES
                        for choice in (FOUND,) if method.finds_k else few:
                            yield Cell(data, choice, name, seed if method.seeded else 0)


def number_of_clusters(choice: str, split: Split) -> int:
    """Return K."""
    n_classes = len(np.unique(split.y_train))
    if choice == "n / 19.5":
        return n_clusters(len(split.y_train))
    return n_classes * 5 if choice == "5 x classes" else n_classes


def measure(cell: Cell, split: Split, limit: float = float("inf")) -> Result:
    """Run a cell; one that does not end within the limit of seconds has no scores."""
    K = number_of_clusters(cell.choice, split)
    result: Result = {
        "cell": asdict(cell),
        "K": None if cell.choice == FOUND else K,
        "n": len(split.y_train),
        "n_held_out": len(split.y_test),
        "version": __version__,
    }
    if cell.method == CURVE:
        return result | {"curve": _curve(split, cell.seed)}
    arguments = cell.method, split.train, split.test, K, cell.seed
    if METHODS[cell.method].limited:
        ended = _within(limit, arguments)
        if ended is None:
            return result | {"unfinished_after": limit}
    else:
        _warm_up(cell.method, cell.data, split)
        ended = _timed(*arguments)
    (labels, held_out), seconds = ended
    return result | {
        "seconds": seconds,
        "train": scores(split.y_train, labels),
        "held_out": None if held_out is None else scores(split.y_test, held_out),
    }


def _warm_up(method: str, data: str, split: Split) -> None:
    """Run the method once on a few rows, or on those of the set if it compiles code for them."""
    if not METHODS[method].compiled:
        data, split = "tiny", load_set("tiny", None)
    if (method, data) not in _WARM:
        _WARM.add((method, data))
        METHODS[method].cluster(split.train, split.test, 3, 0)


def _timed(method: str, train: Any, held_out: Any, K: int, seed: int) -> tuple[Found, float]:
    begun = time.process_time()
    found = METHODS[method].cluster(train, held_out, K, seed)
    return found, time.process_time() - begun


def _within(limit: float, arguments: tuple[Any, ...]) -> tuple[Found, float] | None:
    """Cluster in another process, which ends after the limit of seconds."""
    receives, sends = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.clusterers"])  # imported once for all cells
    process = context.Process(target=_send, args=(sends, arguments))
    process.start()
    sends.close()
    try:
        if not receives.poll(None if np.isinf(limit) else limit):
            return None
        found = receives.recv()
    finally:
        process.terminate()
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _send(sends: Any, arguments: tuple[Any, ...]) -> None:
    try:
        sends.send(_timed(*arguments))
    except Exception as error:
        sends.send(error)


def scores(y: Any, labels: Labels) -> dict[str, float]:
    """Return agreement with classes and sizes, with noise (-1) as one more cluster."""
    noise = float(np.mean(labels < 0))
    used, labels = np.unique(labels, return_inverse=True)
    agreement, sizes = clustering_scores(y, labels), cluster_occupancy(labels, len(used))
    return {
        "noise": noise,
        "clusters": len(used),
        "effective": sizes.effective_clusters,
        "smallest": float(sizes.counts.min() * len(used) / len(y)),
        "largest": sizes.largest_relative_size,
        "acc": agreement.accuracy,
        **{name: getattr(agreement, name) for name in ("nmi", "ami", "ari", "purity")},
    }


def _curve(split: Split, seed: int) -> dict[str, list[tuple[float, float]]]:
    """Return effective clusters and purity of k-means, for training and held-out rows."""
    curve = {"train": [], "held_out": []}
    n, n_classes = len(split.train), len(np.unique(split.y_train))
    most = min(n / 2, max(n / 10, 10 * n_classes))
    compared = [number_of_clusters(choice, split) for choice in CHOICES]
    for K in np.unique([*np.geomspace(1, most, N_CURVE).round(), *compared]).astype(int):
        kmeans = KMeans(int(K), n_init=1, random_state=seed).fit(split.train)
        for part, y, labels in (
            ("train", split.y_train, kmeans.labels_),
            ("held_out", split.y_test, kmeans.predict(split.test)),
        ):
            of = scores(y, labels.astype(np.int64))
            curve[part].append((of["effective"], of["purity"]))
    return curve


def run(cells: Sequence[Cell], arguments: argparse.Namespace) -> None:
    """Run missing cells, one after another; a cell that fails stays missing."""
    for name in dict.fromkeys(cell.method for cell in cells if cell.method != CURVE):
        if not METHODS[name].installed:
            print(f"{name}: skipped, {METHODS[name].package} is not installed", flush=True)
    stop = time.monotonic() + 60 * arguments.minutes
    for cell in cells:
        if time.monotonic() > stop:
            break
        installed = cell.method == CURVE or METHODS[cell.method].installed
        if not installed or cell.result(arguments.results) is not None:
            continue
        try:
            result = measure(cell, load_set(cell.data, arguments.data), 60 * arguments.limit)
        except Exception as error:  # of one method on one set: the others matter more
            print(f"{cell}: failed: {type(error).__name__}: {error}", flush=True)
            continue
        store(cell.path(arguments.results), result)
        print(f"{cell}: {_line(result)}", flush=True)


def _line(result: Result) -> str:
    if "train" not in result:
        return "measured" if "curve" in result else "did not end within the limit"
    of = result["train"]
    return (
        f"{of['clusters']} clusters, AMI {of['ami']:.3f}, ARI {of['ari']:.3f}, purity "
        f"{of['purity']:.3f}, {result['seconds']:.1f} s"
    )


def main() -> None:
    """Run, show or forget cells."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("command", choices=["run", "show", "forget"])
    add("--sets", nargs="+", default=BUILT_IN, help="names of sets, smallest first")
    add("--data", type=Path, help="folder of the npz files")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--seeds", nargs="+", type=int, default=SEEDS)
    add("--results", type=Path, default=RESULTS / "kinds", help="folder of the results")
    add("--minutes", type=float, default=float("inf"), help="start no cell later")
    add("--limit", type=float, default=10, help="minutes for k-means-constrained, TURTLE and TEMI")
    arguments = parser.parse_args()
    cells = list(cells_of(arguments.sets, arguments.methods, arguments.seeds))
    if arguments.command == "run":
        run(cells, arguments)
    elif arguments.command == "show":
        print(
            Tables(
                (*CHOICES, FOUND), ((cell, cell.result(arguments.results)) for cell in cells)
            ).text()
        )
    else:
        for cell in cells:
            if cell.method != CURVE:
                cell.path(arguments.results).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
