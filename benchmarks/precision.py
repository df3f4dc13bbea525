"""A training step in bfloat16 and in channels-last order, beside float32 in NCHW order.

    python -m benchmarks.precision

The networks and the views of the defaults at two image sizes. One step of each variant by turns;
printed is how many times faster than the plain one (median of the ratios of a turn).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from sklearn_excb import ExCBEstimator, auto
from sklearn_excb.batches import Batch
from sklearn_excb.optimization import Plan, TeacherRates, build_optimizer, set_rates
from sklearn_excb.preparing import build
from sklearn_excb.rivals import build_balancing
from sklearn_excb.training import train_step

VARIANTS = {
    "float32, NCHW": ("32", torch.contiguous_format),
    "float32, channels last": ("32", torch.channels_last),
    "bfloat16, channels last": ("bf16", torch.channels_last),
}


def stepper(
    facts: auto.Facts, batch_size: int, precision: str, memory_format: torch.memory_format
) -> Callable[[], float]:
    """Seconds of a training step on random views, each time it is called."""
    parameters = ExCBEstimator(batch_size=batch_size, precision=precision).get_params()
    networks, settings, _ = build(parameters, facts)
    networks.to(memory_format=memory_format).fitting()
    balancing, optimizer = (
        build_balancing(settings, "cpu"),
        build_optimizer(networks.student, settings),
    )
    set_rates(optimizer, settings, 1, Plan(1, 10))
    groups = [
        torch.randn(n_views * batch_size, facts.n_channels, size, size)
        for n_views, size in (
            (settings.n_global, settings.image_size),
            (settings.n_local, settings.local_size),
        )
    ]

    def step() -> float:
        start = time.perf_counter()
        rates = TeacherRates(0.99, 0.04)
        batch = Batch(1, groups, batch_size, batch_size)
        train_step(networks, balancing, optimizer, batch, settings, rates)
        return time.perf_counter() - start

    return step


def main() -> None:
    """Time the variants by turns and print their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for name, facts, batch_size in (
        ("small CNN, 32 px, B = 128", auto.Facts(4_000, "images", (32, 32), 3), 128),
        ("ResNet-18, 64 px, B = 64", auto.Facts(2_000, "images", (160, 160), 3), 64),
    ):
        steppers = [stepper(facts, batch_size, *variant) for variant in VARIANTS.values()]
        for step in steppers:
            step()  # the first allocates
        turns = [[step() for step in steppers] for _ in range(repeats)]
        for i, variant in enumerate(VARIANTS):
            ratio = statistics.median(turn[0] / turn[i] for turn in turns)
            print(f"{name}: {variant} {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
