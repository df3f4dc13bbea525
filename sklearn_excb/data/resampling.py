"""Crop and resize with antialiased bicubic filters, batched: two matrix products a crop.

A bicubic resize is linear and separable, so the crop ``[top, top + height) x [left, left +
width)`` of an image, resized to (size, size), is ``W_y @ image @ W_x.T`` with one small matrix a
side. Each sample has its own crop, the whole batch is two batched products, on any device. The
filter is that of Pillow and of ``torchvision.transforms.v2.functional.resize(antialias=True)``.

Boxes are integer (top, left, height, width) in pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_excb.runtime.buffers import BufferPool
from sklearn_excb.runtime.transfers import to_device

_A = -0.5  # Keys' cubic convolution, as in Pillow
_MATRIX_LIMIT = 96  # sides up to which the matrix products beat one resize a crop on a CPU


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel, zero beyond 2."""
    x = x.abs()
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _triangle(x: Tensor) -> Tensor:
    """The kernel of linear interpolation, zero beyond 1."""
    return (1 - x.abs()).clamp(min=0)


_KERNELS = {"bicubic": _cubic, "bilinear": _triangle}


def resize_weights(start: Tensor, length: Tensor, in_size: int, out_size: int) -> Tensor:
    """Matrices that resize the segment ``[start, start + length)`` of a side to ``out_size``.

    Parameters
    ----------
    start, length : Tensors of the same shape (...)
        First pixel and number of pixels of each segment; integers.
    in_size, out_size : int
        Pixels of the whole side, and of the result.

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
    """Weights of the pixels of a segment in some pixels of the result.

    Parameters
    ----------
    pixel : Tensor of shape (..., 1, in)
        Places of the side's pixels in the segment; those outside of it get no weight.
    out : Tensor of shape (..., out, 1)
        Which pixels of the result.
    length, scale : Tensors of shape (..., 1, 1), float32
        Pixels of the segment, and how many of them are one of the result.
    mode : {"bicubic", "bilinear"}, default="bicubic"
        The filter.

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


def to_unit(images: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1]: uint8 / 255, uint16 / 65535, floats as they are."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    if images.dtype == torch.uint16:
        return images.to(torch.int32).float() / 65535
    return images.float()


def _crop_stack(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crops (V, B, c, size, size) of images (B, c, h, w) that share one size."""
    height, width = images.shape[-2:]
    top, left, tall, wide = to_device(boxes, images.device).unbind(-1)  # each (V, B)
    rows = resize_weights(top, tall, height, size)  # (V, B, size, h)
    columns = resize_weights(left, wide, width, size)  # (V, B, size, w)
    views, batch, channels = *top.shape, images.shape[1]
    # one product an image for all its views, the channels lying side by side
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
        uint8, uint16 or float in [0, 1].
    boxes : Tensor of shape (V, B, 4), int64
        Top, left, height, width of each crop, inside its image.
    size : int
        Side of the result in pixels.
    buffers : BufferPool, optional
        Where to write, if the result is of uint8.

    Returns
    -------
    Tensor of shape (V, B, c, size, size)
        float32 in [0, 1]; on a CPU, of large uint8 images, uint8, as Pillow rounds them.
    """
    if max(images.shape[-2:]) <= _MATRIX_LIMIT:
        return _crop_stack(images, boxes, size).clamp_(0, 1)
    # channels side by side: torch resizes these the fastest
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
    """Leave out of images (B, c, h, w) longer than 3 : 1 what a crop of the centre never sees.

    As many whole short sides are cut from both ends, so that the pixels of a resize do not move.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    top, left = (short * max(0, (side - 3 * short) // (2 * short)) for side in (height, width))
    return images[..., top : height - top, left : width - left]


def resize_short_side(images: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """Resize images (B, c, h, w) so that the short side has ``size`` pixels; float in [0, 1].

    ``mode`` is "bicubic" or "bilinear"; both are antialiased.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    shape = [max(1, round(height * size / short)), max(1, round(width * size / short))]
    resized = F.interpolate(to_unit(images), size=shape, mode=mode, antialias=True)
    return resized.clamp_(0, 1)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """Middle (size, size) of images (..., h, w) that have at least that many pixels a side."""
    height, width = images.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]
