"""Speed of ``transform`` relative to a bare loop over timm's network, and memory of ``predict``.

    python -m benchmarks.inference
    python -m benchmarks.inference --memory

The network is a ResNet-18 at 224 pixels. The bare loop is ``for batch in batches: network(batch)``
in inference mode, over prepared tensors. Its network is that of timm, unchanged or in channels-last
order like that of the estimator. ``transform`` gets the same prepared batches, then an array of
images, which it resizes and crops, then JPEG files, which it decodes. All variants run in turns.
The script prints the median ratio over the turns to the first bare loop, in images per second.

With ``--memory``, the script prints the peak memory of ``predict`` on 1,000 to 100,000 JPEG files
of 64 pixels, with the result in a memory-mapped file. Each number of files has its own process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from benchmarks.views import write_photos
from sklearn_excb import ExCBEstimator
from sklearn_excb.data.open_source import open_source
from sklearn_excb.training.teacher_outputs import embed
from sklearn_excb.views.whole_images import inference_inputs

BATCH = 256  # images per batch of inference
NUMBERS = (1_000, 10_000, 100_000)


def fitted(images: Any, **parameters: Any) -> ExCBEstimator:
    """Return an untrained estimator; its inference takes as long as that of a trained one."""
    excb = ExCBEstimator(K=2, epochs=0, embedding="backbone", random_state=0, **parameters)
    return excb.fit(images)


def bare(network: nn.Module, batches: list[Tensor]) -> Callable[[], None]:
    """Run a loop over prepared batches."""

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            network(batch)

    return run


def speed(repeats: int) -> None:
    """Print the rates."""
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)
    excb = fitted(images[:8], backbone="resnet18", image_size=224)
    teacher, recipe = excb._fitted.teacher, excb._fitted.recipe
    inputs = inference_inputs(
        open_source(images), recipe, batch_size=BATCH, n_jobs=1, device=torch.device("cpu")
    )
    batches = [batch.clone() for batch in inputs]
    out = np.empty((BATCH, 512), np.float32)
    plain, ordered = (timm.create_model("resnet18", num_classes=0).eval() for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), BATCH, 375, 500)
        runs = {
            "bare loop": bare(plain, batches),
            "bare loop, channels last": bare(
                ordered.to(memory_format=torch.channels_last), batches
            ),
            "ours, the same batches": lambda: embed(teacher, batches, "backbone", out=out),
            "transform of an array": lambda: excb.transform(images),
            "transform of JPEG files": lambda: excb.transform(paths),
        }
        turns = []
        for _ in range(repeats + 1):
            rates = []
            for run in runs.values():
                start = time.perf_counter()
                run()
                rates.append(BATCH / (time.perf_counter() - start))
            turns.append(rates)
    for i, name in enumerate(runs):
        ratio = statistics.median(rates[i] / rates[0] for rates in turns[1:])
        print(f"{torch.get_num_threads()} threads: {name} {ratio:.2f}", flush=True)


def memory() -> None:
    """Print the peak memory of ``predict``."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), 100, 64, 64)
        for n in NUMBERS:
            options = ["--predict", str(n), "--folder", folder]
            command = [sys.executable, "-m", "benchmarks.inference", *options]
            subprocess.run(command, check=True)
        del paths


def peak(n: int, folder: Path) -> None:
    """Print the peak memory of this process for ``n`` paths, with files repeated many times."""
    some = sorted(str(path) for path in folder.glob("*.jpg"))
    excb = fitted(some, backbone="cnn", image_size=32)
    paths = (some * (n // len(some) + 1))[:n]
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        out = np.lib.format.open_memmap(file.name, "w+", np.int64, (n,))
        excb.predict(paths, out=out)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"predict of {n:,} files: {megabytes:,.0f} MB at the peak", flush=True)


def main() -> None:
    """Measure speed, or memory with ``--memory``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--predict", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.predict:
        peak(arguments.predict, arguments.folder)
    elif arguments.memory:
        memory()
    else:
        speed(arguments.repeats)


if __name__ == "__main__":
    main()
