"""Batched colour operations of multi-crop, in which each image has its own parameters.

Images are float in [0, 1] of shape (n, c, h, w), and a parameter is a tensor of shape (n,). Each
operation equals torchvision's operation on one image with the same parameter. Operations that mix
colours (saturation, hue, gray) change only images with three channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_excb.data.pixels import to_gray
from sklearn_excb.runtime.transfers import to_device


def _each(parameter: Tensor) -> Tensor:
    return parameter[:, None, None, None]


def _blend(images: Tensor, other: Tensor, ratio: Tensor) -> Tensor:
    """Blend ``ratio`` parts of the image with ``1 - ratio`` parts of the other, in [0, 1]."""
    return (images * _each(ratio)).add_(other * _each(1 - ratio)).clamp_(0, 1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by a factor >= 0."""
    return (images * _each(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray of each image, factor >= 0."""
    # two steps, because torch's threads would split one large sum and change its order
    mean = to_gray(images).mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
    return _blend(images, mean, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray version of each image, factor >= 0."""
    if images.shape[1] != 3:
        return images
    return _blend(images, to_gray(images), factor)


def _where_largest(channel: Tensor, largest: Tensor) -> Tensor:
    """Return 1 where a channel is the largest, else 0, several times as fast as a comparison."""
    return (channel - largest).mul_(1e38).add_(1.0).clamp_(min=0.0)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by a shift in [-0.5, 0.5] turns, in exact HSV."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.split(1, dim=1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    chroma = largest - smallest
    # the clamp gives pixels without colour a finite hue
    scale = chroma.clamp(min=torch.finfo(chroma.dtype).tiny).reciprocal_()
    hue = (red - green).mul_(scale).add_(4.0)  # in sixths of a turn, where blue is the largest
    hue.lerp_((blue - red).mul_(scale).add_(2.0), _where_largest(green, largest))
    hue.lerp_((green - blue).mul_(scale), _where_largest(red, largest))
    hue.add_(_each(6.0 * shift))
    hue.sub_((hue * (1 / 6)).floor_().mul_(6.0))
    turned = torch.empty_like(images)
    red, green, blue = turned.split(1, dim=1)
    for channel, ramp in (
        (red, (hue - 3.0).abs_().sub_(1.0)),
        (green, (hue - 2.0).abs_().neg_().add_(2.0)),
        (blue, (hue - 4.0).abs_().neg_().add_(2.0)),
    ):
        torch.addcmul(smallest, chroma, ramp.clamp_(0, 1), out=channel)
    return turned


JITTER: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
)


def jitter(images: Tensor, factors: Tensor, order: npt.NDArray[np.int64]) -> Tensor:
    """Adjust brightness, contrast, saturation and hue, in an order of its own for each image.

    Parameters
    ----------
    images : Tensor of shape (n, c, h, w)
        Images of float in [0, 1].
    factors : Tensor of shape (n, 4)
        Factors of brightness, contrast and saturation, and the shift of hue.
    order : ndarray of shape (n, 4), int64
        Order of the operations on image i in row i, a permutation of 0..3.
    """
    by_operation = factors.unbind(1)
    for slot in order.T:
        for number in np.unique(slot):
            images = on_some(images, slot == number, JITTER[number], by_operation[number])
    return images


def on_some(
    images: Tensor,
    chosen: npt.NDArray[np.bool_],
    operation: Callable[..., Tensor],
    *parameters: Tensor,
) -> Tensor:
    """Apply an operation to the chosen images, each with its entry of the parameters.

    ``chosen`` is in CPU memory, so that the choice never waits for the device.
    """
    if chosen.all():
        return operation(images, *parameters)
    if not chosen.any():
        return images
    rows = to_device(torch.from_numpy(chosen.nonzero()[0]), images.device)
    changed = operation(images[rows], *(parameter[rows] for parameter in parameters))
    return images.index_copy(0, rows, changed)


def grayscale(images: Tensor) -> Tensor:
    """Convert images to gray and keep the number of channels."""
    if images.shape[1] != 3:
        return images
    return to_gray(images).expand_as(images)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur with a Gaussian of sigma pixels, cut off at ``radius``, with reflected borders."""
    taps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # (n, taps)
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    height, width = images.shape[-2:]
    weights = [_each(weight) for weight in kernel.unbind(1)]
    rows = padded[:, :, :height] * weights[0]
    for i, weight in enumerate(weights[1:], start=1):
        rows.addcmul_(padded[:, :, i : i + height], weight)
    blurred = rows[..., :width] * weights[0]
    for i, weight in enumerate(weights[1:], start=1):
        blurred.addcmul_(rows[..., i : i + width], weight)
    return blurred


def solarize(images: Tensor, threshold: float = 128 / 255) -> Tensor:
    """Invert the pixels at or above the threshold."""
    return torch.where(images >= threshold, 1.0 - images, images)
