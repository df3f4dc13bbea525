"""Memory of fits on this device, compared with the estimates of ``estimate_memory``.

    python -m benchmarks.memory

Each fit runs in a separate process, after a small fit that starts libraries and threads. The script
prints the peak memory above that of the process before the fit, the estimate for its tensors, and
the ratio of the peak to ``needed``, the estimate with its margin. The ratio should be slightly
below 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.loss import resident
from sklearn_excb import ExCBEstimator

# Parameters, and shape of the images or rows; each fit has few steps. "files" are opened singly.
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "rows of 512, K = 20,000": ({"K": 20_000, "batch_size": 512}, (20_000, 512)),
    "200,000 rows of 4": ({"K": 100, "batch_size": 4096}, (200_000, 4)),
    "files of 12 MP, 2 threads": (
        {"K": 4, "batch_size": 8, "image_size": 64, "backbone": "resnet18", "n_jobs": 2},
        (16, 3000, 4000, 3),
    ),
    "digits": ({"K": 78, "batch_size": 64}, (1_500, 8, 8)),
    "small CNN at 32 px": ({"K": 100, "batch_size": 256}, (512, 32, 32, 3)),
    "ResNet-18 at 64 px": ({"K": 100, "batch_size": 64}, (128, 64, 64, 3)),
    "ResNet-18, in parts of 8": (
        {"K": 100, "batch_size": 64, "micro_batch": 8},
        (128, 64, 64, 3),
    ),
    "ViT-S/16 at 224 px": (
        {"K": 16, "batch_size": 8, "backbone": "vit_small_patch16_224", "image_size": 224},
        (16, 256, 256, 3),
    ),
    "ResNet-50 at 224 px": (
        {"K": 32, "batch_size": 16, "backbone": "resnet50", "image_size": 224},
        (32, 256, 256, 3),
    ),
}


def files(folder: Path, shape: tuple[int, ...]) -> Path:
    """Write noise as JPEG files."""
    for i in range(shape[0]):
        Image.fromarray(images((1, *shape[1:]))[0]).save(folder / f"{i}.jpg")
    return folder


def images(shape: tuple[int, ...]) -> np.ndarray:
    """Return noise: rows, or uint8 images."""
    generator = np.random.default_rng(0)
    if len(shape) == 2:
        return generator.standard_normal(shape, dtype=np.float32)
    return generator.integers(0, 256, shape, dtype=np.uint8)


def measure(name: str, device: str) -> dict[str, float]:
    """Return the peak memory of a fit of one epoch in this process, and the estimate, in MB."""
    parameters, shape = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        X = files(Path(folder), shape) if "files" in name else images(shape)
        return _measured(X, parameters, device)


def _measured(X: Any, parameters: dict[str, Any], device: str) -> dict[str, float]:
    ExCBEstimator(K=2, epochs=1, batch_size=4, device=device).fit(images((8, 8, 8)))
    excb = ExCBEstimator(epochs=1, random_state=0, device=device, **parameters)
    if device == "cpu":
        before = resident("VmRSS")
        excb.fit(X)
        taken = resident("VmHWM") - before
    else:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved() / 2**20
        excb.fit(X)
        taken = torch.cuda.max_memory_reserved() / 2**20 - before
    estimate = excb.estimate_memory(X)
    return {
        "taken": taken,
        "peak": estimate.peak / 2**20,
        "needed": estimate.needed / 2**20,
    }


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.of:
        print(json.dumps(measure(arguments.of, arguments.device)))
        return
    print(f"{'':28}{'taken':>8}{'tensors':>9}{'taken / needed':>16}   MB")
    for name in CASES:
        command = [sys.executable, "-m", "benchmarks.memory", "--of", name]
        command += ["--device", arguments.device]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        mb = json.loads(done.stdout)
        share = mb["taken"] / mb["needed"]
        print(f"{name:28}{mb['taken']:8.0f}{mb['peak']:9.0f}{share:16.2f}", flush=True)


if __name__ == "__main__":
    main()
