"""Convolutions of the smallest feature maps, computed as matrix products.

The last convolutions of a ResNet-18 work on 2 x 2 pixels for a view of 64 pixels, and on one pixel
for a view of 32. On a CPU, torch 2.14 convolves with oneDNN. In float32, oneDNN takes several times
as long for these maps as a matrix product: it multiplies padding, and it is slow if the gradient of
a kernel sums over few pixels. If each output pixel sees all input pixels, a convolution is a linear
layer. Its weights are those of the kernel, and some of them occur several times.
"""

from __future__ import annotations

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_PIXELS = 4  # more would make a matrix much larger than the kernel


class SmallMapConv2d(nn.Conv2d):
    """Convolution that is a matrix product where this is faster: tiny maps in float32 on a CPU.

    The result is that of :class:`torch.nn.Conv2d` except for rounding, in the same memory format.
    The class does not support kernels of one pixel, groups, padding by name, or padding other than
    zeros.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve.

        Parameters
        ----------
        input : Tensor of shape (n, channels in, height, width) or (channels in, height, width)
            Feature maps.

        Returns
        -------
        Tensor of shape (n, channels out, height, width) or (channels out, height, width)
            Convolved feature maps.
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
        """Return the result of :func:`taps_of_pixels`, or None if torch should convolve."""
        if torch.compiler.is_compiling():
            return None  # a compiled graph gets the ordinary convolution
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


def with_matrix_products(backbone: nn.Module) -> nn.Module:
    """Convert the supported convolutions of a backbone to :class:`SmallMapConv2d`, in place.

    Parameters
    ----------
    backbone : nn.Module
        Backbone f. Its parameters and their names do not change. Subclasses of the convolution stay
        as they are.

    Returns
    -------
    nn.Module
        The same backbone.
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
    """Find the tap of the kernel through which each output pixel sees each input pixel.

    Parameters
    ----------
    image, kernel, stride, padding, dilation : (int, int)
        Vertical and horizontal sizes of image and kernel, and parameters of the convolution.

    Returns
    -------
    (height, width, taps) or None
        Height and width of the output, and the index of the tap for every pair of an output pixel
        and an input pixel, output pixels first. None if the output is empty, or if an output pixel
        does not see all input pixels.
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
