"""Growth of time and memory with K, D, batch size, image size and processes, measured or computed.

    python -m benchmarks.scaling steps         # time and memory of a step, relative to a reference
    python -m benchmarks.scaling processes     # two processes of one thread against one of two
    python -m benchmarks.scaling arithmetic    # FLOPs, traffic, memory, checkpoints of large fits

Steps are training steps on prepared views. They run in turns, and ratios are medians over the
turns. Memory is computed by ``estimate_memory``. torch counts the FLOPs of a step on fake tensors.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import sklearn_excb.fitting.memory.estimate as memory
import sklearn_excb.fitting.memory.fake_steps as fake_phases
import sklearn_excb.networks.heads as heads
import sklearn_excb.networks.student_teacher as networks_module
from sklearn_excb import ExCBEstimator
from sklearn_excb.data.sources import ArrayImages
from sklearn_excb.fitting.memory.estimate import estimate_memory
from sklearn_excb.fitting.memory.live_tensors import fake, size, tensors_of
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.settings.resolve import Facts, Settings
from sklearn_excb.training.build import build, build_balancing, prepare
from sklearn_excb.training.context import FitContext
from sklearn_excb.training.loop import train_step
from sklearn_excb.training.optimizer import Plan, TeacherRates, build_optimizer, set_rates
from sklearn_excb.views.batches import Batch

BASE: dict[str, Any] = {
    "K": 1024,
    "backbone": "resnet18",
    "image_size": 64,
    "local_size": 32,
    "n_local": 4,
    "batch_size": 32,
    "head_width": 512,
    "precision": "32",
}
VARIED: dict[str, dict[str, Any]] = {
    "K = 16,384": {"K": 16_384},
    "K = 65,536": {"K": 65_536},
    "D = 512": {"D": 512},
    "D = 512, K = 65,536": {"D": 512, "K": 65_536},
    "batch of 64": {"batch_size": 64},
    "batch of 64 in two parts": {"batch_size": 64, "micro_batch": 32},
    "128 px": {"image_size": 128, "local_size": 64},
    "8 local views": {"n_local": 8},
    "bfloat16": {"precision": "bf16"},
}

IMAGENET, IMAGENET_22K = 1_281_167, 14_197_122
LARGE: dict[str, tuple[int, dict[str, Any]]] = {
    "ResNet-50, ImageNet, K = 65,536": (IMAGENET, {"recipe": "paper-resnet50"}),
    "ViT-S/16, ImageNet, K = 65,536": (IMAGENET, {"recipe": "paper-vit-s16"}),
    "ViT-S/16, ImageNet-22k, K = 1,000,000": (
        IMAGENET_22K,
        {"recipe": "paper-vit-s16", "K": 1_000_000, "epochs": 90},
    ),
}
DEVICES = (1, 8, 64)


@contextmanager
def dimensions(D: int) -> Iterator[None]:
    """Set the number of dimensions of projections, which is 256 in the estimator."""
    before = networks_module.PROJECTION_DIM
    heads.PROJECTION_DIM = networks_module.PROJECTION_DIM = fake_phases.PROJECTION_DIM = D
    try:
        yield
    finally:
        heads.PROJECTION_DIM = networks_module.PROJECTION_DIM = fake_phases.PROJECTION_DIM = before


def views_of(settings: Settings, n: int) -> list[torch.Tensor]:
    """Return random views of n images."""
    sizes = [(settings.n_global, settings.image_size), (settings.n_local, settings.local_size)]
    channels = settings.n_channels
    return [torch.randn(views * n, channels, side, side) for views, side in sizes if views]


def stepper(networks: StudentTeacher, settings: Settings) -> Callable[[], Any]:
    """Return a function that takes a training step."""
    optimizer = build_optimizer(networks.train_mode().student, settings)
    plan = Plan(10, 10 * max(1, settings.epochs))
    set_rates(optimizer, settings, 1, plan)
    rates = TeacherRates.of(settings, 1, plan)
    balancing = build_balancing(settings, "cpu")
    B = settings.batch_size
    batch = Batch(1, views_of(settings, B), B, B)
    return lambda: train_step(networks, balancing, optimizer, batch, settings, rates)


def steps(repeats: int) -> None:
    """Print time and memory of a step relative to those of BASE."""
    print("| | time of a step | time an image | memory |")
    print("|---|---|---|---|")
    images = np.broadcast_to(np.uint8(0), (100_000, 128, 128, 3))
    made: dict[str, tuple[Callable[[], Any], int, int]] = {}

    def make(varied: dict[str, Any]) -> tuple[Callable[[], Any], int, int]:
        D = varied.get("D", 256)
        own = {name: value for name, value in varied.items() if name != "D"}
        parameters = ExCBEstimator(**(BASE | own)).get_params()
        source = ArrayImages(images)
        with dimensions(D):
            model, batches = prepare(source, FitContext(parameters, 0, torch.device("cpu")))
            networks, settings = model.networks, model.settings
            peak = sum(estimate_memory(networks, settings, batches).phases["step"].values())
        return stepper(networks, settings), settings.batch_size, peak

    made["base"] = make({})
    for name, varied in VARIED.items():
        made[name] = make(varied)
        ratios = []
        for turn in range(repeats + 1):
            times = [timed(made[which][0]) for which in ("base", name)]
            if turn:
                ratios.append(times[1] / times[0])
        ratio = statistics.median(ratios)
        (_, base_images, base_peak), (_, n_images, peak) = made["base"], made.pop(name)
        print(
            f"| {name} | {ratio:.2f} | {ratio * base_images / n_images:.2f} | "
            f"{peak / base_peak:.2f} |",
            flush=True,
        )
    print(f"\nMemory of the step of BASE: {memory.readable(made['base'][2])}.")


def timed(function: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def processes(repeats: int) -> None:
    """Print the time of epochs with two processes relative to one, on the same two cores."""
    from sklearn.datasets import load_digits

    torch.set_num_threads(2)
    X = load_digits().images / 16

    def seconds(devices: int, epochs: int) -> float:
        excb = ExCBEstimator(
            K=92, epochs=epochs, settle_passes=0, devices=devices, device="cpu", random_state=0
        )
        return timed(lambda: excb.fit(X))

    ratios, starts = [], []
    for _ in range(repeats):
        of = {(d, e): seconds(d, e) for e in (1, 5) for d in (1, 2)}
        ratios.append((of[2, 5] - of[2, 1]) / (of[1, 5] - of[1, 1]))
        starts.append(of[2, 1] - of[1, 1])
    print("epochs of digits, two processes of one thread over one of two, by turns:")
    print("  " + ", ".join(f"{ratio:.2f}" for ratio in sorted(ratios)))
    print(f"  seconds to start them: {statistics.median(starts):.0f}")


def flops(networks: StudentTeacher, settings: Settings) -> int:
    """Return the FLOPs of the matrix products and convolutions of a step."""
    with fake(networks) as fakes:
        step = stepper(fakes, settings)
        with FlopCounterMode(display=False) as counter:
            step()
    return counter.get_total_flops()


def arithmetic() -> None:
    """Print FLOPs, memory and traffic of large fits on several devices, computed from the code."""
    for name, (n_images, of) in LARGE.items():
        own = {key: value for key, value in of.items() if key != "recipe"}
        parameters = ExCBEstimator.from_recipe(of["recipe"], precision="bf16", **own).get_params()
        facts = Facts(n_images, "images", (256, 256), 3)
        networks, settings, _ = build(parameters, facts)
        few = replace(settings, batch_size=8, micro_batch=8)
        an_image = flops(networks, few) / few.batch_size
        bare, bare_settings, _ = build(parameters | {"K": 2}, facts)
        without_loss = flops(bare, replace(bare_settings, batch_size=8, micro_batch=8)) / 8
        student = networks.student
        gradients = size(p for p in student.parameters() if p.requires_grad)
        moments = {"sgd": 1, "adamw": 2}[settings.optimizer]
        state = size(tensors_of(networks)) + moments * size(student.parameters())
        print(f"\n{name}")
        print(
            f"  parameters of the student: {gradients / 4e6:.1f} M, of them centroids "
            f"{student.centroids.weight.numel() / 1e6:.1f} M"
        )
        print(
            f"  FLOPs an image, all views, forward and backward: {an_image / 1e9:.1f} G, "
            f"of them the loss {(an_image - without_loss) / 1e9:.1f} G"
        )
        print(f"  FLOPs of {settings.epochs} epochs: {an_image * n_images * settings.epochs:.2e}")
        print(f"  a checkpoint on disk: {memory.readable(state)}")
        for n in DEVICES:
            share = settings.batch_size // n
            sent = 2 * (n - 1) / n * gradients
            device = torch.device("cuda")
            images = ArrayImages(np.broadcast_to(np.uint8(0), (n_images, 256, 256, 3)))
            _, batches = prepare(images, FitContext(parameters, 0, device))
            at_once = settings.batch_size if share >= 2 else 2
            of_rank = replace(settings, batch_size=share, micro_batch=min(share, at_once))
            batches = replace(batches, batch_size=share)
            estimate = estimate_memory(networks, of_rank, batches)
            print(
                f"  {n} devices, {share} images each: {memory.readable(estimate.peak)} a device "
                f"at the peak ({estimate.peak_phase}), "
                f"{memory.readable(round(sent))} sent by each in a step"
            )


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["steps", "processes", "arithmetic"])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.what == "arithmetic":
        arithmetic()
    else:
        {"steps": steps, "processes": processes}[arguments.what](arguments.repeats)


if __name__ == "__main__":
    main()
