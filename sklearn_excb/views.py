"""Multi-crop: global and local views of a batch of images. [METHOD.md 6]

What is done to a view is drawn first, for the whole batch, as a pure function of (seed, epoch,
row, view, operation); then it is done, batched, on the device of the model. The order is that of
the recipe: crop, flip, jitter, gray, blur, solarise, normalise.

Axes: ``V`` views of one kind, ``B`` images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb import color
from sklearn_excb.draws import uniforms
from sklearn_excb.resampling import to_unit
from sklearn_excb.schedules import cosine

FloatArray = npt.NDArray[np.float64]

_ATTEMPTS = 10  # of a random crop, before it falls back to the centre
_BLOCK_PIXELS = 224**2  # that a CPU works on at a time: they stay in its cache


class Operation(IntEnum):
    """What is drawn: the last word of a draw's counter."""

    FLIP = 0
    JITTER = 1
    JITTER_FACTORS = 2
    JITTER_ORDER = 3
    GRAY = 4
    BLUR = 5
    SOLARIZE = 6
    CROP = 16  # and one more for each further attempt


@dataclass(frozen=True)
class ViewKind:
    """The views of one resolution.

    Attributes
    ----------
    size : int
        Side in pixels.
    scale : tuple of two float
        Range of the crop's share of the image area.
    blur : tuple of float
        Probability of blur, one a view; its length is the number of views.
    solarize : tuple of float
        Probability of solarisation, one a view.
    first : int
        Index of the first view, so that no two views share a draw.
    """

    size: int
    scale: tuple[float, float]
    blur: tuple[float, ...]
    solarize: tuple[float, ...]
    first: int = 0

    def only(self, view: int) -> ViewKind:
        """One of the views, with the draws it has among the others."""
        blur, solarize = (self.blur[view],), (self.solarize[view],)
        return replace(self, blur=blur, solarize=solarize, first=self.first + view)


@dataclass(frozen=True)
class ViewRecipe:
    """Multi-crop as published, in proportion to the size of the images.

    Attributes
    ----------
    global_size, local_size : int
        Sides of the views in pixels.
    n_global, n_local : int
        G and L.
    smallest_global : tuple of two float
        Smallest share of the area of a global crop, at the start and at the end of the run;
        between, a cosine over the epochs. Local crops reach up to it.
    smallest_local : float
        Smallest share of the area of a local crop.
    mean, std : tuples of float
        Of each channel, for the normalisation.
    flip : float
        Probability of a horizontal flip.
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

    @property
    def side_for_crops(self) -> int:
        """Pixels that a square image needs so that no crop is enlarged: 3 : 4 is the narrowest."""
        smallest = min(self.smallest_global)
        whole = self.global_size / math.sqrt(smallest)
        local = self.local_size / math.sqrt(min(self.smallest_local, smallest))
        return math.ceil(math.sqrt(4 / 3) * max(whole, local if self.n_local else 0))

    def kinds(self, progress: float) -> list[ViewKind]:
        """Global and, if there are any, local views at a share ``progress`` of the run."""
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
    """What is done to each crop of a batch; arrays of shape (V, B) or (V, B, ...), or (V * B,)."""

    flip: npt.NDArray[np.bool_]
    jitter: npt.NDArray[np.bool_]
    jitter_factors: FloatArray
    jitter_order: npt.NDArray[np.int64]
    gray: npt.NDArray[np.bool_]
    blur: npt.NDArray[np.bool_]
    blur_sigma: FloatArray
    solarize: npt.NDArray[np.bool_]

    def flattened(self) -> ViewParameters:
        """The crops in one axis, those of a view together."""
        return self._each(lambda array: array.reshape(-1, *array.shape[2:]))

    def part(self, rows: npt.NDArray[np.int64]) -> ViewParameters:
        """Those of some crops."""
        return self._each(lambda array: array[rows])

    def _each(self, function: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> ViewParameters:
        return ViewParameters(*(function(getattr(self, field.name)) for field in fields(self)))


def _between(low: float, high: float, u: FloatArray) -> FloatArray:
    return low + (high - low) * u


def crop_box(
    u: FloatArray, height: FloatArray, width: FloatArray, scale: tuple[float, float]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """One attempt at a random resized crop, as torchvision's RandomResizedCrop makes it.

    Parameters
    ----------
    u : ndarray of shape (..., 4)
        Uniforms in [0, 1) for the area, the aspect ratio (log-uniform, 3/4 to 4/3), top and left.
    height, width : ndarrays of shape (...)
        Of the images, in pixels.
    scale : tuple of two float
        Range of the share of the area.

    Returns
    -------
    boxes : ndarray of shape (..., 4), int64
        Top, left, height, width.
    fits : ndarray of shape (...), bool
        Whether the box lies inside the image.
    """
    area = height * width * _between(*scale, u[..., 0])
    ratio = np.exp(_between(np.log(3 / 4), np.log(4 / 3), u[..., 1]))
    wide, tall = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    top = np.floor(u[..., 2] * (height - tall + 1))
    left = np.floor(u[..., 3] * (width - wide + 1))
    return np.stack([top, left, tall, wide], axis=-1).astype(np.int64), fits


def centre_box(height: FloatArray, width: FloatArray) -> npt.NDArray[np.int64]:
    """Largest central box with an aspect ratio within 3/4 and 4/3."""
    wide = np.minimum(width, np.rint(height * 4 / 3))
    tall = np.minimum(height, np.rint(width * 4 / 3))
    top, left = (height - tall) // 2, (width - wide) // 2
    return np.stack([top, left, tall, wide], axis=-1).astype(np.int64)


def draw_attempts(seed: int, epoch: int, rows: npt.NDArray[np.int64], kind: ViewKind) -> FloatArray:
    """Draws of every attempt at the crops of a batch, (attempts, V, B, 4), for :func:`fit_boxes`.

    ``rows`` (B,) are the images' places in the data set. Nothing about the images is needed: they
    may not be open yet.
    """
    view = kind.first + np.arange(len(kind.blur))[:, None]
    operation = Operation.CROP + np.arange(_ATTEMPTS)[:, None, None]
    return uniforms(seed, epoch, rows, view, operation)


def fit_boxes(
    attempts: FloatArray, shapes: npt.NDArray[np.int64], scale: tuple[float, float]
) -> npt.NDArray[np.int64]:
    """Crops of a batch, (V, B, 4): the first attempt that fits, or else the centre.

    ``attempts`` (attempts, V, B, 4) are drawn, ``shapes`` (B, 2) are heights and widths.
    """
    height, width = shapes.astype(np.float64).T
    boxes, fits = crop_box(attempts, height, width, scale)
    chosen = np.take_along_axis(boxes, fits.argmax(axis=0)[None, ..., None], axis=0)[0]
    found = np.expand_dims(fits.any(axis=0), -1)
    return np.where(found, chosen, centre_box(height, width))


def draw_views(
    seed: int,
    epoch: int,
    rows: npt.NDArray[np.int64],
    kind: ViewKind,
    recipe: ViewRecipe,
) -> ViewParameters:
    """Draw what is done to the crops of one kind; a pure function of its arguments."""
    view = kind.first + np.arange(len(kind.blur))[:, None]

    def draw(operation: Operation) -> FloatArray:  # (V, B, 4)
        return uniforms(seed, epoch, rows, view, operation)

    strength = np.array(recipe.jitter_strength)
    factors = strength * (2 * draw(Operation.JITTER_FACTORS) - 1)
    factors[..., :3] += 1  # factors around 1; the hue is a shift around 0
    blur, sigma = draw(Operation.BLUR)[..., 0], draw(Operation.BLUR)[..., 1]
    return ViewParameters(
        flip=draw(Operation.FLIP)[..., 0] < recipe.flip,
        jitter=draw(Operation.JITTER)[..., 0] < recipe.jitter,
        jitter_factors=factors,
        jitter_order=draw(Operation.JITTER_ORDER).argsort(axis=-1, kind="stable"),
        gray=draw(Operation.GRAY)[..., 0] < recipe.gray,
        blur=blur < np.array(kind.blur)[:, None],
        blur_sigma=_between(0.1, 2.0, sigma) * blur_scale(kind.size),
        solarize=draw(Operation.SOLARIZE)[..., 0] < np.array(kind.solarize)[:, None],
    )


def blur_scale(size: int) -> float:
    """Blur in proportion to the view: 1 at 224 pixels, for which sigma .1 to 2 is published."""
    return size / 224


def finish_views(
    crops: Tensor,
    parameters: ViewParameters,
    size: int,
    recipe: ViewRecipe,
) -> Tensor:
    """Do to each crop what was drawn.

    Parameters
    ----------
    crops : Tensor of shape (V, B, c, size, size)
        uint8 or float in [0, 1].
    parameters : ViewParameters
        Of shape (V, B).
    size : int
        Side of the views in pixels.
    recipe : ViewRecipe
        For the normalisation.

    Returns
    -------
    Tensor of shape (V * B, c, size, size), float32
        Normalised; the images of a view are contiguous.
    """
    crops, parameters = crops.flatten(0, 1), parameters.flattened()
    views = torch.empty(crops.shape, device=crops.device)
    for rows in _blocks(parameters, size, crops.device):
        chosen = torch.from_numpy(rows).to(crops.device)
        some = crops.index_select(0, chosen)
        views.index_copy_(0, chosen, _finish(some, parameters.part(rows), size, recipe))
    return views


def _blocks(
    parameters: ViewParameters, size: int, device: torch.device
) -> list[npt.NDArray[np.int64]]:
    """Crops that are worked on together: on a CPU few, else all.

    Where there are enough to fill a block of every order of the jitter, a block has one order.
    """
    rows = np.arange(len(parameters.flip))
    if device.type != "cpu":
        return [rows]
    most = max(1, _BLOCK_PIXELS // size**2)
    if len(rows) < most * math.factorial(len(color.JITTER)):
        return [rows[i : i + most] for i in range(0, len(rows), most)]
    order = parameters.jitter_order @ np.array([64, 16, 4, 1])
    key = np.where(parameters.jitter, order, -1)
    ordered = key.argsort(kind="stable")
    groups = np.split(ordered, np.flatnonzero(np.diff(key[ordered])) + 1)
    return [group[i : i + most] for group in groups for i in range(0, len(group), most)]


def _finish(crops: Tensor, parameters: ViewParameters, size: int, recipe: ViewRecipe) -> Tensor:
    """Do to crops (n, c, size, size) what was drawn for n of them."""
    views = to_unit(crops)
    device, p = views.device, parameters

    def tensor(array: FloatArray) -> Tensor:
        return torch.from_numpy(array.astype(np.float32)).to(device)

    def jitter(some: Tensor, factors: Tensor) -> Tensor:
        return color.jitter(some, factors, p.jitter_order[p.jitter])

    # below a quarter of a pixel, a Gaussian of integer taps is the identity to 3e-4
    radius = max(1, round(4 * blur_scale(size)))
    blur = p.blur & (p.blur_sigma > 0.25)
    views = color.on_some(views, p.flip, lambda some: some.flip(-1))
    views = color.on_some(views, p.jitter, jitter, tensor(p.jitter_factors))
    views = color.on_some(views, p.gray, color.grayscale)
    views = color.on_some(
        views,
        blur,
        lambda some, sigma: color.gaussian_blur(some, sigma, radius),
        tensor(p.blur_sigma),
    )
    views = color.on_some(views, p.solarize, color.solarize)
    return normalize(views, recipe.mean, recipe.std)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel."""
    shape = (1, -1, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)
