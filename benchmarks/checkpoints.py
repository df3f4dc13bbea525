"""Cost of checkpoints: python -m benchmarks.checkpoints

The script compares writing and reading a checkpoint with torch.save, with fsync, and torch.load of
the same tensors, in alternating runs. It also measures the share of the time of a fit that
checkpoints at the end of each epoch take.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits

from sklearn_excb import ExCBEstimator
from sklearn_excb.settings.resolve import Facts
from sklearn_excb.storage.packing import pack, unpack
from sklearn_excb.storage.tensor_files import read_tensors, write_tensors
from sklearn_excb.training.build import build
from sklearn_excb.training.optimizer import build_optimizer

NETWORKS = {
    "digits at the defaults": ({}, Facts(1437, "images", (8, 8), 1)),
    "2,000 photos, ResNet-18": ({"backbone": "resnet18"}, Facts(2000, "images", (400, 300), 3)),
    "ResNet-50, K = 65,536": (
        {"backbone": "resnet50", "K": 65_536},
        Facts(1_281_167, "images", (400, 300), 3),
    ),
}


def state_of(parameters: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """Return the state of networks and optimiser after a step."""
    given = ExCBEstimator(**parameters).get_params(deep=False)
    networks, settings, _ = build(given, facts)
    optimizer = build_optimizer(networks.student, settings)
    for parameter in networks.student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return {"networks": networks.state_dict(), "optimizer": optimizer.state_dict()}


def seconds(run: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def medians(rivals: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the medians of alternating runs, in seconds."""
    taken: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, run in rivals.items():
            taken[name].append(seconds(run))
    return {name: float(np.median(times)) for name, times in taken.items()}


def plain_save(state: dict[str, Any], file: Path) -> None:
    """Write with torch and flush to the disk."""
    with file.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())


def files(name: str, folder: Path, repeats: int) -> None:
    """Compare a checkpoint with a torch file of the same tensors."""
    state = state_of(*NETWORKS[name])
    ours, torchs = folder / "state.safetensors", folder / "state.pt"
    found = medians(
        {
            "write": lambda: write_tensors(ours, *pack(state)),
            "torch.save": lambda: plain_save(state, torchs),
        },
        repeats,
    )
    found |= medians(
        {
            "read": lambda: unpack(*read_tensors(ours)[:2]),
            "torch.load": lambda: torch.load(torchs, weights_only=True),
        },
        repeats,
    )
    megabytes = ours.stat().st_size / 1e6
    print(
        f"{name}: {megabytes:,.1f} MB; written in {found['write'] / found['torch.save']:.2f} of "
        f"torch.save's time ({found['write']:.2f} s), read in "
        f"{found['read'] / found['torch.load']:.2f} of torch.load's",
        flush=True,
    )


def share(repeats: int) -> None:
    """Compare the time of short fits of digits with and without checkpoints at each epoch."""
    images = (load_digits().images / 16).astype(np.float32)
    ratios = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            without = ExCBEstimator(epochs=4, random_state=0)
            with_states = clone(without).set_params(checkpoint_dir=folder)
            ratios.append(
                seconds(partial(with_states.fit, images)) / seconds(partial(without.fit, images))
            )
    print(
        f"digits, 4 epochs, a state each: {np.median(ratios):.3f} times the fit without "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for name in NETWORKS:
            files(name, Path(folder), given.repeats)
    share(given.repeats)


if __name__ == "__main__":
    main()
