"""Errors and hints for an X that is not a collection, or does not match the fitted data."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from itertools import islice
from typing import Any

from torch import Tensor

from sklearn_excb.data.columns import is_missing, is_path
from sklearn_excb.data.folders import looks_like_picture
from sklearn_excb.data.pixels import is_picture
from sklearn_excb.exceptions import ImageError

_CHANNELS = (1, 3, 4)  # numbers of channels that a single image may have
_LONGEST_PATH = 4096  # bytes
_LEAST_HEIGHT = 8  # of a single image; a smaller array is taken for narrow gray images


def check_several(X: Any, width: int | None = None) -> None:
    """Refuse a single image (h, w, c) or tensor (c, h, w), which would count as many gray images.

    Parameters
    ----------
    X : Any
        Input that is not 2-D rows.
    width : int, optional
        Width of the fitted images. An X of this width is accepted. None for a fit.

    Raises
    ------
    ImageError
        If X looks like a single image.
    """
    shape = _shape(X)
    if len(shape) != 3 or shape[2] == width:
        return
    n, height, across = shape
    if across in _CHANNELS and n >= _LEAST_HEIGHT:
        how = "X[None] for one image"
    elif width is None and isinstance(X, Tensor) and n in _CHANNELS[1:]:
        how = "X.permute(1, 2, 0)[None] for one image"
    else:
        return
    raise ImageError(
        f"X of shape {shape} looks like one image, but would be read as {n} gray images of "
        f"{height} x {across} pixels. Pass {how}, or X[..., None] for {n} gray images."
    )


def _shape(X: Any) -> tuple[int, ...]:
    return tuple(getattr(X, "shape", ()))


def rows_for_images(X: Any, image_shape: tuple[int, int], n_channels: int) -> str:
    """Say how to pass 2-D rows or one image to an estimator that was fitted on images.

    Parameters
    ----------
    X : array-like
        Array with at most two dimensions.
    image_shape : tuple of int
        Height and width of the fitted images.
    n_channels : int
        Number of channels of the fitted images.
    """
    shape = _shape(X)
    array = "X" if hasattr(X, "reshape") else "np.asarray(X)"  # a data frame, a list
    wanted = image_shape if n_channels == 1 else (*image_shape, n_channels)
    if shape == image_shape:
        return f"If X is a single image, pass {array}[None]."
    if shape and shape[-1] == math.prod(wanted):
        of = " x ".join(map(str, wanted))
        sizes = ", ".join(map(str, (-1, *wanted)))
        return f"If each row holds an image of {of}, pass {array}.reshape({sizes})."
    return (
        f"If X is a single image, pass {array}[None]. Reshape rows of pixels to images "
        f"(n, h, w{', c' if n_channels > 1 else ''}). Features need an estimator that was fitted "
        "on features."
    )


def images_for_rows(X: Any, n_features: int) -> str:
    """Say how to pass images to an estimator that was fitted on 2-D rows (n, n_features)."""
    shape = _shape(X)
    if len(shape) > 2 and math.prod(shape[1:]) == n_features:
        return "Pass them as rows, as in the fit: X.reshape(len(X), -1)."
    return f"Pass rows (n, {n_features}) with the features of the fit."


def one_image_for_several(X: Any, n_channels: int) -> str:
    """Say how to pass one image (c, h, w) that was taken for several; "" if X is not one."""
    shape = _shape(X)
    if len(shape) != 3 or n_channels == 1 or shape[0] != n_channels:
        return ""
    move = "permute" if isinstance(X, Tensor) else "transpose"
    return f" If X is one image, (c, h, w), pass X.{move}(1, 2, 0)[None]."


def for_dict(X: Mapping[Any, Any]) -> str:
    """Say how to pass a dict of images by name, or of collections (splits, images and labels)."""
    first = next(iter(X))
    one = X[first]
    images = is_path(one) or is_picture(one) or getattr(one, "ndim", 0) in (2, 3)
    entries = ", ".join(map(repr, islice(X, 3))) + (", ..." if len(X) > 3 else "")
    how = "its values as a list, [*X.values()]" if images else f"one of its values, X[{first!r}]"
    return f"X is a dict ({entries}), not a collection of images. Pass {how}."


def for_rows(X: Any) -> str:
    """Say which row keeps a list from being an array (n, d); "" if none does."""
    lengths: dict[int, int] = {}
    for place, row in enumerate(X if isinstance(X, (list, tuple)) else ()):
        if is_missing(row):
            return f"Row {place} of X is {row}, a missing value. Leave out such rows."
        lengths.setdefault(len(row) if hasattr(row, "__len__") else 1, place)
    if len(lengths) < 2:
        return ""
    (first, _), (other, place), *_ = lengths.items()
    return f"Row {place} of X has {other} values, but row 0 has {first}. Pass rows of one length."


def looks_like_path(content: bytes) -> bool:
    """Return whether bytes that are no image are probably a path that was encoded."""
    name = os.fsdecode(content[:_LONGEST_PATH])
    return len(content) < _LONGEST_PATH and (looks_like_picture(name) or os.path.exists(name))
