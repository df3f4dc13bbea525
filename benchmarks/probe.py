"""Time of linear probes: six learning rates or one, and L-BFGS here or in scikit-learn.

    python -m benchmarks.probe

The script prints ratios of processor time on one thread, medians over alternating runs:

- SGD, on 20,000 rows of 384 features, by number of classes. The time of a probe with six rates is
  divided by that of a probe with a single rate (which holds out no rows), by that of one rate in a
  plain loop with torch.optim, and by the floor, which is the time of the matrix products of six
  heads at the float32 rate of this machine. The time of six probes with one rate each is divided by
  that of the probe with six rates.
- L-BFGS, on the pixels of digits and on 5,000 rows of 384 features. Our time is divided by that of
  scikit-learn's logistic regression with the same C. The script also prints the difference of the
  accuracies on held-out rows, in percentage points.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from evaluation import LinearProbe

N, D = 20_000, 384
CLASSES = (2, 10, 20, 100)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def features(
    n: int, n_classes: int, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return rows (n, D) like embeddings, with overlapping classes and a decreasing spectrum."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    mixing = rng.normal(size=(D, D)) * np.exp(-np.arange(D) / (D / 6))[:, None]
    rows = 0.35 * rng.normal(size=(n_classes, D))[y] + rng.normal(size=(n, D))
    return (rows @ mixing / 3).astype(np.float32), y


def medians(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each run, in turns; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(of[1:]) for name, of in times.items()}


def rates(n_classes: int, epochs: int, repeats: int) -> str:
    """Return a line that compares six rates with one."""
    X, y = features(N, n_classes)
    square, product = torch.randn(1024, 1024), torch.empty(1024, 1024)

    def probe(of: float | tuple[float, ...]) -> LinearProbe:
        # not standardised: that is done once per training, and this one has fewer than 100 epochs
        how = {"epochs": epochs, "standardize": False, "random_state": 0, "device": "cpu"}
        return LinearProbe("sgd", learning_rates=of, **how).fit(X, y)

    rows, codes = torch.from_numpy(X), torch.from_numpy(y)

    def plain() -> None:
        layer = torch.nn.Linear(D, n_classes)
        optimizer = torch.optim.SGD(layer.parameters(), lr=RATES[2] * 4, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for some in torch.randperm(N).split(1024):
                loss = torch.nn.functional.cross_entropy(layer(rows[some]), codes[some])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()

    found = medians(
        {
            "plain": plain,
            "six": lambda: probe(RATES),
            "one": lambda: probe(RATES[2]),
            "each": lambda: [probe(rate) for rate in RATES],
            "product": lambda: torch.mm(square, square, out=product),
        },
        repeats,
    )
    operations = 4 * 0.9 * N * D * len(RATES) * n_classes * epochs
    floor = operations / (2 * 1024**3 / found["product"])
    return (
        f"{n_classes} classes: six rates over one {found['six'] / found['one']:.2f}, "
        f"over one in a plain loop {found['six'] / found['plain']:.2f}, "
        f"over the products alone {found['six'] / floor:.2f}; "
        f"a fit a rate over six in one {found['each'] / found['six']:.2f}"
    )


def logistic(name: str, X: NDArray, y: NDArray, C: float, repeats: int) -> str:
    """Return a line that compares our L-BFGS with scikit-learn's."""
    train, test, y_train, y_test = train_test_split(X, y, test_size=0.3, random_state=0)
    models = {
        "ours": LinearProbe("lbfgs", C=C),
        "theirs": LogisticRegression(C=C, max_iter=1000),
    }
    found = medians(
        {key: lambda model=model: model.fit(train, y_train) for key, model in models.items()},
        repeats,
    )
    scores = {key: 100 * model.score(test, y_test) for key, model in models.items()}
    return (
        f"{name}, C = {C:g}: seconds over scikit-learn's {found['ours'] / found['theirs']:.2f}, "
        f"accuracy {scores['ours']:.2f}, {scores['ours'] - scores['theirs']:+.2f} points"
    )


def main() -> None:
    """Print one line per comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10, help="epochs of SGD")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for n_classes in CLASSES:
            print(rates(n_classes, arguments.epochs, arguments.repeats), flush=True)
        digits = load_digits()
        pixels = (digits.data / 16).astype(np.float32)
        for C in (0.01, 1.0):
            for name, rows, y in (
                ("digits", pixels, digits.target),
                ("5,000 x 384, 20 classes", *features(5000, 20)),
            ):
                print(logistic(name, rows, y, C, 3 * arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
