"""Multi-crop: random draws for global and local views of a batch of images. [METHOD.md 6]

This module draws the operations on all views of a batch as a pure function of (seed, epoch, row,
view, operation). Other modules apply them in the order of the recipe: crop (resampling.py), then
flip, jitter, gray, blur, solarise and normalise (augmentation.py).

Axes: ``V`` views of one kind, ``B`` images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sklearn_excb.method.schedules import cosine
from sklearn_excb.runtime.philox import uniforms

FloatArray = npt.NDArray[np.float64]

_ATTEMPTS = 10  # attempts at a random crop before the centre crop is used


class Operation(IntEnum):
    """Drawn decision, which is the last word of the counter of a draw."""

    FLIP = 0
    JITTER = 1
    JITTER_FACTORS = 2
    JITTER_ORDER = 3
    GRAY = 4
    BLUR = 5
    SOLARIZE = 6
    CROP = 16  # each further attempt adds one


@dataclass(frozen=True)
class ViewKind:
    """Views of one resolution.

    Attributes
    ----------
    size : int
        Side of the views in pixels.
    scale : tuple of two float
        Range of the crop's share of the image area.
    blur : tuple of float
        Probability of blur for each view. The length is the number of views.
    solarize : tuple of float
        Probability of solarisation for each view.
    first : int
        Index of the first view, chosen so that no two views share a draw.
    """

    size: int
    scale: tuple[float, float]
    blur: tuple[float, ...]
    solarize: tuple[float, ...]
    first: int = 0

    @property
    def views(self) -> npt.NDArray[np.int64]:
        """Indices of the views, (V,)."""
        return self.first + np.arange(len(self.blur))

    def only(self, view: int) -> ViewKind:
        """Return one of the views, with the same draws as among all views."""
        blur, solarize = (self.blur[view],), (self.solarize[view],)
        return replace(self, blur=blur, solarize=solarize, first=self.first + view)


@dataclass(frozen=True)
class ViewRecipe:
    """Recipe of the published multi-crop, scaled to the size of the images.

    Attributes
    ----------
    global_size, local_size : int
        Sides of the global and local views in pixels.
    n_global, n_local : int
        Numbers of global and local views, G and L.
    smallest_global : tuple of two float
        Smallest area of a global crop as a share of the image, at the start and at the end of the
        run. Between the two, the share follows a cosine over the epochs. It is also the largest
        share of a local crop.
    smallest_local : float
        Smallest area of a local crop as a share of the image.
    mean, std : tuples of float
        Mean and standard deviation of each channel, for the normalisation.
    flip : float
        Probability of a horizontal flip.
    jitter : float
        Probability of colour jitter.
    jitter_strength : tuple of four float
        Largest change of brightness, contrast, saturation and hue.
    gray : float
        Probability of conversion to gray.
    whole_filter : {"bicubic", "bilinear"}
        Filter that resizes whole images for inference.
    """

    global_size: int
    local_size: int
    n_global: int
    n_local: int
    smallest_global: tuple[float, float]
    smallest_local: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: float
    jitter: float = 0.8
    jitter_strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    gray: float = 0.2
    whole_filter: Literal["bicubic", "bilinear"] = "bicubic"

    @property
    def side_for_crops(self) -> int:
        """Side in pixels of a square image in which no crop, at worst 3 : 4, has to be enlarged."""
        smallest = min(self.smallest_global)
        whole = self.global_size / math.sqrt(smallest)
        local = self.local_size / math.sqrt(min(self.smallest_local, smallest))
        return math.ceil(math.sqrt(4 / 3) * max(whole, local if self.n_local else 0))

    def kinds(self, progress: float) -> list[ViewKind]:
        """Return the global and any local views at the fraction ``progress`` of the run."""
        smallest = cosine(*self.smallest_global, progress)
        one_blurred = tuple(0.9 if view % 2 else 0.0 for view in range(self.n_global))
        one_solarized = tuple(0.2 if view % 2 else 0.0 for view in range(self.n_global))
        kinds = [ViewKind(self.global_size, (smallest, 1.0), one_blurred, one_solarized)]
        if self.n_local:
            none = (0.0,) * self.n_local
            scale = (min(self.smallest_local, smallest), smallest)
            kinds.append(ViewKind(self.local_size, scale, none, none, first=self.n_global))
        return kinds


@dataclass(frozen=True)
class ViewParameters:
    """Operations on each crop of a batch, as arrays (V, B), (V, B, ...) or, flattened, (V * B,)."""

    flip: npt.NDArray[np.bool_]
    jitter: npt.NDArray[np.bool_]
    jitter_factors: FloatArray
    jitter_order: npt.NDArray[np.int64]
    gray: npt.NDArray[np.bool_]
    blur: npt.NDArray[np.bool_]
    blur_sigma: FloatArray
    solarize: npt.NDArray[np.bool_]

    def flattened(self) -> ViewParameters:
        """Return the parameters with all crops in one axis, view by view."""
        return self._each(lambda array: array.reshape(-1, *array.shape[2:]))

    def of_images(self, part: slice) -> ViewParameters:
        """Return the parameters of some images, of shape (V, b)."""
        return self._each(lambda array: array[:, part])

    def part(self, rows: npt.NDArray[np.int64]) -> ViewParameters:
        """Return the parameters of some flattened crops."""
        return self._each(lambda array: array[rows])

    def _each(self, function: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> ViewParameters:
        return ViewParameters(*(function(getattr(self, field.name)) for field in fields(self)))


def _between(low: float | FloatArray, high: float | FloatArray, u: FloatArray) -> FloatArray:
    return low + (high - low) * u


def centre_box(height: FloatArray, width: FloatArray) -> npt.NDArray[np.int64]:
    """Return the largest central box with an aspect ratio between 3/4 and 4/3."""
    wide = np.minimum(width, np.rint(height * 4 / 3))
    tall = np.minimum(height, np.rint(width * 4 / 3))
    top, left = (height - tall) // 2, (width - wide) // 2
    return np.stack([top, left, tall, wide], axis=-1).astype(np.int64)


def draw_attempts(
    seed: int, epoch: int, rows: npt.NDArray[np.int64], kinds: Sequence[ViewKind]
) -> FloatArray:
    """Draw attempts at random resized crops, as torchvision's RandomResizedCrop does.

    The draws do not depend on the images, which need not be open yet.

    Parameters
    ----------
    seed, epoch : int
        Seed and epoch that determine the draws.
    rows : ndarray of shape (B,), int64
        Rows of the images in the data set.
    kinds : sequence of ViewKind
        Kinds of views, with V views in total.

    Returns
    -------
    ndarray of shape (attempts, V, B, 4)
        First two entries: height and width as shares of the square root of the image's area. Their
        product is uniform in the range of the kind, and their ratio is log-uniform in 3/4 to 4/3.
        Last two entries: positions of the top and the left edge within the free space, in [0, 1).
        See :func:`fit_boxes`.
    """
    views = np.concatenate([kind.views for kind in kinds])[:, None]
    operation = Operation.CROP + np.arange(_ATTEMPTS)[:, None, None]
    u = uniforms(seed, epoch, rows, views, operation)
    low, high = np.repeat([kind.scale for kind in kinds], [len(kind.blur) for kind in kinds], 0).T
    area = _between(low[:, None], high[:, None], u[..., 0])
    ratio = np.exp(_between(np.log(3 / 4), np.log(4 / 3), u[..., 1]))
    sides = np.sqrt(area / ratio), np.sqrt(area * ratio)
    return np.stack([*sides, u[..., 2], u[..., 3]], axis=-1)


def fit_boxes(attempts: FloatArray, shapes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Choose the crop boxes: the first attempt that fits into the image, or else the centre.

    Parameters
    ----------
    attempts : ndarray of shape (attempts, V, B, 4)
        Attempts from :func:`draw_attempts`.
    shapes : ndarray of shape (B, 2)
        Heights and widths of the images in pixels.

    Returns
    -------
    ndarray of shape (V, B, 4), int64
        Top, left, height and width of each box in pixels.
    """
    sides = np.rint(attempts[..., :2] * np.sqrt(shapes.prod(axis=1))[:, None])
    fits = ((sides > 0) & (sides <= shapes)).all(axis=-1)  # (attempts, V, B)
    first = fits.argmax(axis=0)
    view, image = np.ogrid[: first.shape[0], : first.shape[1]]
    chosen = sides[first, view, image]  # (V, B, 2)
    corner = np.floor(attempts[first, view, image, 2:] * (shapes - chosen + 1))
    boxes = np.concatenate([corner, chosen], axis=-1).astype(np.int64)
    found = fits[first, view, image]
    if found.all():
        return boxes
    return np.where(found[..., None], boxes, centre_box(*shapes.T.astype(np.float64)))


def draw_views(
    seed: int,
    epoch: int,
    rows: npt.NDArray[np.int64],
    kind: ViewKind,
    recipe: ViewRecipe,
) -> ViewParameters:
    """Draw the operations on the crops of one kind, a pure function of the arguments."""
    operation = np.arange(Operation.SOLARIZE + 1)[:, None, None]
    u = uniforms(seed, epoch, rows, kind.views[:, None], operation)  # (operations, V, B, 4)
    strength = np.array(recipe.jitter_strength)
    factors = strength * (2 * u[Operation.JITTER_FACTORS] - 1)
    factors[..., :3] += 1  # factors around 1; the hue is a shift around 0
    blur, sigma = u[Operation.BLUR, ..., 0], u[Operation.BLUR, ..., 1]
    return ViewParameters(
        flip=u[Operation.FLIP, ..., 0] < recipe.flip,
        jitter=u[Operation.JITTER, ..., 0] < recipe.jitter,
        jitter_factors=factors,
        jitter_order=u[Operation.JITTER_ORDER].argsort(axis=-1, kind="stable"),
        gray=u[Operation.GRAY, ..., 0] < recipe.gray,
        blur=blur < np.array(kind.blur)[:, None],
        blur_sigma=_between(0.1, 2.0, sigma) * blur_scale(kind.size),
        solarize=u[Operation.SOLARIZE, ..., 0] < np.array(kind.solarize)[:, None],
    )


def blur_scale(size: int) -> float:
    """Return the scale of the blur, in proportion to the size of the view.

    The scale is 1 at 224 pixels, the size for which the paper gives sigma .1 to 2.
    """
    return size / 224
