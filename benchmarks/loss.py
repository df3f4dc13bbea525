"""Time and memory of the loss, forward and backward, against plain implementations of this loss.

    python -m benchmarks.loss                       # K = 4,096 to 262,144, B = 8, 32, 128
    python -m benchmarks.loss --K 65536 --B 128     # one case
    python -m benchmarks.loss --bf16                # and under bfloat16 autocast

The input has two global and six local views, D = 256. Times are medians of alternating runs in one
process. Memory is the peak of a separate process above its memory before the first loss. The floor
is the time of the unavoidable matrix products, at the rate at which this machine multiplies
2,048 x 2,048 float32 matrices in the same run. The script prints only ratios, because seconds on a
shared machine mean little.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import plain_loss
from sklearn_excb.method.balancing import affine_form
from sklearn_excb.method.loss import excb_loss, teacher_targets

G, L, D = 2, 6, 256
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.04, 0.1


class Case:
    """Random rows and centroids; each method is one step of a variant of the loss."""

    def __init__(self, n_clusters: int, n_images: int, device: str) -> None:
        torch.manual_seed(0)
        rows, K = (G + L, n_images, D), n_clusters
        self.teacher = torch.randn(G, n_images, D, device=device)
        self.teacher_centroids = torch.randn(K, D, device=device)
        self.leaves = [torch.randn(*shape, device=device) for shape in (rows, rows, (K, D))]
        for leaf in self.leaves:
            leaf.requires_grad_()
        sizes = torch.rand(K, device=device)
        self.affine = affine_form(sizes / sizes.sum())

    def ours(self) -> Tensor:
        """Return the loss of the package, as the training loop runs it."""
        targets = teacher_targets(
            self.teacher,
            self.teacher_centroids,
            self.affine,
            temperature=TEACHER_TEMPERATURE,
        )
        memory = self.leaves[2].grad
        self._forget_gradients()
        loss = excb_loss(
            targets, *self.leaves, temperature=STUDENT_TEMPERATURE, gradient_memory=memory
        ).total
        del memory
        loss.backward()
        return loss.detach()

    def ours_bf16(self) -> Tensor:
        """Return the loss of the package under bfloat16 autocast."""
        with torch.autocast(self.teacher.device.type, torch.bfloat16):
            return self.ours()

    def per_pair(self) -> Tensor:
        """Return the loss of Algorithm 1, implemented literally."""
        return self._plain(plain_loss.per_pair)

    def per_view(self) -> Tensor:
        """Return the loss by the fastest plain implementation."""
        return self._plain(plain_loss.per_view)

    def _plain(self, loss_of: Callable[..., plain_loss.Loss]) -> Tensor:
        p, _, _ = plain_loss.targets(
            self.teacher,
            self.teacher_centroids,
            self.affine,
            temperature=TEACHER_TEMPERATURE,
        )
        self._forget_gradients()
        loss = loss_of(p, *self.leaves, temperature=STUDENT_TEMPERATURE).total
        loss.backward()
        return loss.detach()

    def _forget_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


def unavoidable_flops(n_clusters: int, n_images: int) -> float:
    """Return the operations of the matrix products that exact values and gradients need.

    The product of a row with all centroids takes 2 K D operations. Teacher rows need three: for the
    similarities, the mean, and the gradient of the centroids. Student rows need two, for the
    similarities and the mean; rows of the global views of h also need the gradient of the
    centroids.
    """
    products = 3 * G + 2 * 2 * (G + L) + G
    return 2.0 * n_clusters * D * n_images * products


def seconds(run: Callable[[], object]) -> float:
    """Return the seconds of one run."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(n_clusters: int, n_images: int, variants: list[str], repeats: int, device: str) -> str:
    """Return a line of the table: ratios of the times of alternating runs."""
    case = Case(n_clusters, n_images, device)
    square, product = (torch.randn(2048, 2048, device=device) for _ in range(2))
    runs = {name: getattr(case, name) for name in variants}
    runs["products"] = lambda: torch.mm(square, square, out=product)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warm up
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    median = {name: statistics.median(values) for name, values in times.items()}
    floor = unavoidable_flops(n_clusters, n_images) / (2 * 2048**3 / median["products"])
    ratios = [f"{name} {median[name] / median['ours']:.2f}" for name in variants[1:]]
    return f"{'  '.join(ratios)}  ours/floor {median['ours'] / floor:.2f}"


def peak_memory(n_clusters: int, n_images: int, variant: str, device: str) -> float:
    """Return the peak memory of two steps above the baseline, in MB, of this process."""
    case = Case(n_clusters, n_images, device)
    run = getattr(case, variant)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    small = Case(256, n_images, device)
    getattr(small, variant)()  # start libraries and threads
    before = resident("VmRSS")
    run()
    run()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """Return memory of this process in MB: "VmRSS" now, "VmHWM" at its peak (Linux)."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) / 2**10


def peak_memory_apart(n_clusters: int, n_images: int, variant: str, device: str) -> float:
    """Return the peak memory, measured in a new process."""
    command = [sys.executable, "-m", "benchmarks.loss", "--memory-of", variant]
    command += ["--K", str(n_clusters), "--B", str(n_images), "--device", device]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description="Time and memory of the loss.")
    parser.add_argument("--K", type=int, nargs="+", default=[4096, 65536, 262_144])
    parser.add_argument("--B", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--bf16", action="store_true", help="also under bfloat16 autocast")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.memory_of:
        print(peak_memory(asked.K[0], asked.B[0], asked.memory_of, asked.device))
        return
    variants = ["ours", "per_pair", "per_view", *(["ours_bf16"] if asked.bf16 else [])]
    print(f"{torch.get_num_threads()} threads, {asked.device}; times over ours; peak MB")
    for n_clusters in asked.K:
        for n_images in asked.B:
            line = compare(n_clusters, n_images, variants, asked.repeats, asked.device)
            memory = [
                f"{name} {peak_memory_apart(n_clusters, n_images, name, asked.device):.0f}"
                for name in variants
            ]
            print(f"K {n_clusters} B {n_images}:  {line}  MB: {'  '.join(memory)}", flush=True)


if __name__ == "__main__":
    main()
