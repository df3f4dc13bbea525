"""Forward pass of attention over the centroids: blocked products against torch's fused attention.

    python -m benchmarks.attention

The input has 1,792 rows (six local views of h and eight of g, for 128 images), K = 65,536 and
D = 256. The script prints the time divided by that of the two products alone, at the float32 rate
of this machine in the same run. The times in bfloat16 are divided by the same float32 products. The
script runs on a CPU only, because it uses the fused operator of the CPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.loss import seconds
from sklearn_excb.method.attention import attend, lengths

ROWS, K, D, TEMPERATURE, REPEATS = 1792, 65_536, 256, 0.1, 5


def main() -> None:
    """Print one ratio per variant."""
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(ROWS, D), dim=-1)
    centroids = F.normalize(torch.randn(K, D), dim=-1)
    norms = lengths(centroids)
    square, product = torch.randn(2048, 2048), torch.empty(2048, 2048)

    def fused(dtype: torch.dtype) -> None:
        query, key = rows.to(dtype)[None, None], centroids.to(dtype)[None, None]
        F.scaled_dot_product_attention(query, key, key, scale=1 / TEMPERATURE)

    def blocks(dtype: torch.dtype) -> None:
        attend(rows, centroids, norms, temperature=TEMPERATURE, dtype=dtype)

    runs: dict[str, Callable[[], object]] = {
        "products": lambda: torch.mm(square, square, out=product)
    }
    for dtype in (torch.float32, torch.bfloat16):
        runs[f"fused {dtype}"] = lambda dtype=dtype: fused(dtype)
        runs[f"blocks {dtype}"] = lambda dtype=dtype: blocks(dtype)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS + 1):  # the first warms up
        for name, run in runs.items():
            times[name].append(seconds(run))
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    floor = 4 * ROWS * K * D / (2 * 2048**3 / median.pop("products"))
    for name, value in median.items():
        print(f"{name}: {value / floor:.2f}")


if __name__ == "__main__":
    main()
