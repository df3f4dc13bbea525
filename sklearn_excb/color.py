"""Batched colour operations of multi-crop, each image with its own parameters.

Images are float in [0, 1], shape (n, c, h, w); a parameter is a tensor of shape (n,). Each
operation equals torchvision's on one image with the same parameter. Operations that mix colours
(saturation, hue, gray) act on images with three channels and leave others as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)


def _each(parameter: Tensor) -> Tensor:
    return parameter[:, None, None, None]


def to_gray(images: Tensor) -> Tensor:
    """Luma of images with three channels, mean of the channels of others; (n, 1, h, w)."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    weights = images.new_tensor(_LUMA)
    return torch.einsum("nchw,c->nhw", images, weights)[:, None]


def _blend(images: Tensor, other: Tensor, ratio: Tensor) -> Tensor:
    """``ratio`` of the image, the rest of the other; clamped to [0, 1]."""
    return torch.lerp(other.expand_as(images), images, _each(ratio)).clamp_(0, 1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by a factor >= 0."""
    return (images * _each(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray of each image, factor >= 0."""
    return _blend(images, to_gray(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray version of each image, factor >= 0."""
    if images.shape[1] != 3:
        return images
    return _blend(images, to_gray(images), factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by a shift in [-0.5, 0.5] turns, in exact HSV."""
    if images.shape[1] != 3:
        return images
    value, _ = images.max(dim=1)
    smallest, _ = images.min(dim=1)
    chroma = value - smallest
    red, green, blue = images.unbind(1)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )  # in sixths of a turn
    hue = hue + 6.0 * shift[:, None, None]
    # channel n of HSV to RGB: value - chroma * max(0, min(k, 4 - k, 1)), k = (n + hue) mod 6
    offsets = images.new_tensor([5.0, 3.0, 1.0])[None, :, None, None]
    k = torch.remainder(offsets + hue[:, None], 6.0)
    ramp = torch.minimum(k, 4.0 - k).clamp_(0, 1)
    return value[:, None] - chroma[:, None] * ramp


JITTER: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
)


def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, each image in its own order.

    Parameters
    ----------
    images : Tensor of shape (n, c, h, w)
        Float in [0, 1]; not changed.
    factors : Tensor of shape (n, 4)
        Factors of brightness, contrast and saturation, and the shift of hue.
    order : Tensor of shape (n, 4), int64, on the CPU
        Row i is the order in which image i meets the operations: a permutation of 0..3.
    """
    images = images.clone()
    for slot in order.unbind(1):
        for number, operation in enumerate(JITTER):
            # the order lies on the CPU: choosing the rows never waits for the device
            rows = (slot == number).nonzero()[:, 0].to(images.device)
            images[rows] = operation(images[rows], factors[rows, number])
    return images


def grayscale(images: Tensor) -> Tensor:
    """Gray images with the number of channels they came with."""
    if images.shape[1] != 3:
        return images
    return to_gray(images).expand_as(images)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian of sigma pixels, cut at ``radius``, with reflected borders."""
    taps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # (n, taps)
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    height, width = images.shape[-2:]
    rows = sum(_each(k) * padded[:, :, i : i + height] for i, k in enumerate(kernel.unbind(1)))
    return sum(_each(k) * rows[..., i : i + width] for i, k in enumerate(kernel.unbind(1)))  # pyright: ignore


def solarize(images: Tensor, threshold: float = 128 / 255) -> Tensor:
    """Invert the pixels at or above the threshold."""
    return torch.where(images >= threshold, 1.0 - images, images)
