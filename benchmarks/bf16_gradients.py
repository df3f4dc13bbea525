"""Gradients of bfloat16 convolutions on this CPU, for kernels that overlap much padding.

Run ``MALLOC_PERTURB_=1 python -m benchmarks.bf16_gradients``. With this variable, glibc fills
allocated memory with a pattern, so that memory that torch does not initialise does not hold zeros
by chance. The script lists the convolutions whose gradient differs by more than a tenth from that
in float64, and whether :mod:`sklearn_excb.networks.bf16_gradients` detects them.
"""

from __future__ import annotations

import itertools
import os

import torch
from torch import Tensor, nn

from sklearn_excb.networks.bf16_gradients import undefined_gradient

IMAGES, CHANNELS = 20, 64
KERNELS, STRIDES, SIDES = (3, 5, 7), (1, 2), range(1, 5)


def gradient(layer: nn.Conv2d, images: Tensor, *, bfloat16: bool) -> Tensor:
    """Return the gradient of the sum of squared outputs with respect to the weights."""
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        out = layer(images)
    out.to(images.dtype).square().sum().backward()
    assert layer.weight.grad is not None
    return layer.weight.grad.double()


def difference(layer: nn.Conv2d, images: Tensor) -> float:
    """Return the largest difference from float64, relative to the largest gradient."""
    found = gradient(layer, images, bfloat16=True)
    wanted = gradient(layer.double(), images.double(), bfloat16=False)
    return float((found - wanted).abs().max() / wanted.abs().max())


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    if os.environ.get("MALLOC_PERTURB_") is None:
        print("Set MALLOC_PERTURB_=1: without it, uninitialised memory may hold zeros by chance.")
    n, wrong = 0, 0
    combinations = itertools.product((1, CHANNELS), KERNELS, STRIDES, SIDES)
    for groups, kernel, stride, side in combinations:
        layer = nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, kernel // 2, groups=groups)
        images = torch.randn(IMAGES, CHANNELS, side, side)
        known = undefined_gradient(layer, images)
        share = difference(layer, images)
        n += 1
        if not share < 0.1:  # NaN too
            wrong += 1
            kind = "dense" if groups == 1 else "depthwise"
            print(
                f"{kind} {kernel}x{kernel}, stride {stride}, {side} px: {share:.1e}, known: {known}"
            )
    has = "multiplies" if torch.cpu._is_avx512_bf16_supported() else "does not multiply"
    print(f"{wrong} of {n} gradients are wrong. This CPU {has} in bfloat16.")


if __name__ == "__main__":
    main()
