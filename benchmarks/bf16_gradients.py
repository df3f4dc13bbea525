"""Gradients of convolutions in bfloat16 on this CPU, where kernels meet much padding.

``MALLOC_PERTURB_=1 python -m benchmarks.bf16_gradients``: with it glibc fills memory that is given
away, so that what torch leaves as it was there cannot pass for zeros. Lists the convolutions whose
gradient differs from that in float64 by more than a tenth, and whether
:mod:`sklearn_excb.networks.bf16_gradients` knows them.
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
    """Of the weights, for the sum of squares of what comes out."""
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        out = layer(images)
    out.to(images.dtype).square().sum().backward()
    assert layer.weight.grad is not None
    return layer.weight.grad.double()


def difference(layer: nn.Conv2d, images: Tensor) -> float:
    """Largest difference from float64, as a share of the largest gradient."""
    found = gradient(layer, images, bfloat16=True)
    wanted = gradient(layer.double(), images.double(), bfloat16=False)
    return float((found - wanted).abs().max() / wanted.abs().max())


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    if os.environ.get("MALLOC_PERTURB_") is None:
        print("Without MALLOC_PERTURB_=1 memory may happen to hold zeros.")
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
