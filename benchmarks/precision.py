"""Speed of a training step in bfloat16, in channels-last order, and with products for small maps.

    python -m benchmarks.precision

The networks are the small CNN at 32 px and a ResNet-18 at 64 px, with the views that "auto" sets.
The variants run one step each in turns. The script prints the speed relative to the plain variant,
which is float32 in NCHW order with all convolutions by torch, as the median ratio over the turns.
bfloat16 is left out if the processor does not support it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from sklearn_excb import ExCBEstimator
from sklearn_excb.runtime.devices import resolve_precision
from sklearn_excb.settings.resolve import Facts
from sklearn_excb.training.build import build, build_balancing
from sklearn_excb.training.loop import train_step
from sklearn_excb.training.optimizer import Plan, TeacherRates, build_optimizer, set_rates
from sklearn_excb.views.batches import Batch

VARIANTS = {
    "float32, NCHW": ("32", torch.contiguous_format, False),
    "float32, channels last": ("32", torch.channels_last, False),
    "float32, channels last, products": ("32", torch.channels_last, True),
    "bfloat16, channels last": ("bf16", torch.channels_last, False),
}


def stepper(
    backbone: str,
    facts: Facts,
    batch_size: int,
    precision: str,
    memory_format: torch.memory_format,
    with_matrix_products: bool,
) -> Callable[[], float]:
    """Return a function that takes a training step on random views and returns its seconds."""
    excb = ExCBEstimator(backbone=backbone, batch_size=batch_size, precision=precision)
    parameters = excb.get_params()
    networks, settings, _ = build(parameters, facts)
    networks.to(memory_format=memory_format).train_mode()
    for module in networks.modules():
        if isinstance(module, torch.nn.Conv2d) and not with_matrix_products:
            module.__class__ = torch.nn.Conv2d
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
    """Time the variants in turns and print their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    variants = dict(VARIANTS)
    if resolve_precision("auto", torch.device("cpu")) != "bf16":
        del variants["bfloat16, channels last"]
    for backbone, facts, batch_size in (
        ("cnn", Facts(4_000, "images", (32, 32), 3), 128),
        ("resnet18", Facts(2_000, "images", (160, 160), 3), 64),
    ):
        steppers = [stepper(backbone, facts, batch_size, *of) for of in variants.values()]
        for step in steppers:
            step()  # the first allocates
        turns = [[step() for step in steppers] for _ in range(repeats)]
        for i, variant in enumerate(variants):
            ratio = statistics.median(turn[0] / turn[i] for turn in turns)
            print(f"{backbone}, B = {batch_size}: {variant} {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
