"""Detection of convolutions whose gradient in bfloat16 is undefined on a CPU.

A tap of a kernel is idle if it meets padding only, as do the corners of a 3x3 kernel on an image of
one pixel. The gradient of an idle tap is zero. On a CPU, torch 2.14 convolves with oneDNN. In
bfloat16, oneDNN leaves uninitialised memory in these gradients if taps are idle on both sides of
the kernel, and either two are idle on each side or the stride is above one. Once in many runs, this
makes a training diverge.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sklearn_excb.networks.backbones import output_dim


def unused_taps(
    side: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[int, int]:
    """Count the idle taps at both ends of a kernel along one dimension.

    Parameters
    ----------
    side : int
        Number of pixels of the image.
    kernel, stride, padding, dilation : int
        Parameters of the convolution.

    Returns
    -------
    before, after : int
        Number of taps that meet padding only, at the first and at the last end of the kernel.
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
    """Whether a convolution of an image (n, channels, height, width) has such a gradient."""
    if module.padding_mode != "zeros" or module.padding == "valid":
        return False  # the padding consists of pixels, or there is none
    for i in range(2):
        kernel, stride, dilation = module.kernel_size[i], module.stride[i], module.dilation[i]
        same = isinstance(module.padding, str)
        padding = dilation * (kernel - 1) // 2 if same else int(module.padding[i])
        idle = min(unused_taps(image.shape[2 + i], kernel, stride, padding, dilation))
        if idle >= (1 if stride > 1 else 2):
            return True
    return False


def undefined_gradients(backbone: nn.Module, examples: list[Tensor]) -> str | None:
    """Describe the first convolution of a backbone whose gradient is undefined.

    Parameters
    ----------
    backbone : nn.Module
        Backbone f; it does not change.
    examples : list of Tensors
        Batch of zeros for each resolution.

    Returns
    -------
    str or None
        Kernel, stride and image of the convolution in words; None if there is no such convolution.
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
