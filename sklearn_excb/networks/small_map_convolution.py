"""Convolutions of the smallest feature maps, as matrix products.

The last convolutions of a ResNet-18 have 2 x 2 pixels left of a view of 64, and one of one of 32.
In float32 on a CPU, oneDNN, by which torch 2.14 convolves, takes several times as long for them as
a matrix product does: it multiplies padding, and is slow where the gradient of a kernel has few
pixels to sum over. Where each pixel that comes out sees all that go in, a convolution is a linear
layer whose weights are those of the kernel, some of them several times.
"""

from __future__ import annotations

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_PIXELS = 4  # more would make a matrix much larger than the kernel


class SmallMapConv2d(nn.Conv2d):
    """A convolution that is a matrix product where that is faster: tiny maps, float32, on a CPU.

    The result is that of :class:`torch.nn.Conv2d` but for rounding, and lies in the same order.
    Kernels of one pixel, groups, and padding by name or other than zeros are not for it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve.

        Parameters
        ----------
        input : Tensor of shape (n, channels in, height, width), or without n

        Returns
        -------
        Tensor of shape (n, channels out, height, width), or without n
        """
        taps = self._taps(input)
        if taps is None:
            return super().forward(input)
        height, width, indices = taps
        rows = input.permute(0, 2, 3, 1).flatten(1)  # (n, pixels in x channels in)
        by_tap = self.weight.permute(0, 2, 3, 1).flatten(1, 2)  # (channels out, taps, channels in)
        used = by_tap.index_select(1, torch.tensor(indices, device=input.device))
        matrix = used.reshape(self.out_channels * height * width, -1)
        out = F.linear(rows, matrix).unflatten(1, (self.out_channels, height, width))
        if self.bias is not None:
            out = out + self.bias[:, None, None]
        last = torch.channels_last
        if any(t.is_contiguous(memory_format=last) for t in (input, self.weight)):
            out = out.contiguous(memory_format=last)
        return out

    def _taps(self, image: Tensor) -> tuple[int, int, tuple[int, ...]] | None:
        """What :func:`taps_of_pixels` gives; None where torch is to convolve."""
        if torch.compiler.is_compiling():
            return None  # a graph is to have the convolution
        weight, n_pixels = self.weight, image.shape[-2] * image.shape[-1]
        measured = (
            weight.device.type == image.device.type == "cpu"
            and weight.dtype == image.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
        )
        gains = n_pixels <= min(_MOST_PIXELS, weight.shape[2] * weight.shape[3] // 2)
        if not (measured and gains and image.ndim == 4 and image.shape[1] == self.in_channels):
            return None
        return taps_of_pixels(
            tuple(image.shape[2:]), self.kernel_size, self.stride, self.padding, self.dilation
        )


def with_products(backbone: nn.Module) -> nn.Module:
    """Make the convolutions of a backbone that can be :class:`SmallMapConv2d` such, in place.

    Parameters
    ----------
    backbone : nn.Module
        Its parameters and their names stay as they are; so do subclasses of the convolution.

    Returns
    -------
    nn.Module
        The backbone.
    """
    for module in backbone.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.kernel_size != (1, 1)
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        ):
            module.__class__ = SmallMapConv2d
    return backbone


@functools.cache
def taps_of_pixels(
    image: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[int, int, tuple[int, ...]] | None:
    """By which tap of the kernel each pixel that comes out sees each that goes in.

    Parameters
    ----------
    image, kernel, stride, padding, dilation : (int, int)
        Vertically and horizontally.

    Returns
    -------
    (height, width, taps) or None
        Size of what comes out, and for every pair of pixels, what comes out first, the index of
        the tap. None if nothing comes out, or a pixel that does not see them all.
    """
    dimensions = list(zip(image, kernel, stride, padding, dilation, strict=True))
    height, width = ((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in dimensions)
    taps = []
    for out in itertools.product(range(height), range(width)):
        for pixel in itertools.product(*map(range, image)):
            index = 0
            for at, to, (_, k, s, p, d) in zip(pixel, out, dimensions, strict=True):
                tap, between = divmod(at + p - s * to, d)
                if between or not 0 <= tap < k:
                    return None
                index = index * k + tap
            taps.append(index)
    return (height, width, tuple(taps)) if taps else None
