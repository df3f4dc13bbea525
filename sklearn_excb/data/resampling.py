"""Crop and resize batches of images with antialiased bicubic filters.

A bicubic resize is linear and separable, so the crop ``[top, top + height) x [left, left +
width)`` of an image, resized to (size, size), is ``W_y @ image @ W_x.T`` with one small matrix per
side. Each sample has its own crop, and the whole batch takes two batched products on any device.
Pillow and ``torchvision.transforms.v2.functional.resize(antialias=True)`` use the same filter.

Boxes are integer (top, left, height, width) in pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_excb.data.pixels import to_unit
from sklearn_excb.runtime.buffers import BufferPool
from sklearn_excb.runtime.transfers import to_device

_A = -0.5  # Keys' cubic convolution, as in Pillow
_MATRIX_LIMIT = 96  # longest side for which the matrix products beat one resize per crop on a CPU


def _cubic(x: Tensor) -> Tensor:
    """Evaluate Keys' cubic kernel, which is zero beyond 2."""
    x = x.abs()
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _triangle(x: Tensor) -> Tensor:
    """Evaluate the kernel of linear interpolation, which is zero beyond 1."""
    return (1 - x.abs()).clamp(min=0)


_KERNELS = {"bicubic": _cubic, "bilinear": _triangle}


def resize_weights(start: Tensor, length: Tensor, in_size: int, out_size: int) -> Tensor:
    """Return matrices that resize the segment ``[start, start + length)`` of a side.

    Parameters
    ----------
    start, length : Tensors of the same shape (...)
        First pixel and number of pixels of each segment; integers.
    in_size, out_size : int
        Number of pixels of the whole side, and of the result.

    Returns
    -------
    Tensor of shape (..., out_size, in_size), float32
        Each row sums to 1 and is zero outside its segment.
    """
    start, length = start[..., None, None].float(), length[..., None, None].float()
    pixel = torch.arange(in_size, device=start.device) - start  # (..., 1, in)
    out = torch.arange(out_size, device=start.device)[:, None]
    return filter_weights(pixel, out, length, length / out_size)


def filter_weights(
    pixel: Tensor, out: Tensor, length: Tensor, scale: Tensor, mode: str = "bicubic"
) -> Tensor:
    """Return the weights of a segment's pixels in the pixels of the result.

    Parameters
    ----------
    pixel : Tensor of shape (..., 1, in)
        Positions of the side's pixels relative to the segment. Pixels outside of the segment get
        weight zero.
    out : Tensor of shape (..., out, 1)
        Indices of pixels of the result.
    length, scale : Tensors of shape (..., 1, 1), float32
        Number of pixels of the segment, and number of these pixels per pixel of the result.
    mode : {"bicubic", "bilinear"}, default="bicubic"
        Interpolation filter.

    Returns
    -------
    Tensor of shape (..., out, in), float32
        Each row sums to 1.
    """
    stretch = scale.clamp(min=1.0)  # antialias: the filter widens when the segment shrinks
    centre = (out + 0.5) * scale
    weights = _KERNELS[mode]((pixel + 0.5 - centre) / stretch)
    weights = torch.where((pixel >= 0) & (pixel < length), weights, 0.0)
    return weights / weights.sum(dim=-1, keepdim=True)


def _crop_stack(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return crops (V, B, c, size, size) of images (B, c, h, w), by matrix products."""
    height, width = images.shape[-2:]
    top, left, tall, wide = to_device(boxes, images.device).unbind(-1)  # each (V, B)
    rows = resize_weights(top, tall, height, size)  # (V, B, size, h)
    columns = resize_weights(left, wide, width, size)  # (V, B, size, w)
    views, batch, channels = *top.shape, images.shape[1]
    # one product per image for all its views, with the channels side by side
    lines = to_unit(images).transpose(1, 2).reshape(batch, height, channels * width)
    tall_crops = rows.transpose(0, 1).reshape(batch, views * size, height) @ lines
    tall_crops = tall_crops.view(batch * views, size * channels, width)
    crops = tall_crops @ columns.transpose(0, 1).reshape(batch * views, size, width).mT
    return crops.view(batch, views, size, channels, size).permute(1, 0, 3, 2, 4)


def crop_resize(
    images: Tensor, boxes: Tensor, size: int, *, buffers: BufferPool | None = None
) -> Tensor:
    """Crop every image V times and resize the crops to (size, size).

    Parameters
    ----------
    images : Tensor of shape (B, c, h, w)
        Pixels of uint8, uint16 or float in [0, 1].
    boxes : Tensor of shape (V, B, 4), int64
        Top, left, height and width of each crop, inside its image.
    size : int
        Side of the resized crops, in pixels.
    buffers : BufferPool, optional
        Memory for a result of uint8.

    Returns
    -------
    Tensor of shape (V, B, c, size, size)
        Crops of float32 in [0, 1]. Large uint8 images on a CPU give uint8, rounded as in Pillow.
    """
    if max(images.shape[-2:]) <= _MATRIX_LIMIT:
        return _crop_stack(images, boxes, size).clamp_(0, 1)
    # torch resizes fastest if the channels lie side by side
    shape = (*boxes.shape[:2], size, size, images.shape[1])
    keeps = images.dtype == torch.uint8 and images.device.type == "cpu"  # only CPUs resize uint8
    if keeps:
        crops = (buffers or BufferPool()).take(*shape)
    else:
        crops = torch.empty(shape, device=images.device)
    into = iter(crops.movedim(-1, 2).flatten(0, 1).unsqueeze(1).unbind())
    each = [image.movedim(0, -1)[None].movedim(-1, 1) for image in images]
    for in_view in boxes.tolist():
        for image, (top, left, height, width) in zip(each, in_view, strict=True):
            part = image[:, :, top : top + height, left : left + width]
            part = part if keeps else to_unit(part)
            resized = F.interpolate(part, size=(size, size), mode="bicubic", antialias=True)
            next(into).copy_(resized if keeps else resized.clamp_(0, 1))
    return crops.movedim(-1, 2)


def trim_length(images: Tensor) -> Tensor:
    """Trim images (B, c, h, w) longer than 3 : 1, whose ends a crop of the centre never uses.

    Both ends lose the same whole number of short sides, so the pixels of a resize do not move.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    top, left = (short * max(0, (side - 3 * short) // (2 * short)) for side in (height, width))
    return images[..., top : height - top, left : width - left]


def resize_short_side(images: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """Resize images (B, c, h, w) to ``size`` pixels on the short side, as float in [0, 1].

    ``mode`` is "bicubic" or "bilinear", and both are antialiased.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    shape = [max(1, round(height * size / short)), max(1, round(width * size / short))]
    resized = F.interpolate(to_unit(images), size=shape, mode=mode, antialias=True)
    return resized.clamp_(0, 1)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """Crop the central (size, size) pixels of images (..., h, w) that are at least this large."""
    height, width = images.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]
