"""What came is not what was fitted: errors that say how to pass it."""

from __future__ import annotations

import math
from typing import Any


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
    shape = tuple(getattr(X, "shape", ()))
    wanted = image_shape if n_channels == 1 else (*image_shape, n_channels)
    if shape == image_shape:
        return "A single image needs an axis more: X[None]."
    if shape and shape[-1] == math.prod(wanted):
        of = " x ".join(map(str, wanted))
        return f"If a row is an image of {of}: X.reshape({', '.join(map(str, (-1, *wanted)))})."
    return (
        "A single image needs an axis more, X[None]; rows of pixels have to be images again, "
        f"(n, h, w{', c' if n_channels > 1 else ''}); features are for an estimator that was "
        "fitted on features."
    )


def images_for_rows(X: Any, n_features: int) -> str:
    """Say how images are passed to an estimator that was fitted on 2-D rows (n, n_features)."""
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) > 2 and math.prod(shape[1:]) == n_features:
        return "Make them rows, as they were then: X.reshape(len(X), -1)."
    return f"It takes what it was fitted on, rows (n, {n_features}) of the same features."


def one_image_for_several(X: Any, n_channels: int) -> str:
    """Say how one image is passed that was taken for several gray ones; "" if it was not."""
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) != 3 or n_channels == 1 or shape[0] != n_channels:
        return ""
    move = "permute" if hasattr(X, "permute") else "transpose"
    return f" If X is one image, (c, h, w), pass X.{move}(1, 2, 0)[None]."
