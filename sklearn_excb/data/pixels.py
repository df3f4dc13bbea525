"""Convert a PIL image, an array or a tensor to a tensor (c, h, w), and refuse other input."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.exceptions import ImageError

_BLOCK = 1 << 24  # pixels checked at a time
_LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue, as in torchvision
_MOST_CHANNELS = 16  # a larger number is taken for the width of a channels-first image


def is_picture(image: Any) -> bool:
    """Return whether it is a PIL image, judged by its attributes, so that PIL is not imported."""
    return hasattr(image, "convert") and hasattr(image, "mode")


def is_gray(picture: Any) -> bool:
    """Return whether a PIL image has no colour."""
    return picture.mode in ("1", "L", "LA", "La", "F") or picture.mode.startswith("I")


def is_deep(picture: Any) -> bool:
    """Return whether a PIL image has integers of more than 8 bits."""
    return picture.mode.startswith("I")


def upright_shape(picture: Any) -> tuple[int, int]:
    """Return height and width of a PIL image once it is turned as its EXIF block says."""
    from sklearn_excb.evaluation import maps

    height, width = picture.height, picture.width
    return (width, height) if maps.pictures.picture_orientation(picture) >= 5 else (height, width)


def image_tensor(image: Any, n_channels: int | None) -> Tensor:
    """Convert an image to a tensor (c, h, w) of uint8, uint16 or float in [0, 1].

    Parameters
    ----------
    image : PIL image, array or Tensor
        Arrays are (h, w) or (h, w, c). A tensor of three dimensions whose first is 1, 3 or 4 and
        whose last is not is taken as (c, h, w), the convention of torchvision.
    n_channels : int or None
        1 or 3 converts to gray or colour. None keeps the channels of arrays and tensors, and
        reads PIL images in gray if they are gray and in colour otherwise.

    Raises
    ------
    ImageError
        If ``image`` is not an image.
    """
    if is_picture(image):
        if n_channels not in (None, 1, 3):
            raise ImageError(f"files and PIL images need n_channels=1 or 3, not {n_channels}.")
        from sklearn_excb.evaluation import maps

        array = maps.pictures.picture_pixels(image)
    elif isinstance(image, Tensor):
        array = tensor_array(image)
        if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
            array = array.transpose(1, 2, 0)
    else:
        if np.ma.is_masked(image):
            raise ImageError("some of its pixels are masked. Pass image.filled(value).")
        try:
            array = np.asarray(image)
        except (TypeError, ValueError):
            raise ImageError(
                "it does not become an array: its rows differ in length, or hold lists themselves."
            ) from None
        if array.ndim == 0 or array.dtype.kind not in "biufc":
            raise ImageError(
                f"an item of type {type(image).__name__} is not an image. Pass paths, PIL images, "
                "encoded images, or arrays of numbers."
            )
    if array.ndim not in (2, 3) or 0 in array.shape:
        hint = " Pass vectors as one array: np.stack(list(X))." if array.ndim == 1 else ""
        raise ImageError(
            f"an array of shape {array.shape} is not an image (h, w) or (h, w, c).{hint}"
        )
    batch = check_pixels(check_layout(array[None], n_channels))
    tensor = channels_first(batch)[0]
    if n_channels == 3 and len(tensor) == 1:
        return tensor.expand(3, -1, -1)
    if n_channels == 1 and len(tensor) == 3:
        return to_gray(to_unit(tensor[None]))[0]
    return tensor


def to_unit(images: Tensor) -> Tensor:
    """Convert pixels to float32 in [0, 1]: uint8 / 255, uint16 / 65535, floats unchanged."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    if images.dtype == torch.uint16:
        return images.to(torch.int32).float() / 65535
    return images.float()


def to_gray(images: Tensor) -> Tensor:
    """Convert images to gray (n, 1, h, w): luma of three channels, mean of any other number."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    gray = _LUMA[0] * red
    return gray.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def tensor_array(tensor: Tensor) -> npt.NDArray[Any]:
    """Convert a tensor on any device to an array; float types that NumPy lacks become float32.

    Raises
    ------
    ValueError
        If the tensor has no plain values; see :func:`check_dense`.
    """
    check_dense(tensor)
    tensor = tensor.detach().cpu()
    in_numpy = tensor.dtype in (torch.float16, torch.float32, torch.float64)
    if tensor.is_floating_point() and not in_numpy:
        tensor = tensor.float()
    return tensor.resolve_conj().resolve_neg().numpy()


def check_dense(tensor: Tensor) -> None:
    """Refuse a tensor that is sparse, nested or quantized, or that has no values.

    Raises
    ------
    ValueError
        The message says how to convert the tensor.
    """
    if tensor.is_meta:
        raise ValueError('The tensor is on the device "meta", where tensors have no values.')
    if tensor.is_nested:
        raise ValueError("The tensor is nested. Pass its parts as a list: [*X.unbind()].")
    if tensor.is_quantized:
        raise ValueError("The tensor is quantized. Pass X.dequantize().")
    if tensor.layout != torch.strided:
        raise ValueError("The tensor is sparse. Pass X.to_dense().")


def channels_first(batch: npt.NDArray[Any]) -> Tensor:
    """Convert an array (B, h, w) or (B, h, w, c) to a tensor (B, c, h, w) in a dtype of torch."""
    if np.issubdtype(batch.dtype, np.floating):
        batch = batch.astype(np.float32, copy=False)
    batch = np.require(
        batch.astype(batch.dtype.newbyteorder("="), copy=False), requirements=["C", "W"]
    )
    return torch.from_numpy(batch[..., None] if batch.ndim == 3 else batch).permute(0, 3, 1, 2)


def check_layout(array: npt.NDArray[Any], n_channels: int | None) -> npt.NDArray[Any]:
    """Refuse an array that is not (n, h, w) or (n, h, w, c).

    Raises
    ------
    ImageError
        If the array is empty, has other dimensions, or looks channels-first.
    """
    if 0 in array.shape:
        raise ImageError(f"X of shape {array.shape} is empty. Pass at least one image.")
    if array.ndim not in (3, 4):
        raise ImageError(
            f"X of shape {array.shape} is neither a set of images, (n, h, w) or (n, h, w, c), nor "
            "2-D rows (n, d)."
        )
    channels = array.shape[3] if array.ndim == 4 else 1
    first = channels > 4 and array.shape[1] in (1, 3)  # small images, such as (n, 3, 16, 16)
    if (first or channels > _MOST_CHANNELS) and channels != n_channels:
        raise ImageError(
            f"X of shape {array.shape} looks channels-first, or has {array.shape[3]} channels. "
            "Pass channels last, (n, h, w, c), by X.transpose(0, 2, 3, 1) for an array or "
            f"X.permute(0, 2, 3, 1) for a tensor, or set n_channels={array.shape[3]}."
        )
    return array


def check_pixels(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Refuse pixels that are not uint8, uint16, bool, or floats in [0, 1].

    Raises
    ------
    ImageError
        If the type or the range of the pixels is wrong. The message says how to rescale them.
    """
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind == "u" and array.dtype.itemsize <= 2:
        return array
    if kind not in "fiu":
        raise ImageError(
            f"Pixels of type {array.dtype} cannot be used. Pass uint8, uint16 or floats in [0, 1]."
        )
    low, high = _range(array)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(
            "X contains NaN or infinite pixels. Replace them with np.nan_to_num(X), or leave those "
            "images out."
        )
    if low < 0 or high > 1 or kind != "f":
        if low < 0:
            hint = "Shift and scale them: (X - X.min()) / (X.max() - X.min())."
        elif high <= 255 and kind != "f":
            hint = "Pass X.astype('uint8') if 255 is white, or X / X.max()."
        else:
            hint = f"Divide all images by the value of white, such as their maximum: X / {high:g}."
        raise ImageError(
            f"Pixels of type {array.dtype} run from {low:g} to {high:g}, but have to be uint8, "
            f"uint16 or floats in [0, 1]. {hint}"
        )
    return array


def _range(array: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the smallest and the largest pixel, or NaN if one is NaN, block by block."""
    step = max(1, _BLOCK // max(1, array[0].size))
    blocks = [array[i : i + step] for i in range(0, len(array), step)]
    lows, highs = [float(b.min()) for b in blocks], [float(b.max()) for b in blocks]
    return float(np.min(lows)), float(np.max(highs))
