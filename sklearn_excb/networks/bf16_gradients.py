"""Convolutions whose gradient in bfloat16 is undefined on a CPU.

A tap of a kernel is idle where it meets padding alone, as the corners of a 3x3 kernel do on an
image of one pixel. Its gradient is zero. In bfloat16 oneDNN, by which torch 2.14 convolves on a
CPU, leaves what lay in memory there, if taps are idle on both sides of the kernel, and two on each
or the stride above one. That shows once in many runs, as a training that diverges.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sklearn_excb.networks.backbones import output_dim


def unused_taps(
    side: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[int, int]:
    """How many taps meet padding alone, at either end of a kernel, along one dimension.

    Parameters
    ----------
    side : int
        Pixels of the image.
    kernel, stride, padding, dilation : int
        Of the convolution.

    Returns
    -------
    before, after : int
        A tap beyond the image in every position counts at the end where it lies.
    """
    last = (side + 2 * padding - dilation * (kernel - 1) - 1) // stride * stride - padding
    positions = range(-padding, last + 1, stride)
    before = after = 0
    for tap in range(kernel):
        met = [at + tap * dilation for at in positions]
        if all(at < 0 or at >= side for at in met):
            before += met[-1] < 0
            after += met[-1] >= side
    return before, after


def undefined_gradient(module: nn.Conv2d, image: Tensor) -> bool:
    """Whether a convolution of an image, (n, channels, height, width), is one of these."""
    if module.padding_mode != "zeros" or module.padding == "valid":
        return False  # pixels are put around the image, or none
    for i in range(2):
        kernel, stride, dilation = module.kernel_size[i], module.stride[i], module.dilation[i]
        same = isinstance(module.padding, str)
        padding = dilation * (kernel - 1) // 2 if same else int(module.padding[i])
        idle = min(unused_taps(image.shape[2 + i], kernel, stride, padding, dilation))
        if idle >= (1 if stride > 1 else 2):
            return True
    return False


def undefined_gradients(backbone: nn.Module, examples: list[Tensor]) -> str | None:
    """The first of these convolutions that a backbone meets, and the image on which it does.

    Parameters
    ----------
    backbone : nn.Module
        f, which is left as it was.
    examples : list of Tensors
        A batch of zeros for each resolution.

    Returns
    -------
    str or None
        What it is, in words; None if there is none.
    """
    found: list[str] = []

    def look(module: nn.Conv2d, inputs: tuple[Any, ...]) -> None:
        if undefined_gradient(module, inputs[0]):
            kernel = "x".join(map(str, module.kernel_size))
            sides = "x".join(map(str, inputs[0].shape[2:]))
            found.append(f"a {kernel} convolution with stride {module.stride[0]} on {sides} pixels")

    layers = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    if not layers:
        return None
    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        output_dim(backbone, examples)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
