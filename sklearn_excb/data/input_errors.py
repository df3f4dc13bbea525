"""What came is not a collection, or not what was fitted: errors that say how to pass it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sklearn_excb.exceptions import ImageError

_CHANNELS = (1, 3, 4)  # of an image by itself
_LEAST_HEIGHT = 8  # of one; fewer are narrow gray images


def check_several(X: Any, width: int | None = None) -> None:
    """Refuse one image (h, w, c), or a tensor (c, h, w): it would be several gray ones.

    Parameters
    ----------
    X : Any
        What came, if not rows.
    width : int, optional
        Of the images that were fitted: those of X may be as narrow. None for a fit.

    Raises
    ------
    ImageError
        If X looks like one.
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
        f"X of shape {shape} looks like one image, and would be {n} gray ones of {height} x "
        f"{across} pixels. Pass {how}, or X[..., None] if they are {n} gray ones."
    )


def _shape(X: Any) -> tuple[int, ...]:
    return tuple(getattr(X, "shape", ()))


def rows_for_images(X: Any, image_shape: tuple[int, int], n_channels: int) -> str:
    """Say how 2-D rows, or one image, are passed to an estimator that was fitted on images.

    Parameters
    ----------
    X : array-like
        Of at most two dimensions.
    image_shape : tuple of int
        Height and width of the images that were fitted.
    n_channels : int
        Theirs.
    """
    shape = _shape(X)
    array = "X" if hasattr(X, "reshape") else "np.asarray(X)"  # a data frame, a list
    wanted = image_shape if n_channels == 1 else (*image_shape, n_channels)
    if shape == image_shape:
        return f"A single image needs an axis more: {array}[None]."
    if shape and shape[-1] == math.prod(wanted):
        of = " x ".join(map(str, wanted))
        sizes = ", ".join(map(str, (-1, *wanted)))
        return f"If a row is an image of {of}: {array}.reshape({sizes})."
    return (
        f"A single image needs an axis more, {array}[None]; rows of pixels have to be images "
        f"again, (n, h, w{', c' if n_channels > 1 else ''}); features are for an estimator that "
        "was fitted on features."
    )


def images_for_rows(X: Any, n_features: int) -> str:
    """Say how images are passed to an estimator that was fitted on 2-D rows (n, n_features)."""
    shape = _shape(X)
    if len(shape) > 2 and math.prod(shape[1:]) == n_features:
        return "Make them rows, as they were then: X.reshape(len(X), -1)."
    return f"It takes what it was fitted on, rows (n, {n_features}) of the same features."


def one_image_for_several(X: Any, n_channels: int) -> str:
    """Say how one image (c, h, w) is passed that was taken for several; "" if it was not."""
    shape = _shape(X)
    if len(shape) != 3 or n_channels == 1 or shape[0] != n_channels:
        return ""
    move = "permute" if isinstance(X, Tensor) else "transpose"
    return f" If X is one image, (c, h, w), pass X.{move}(1, 2, 0)[None]."
