"""Apply the drawn operations to crops, on the device of the crops. [METHOD.md 6]

The operations are batched, or run crop by crop in compiled loops.

Axes: ``V`` views of one kind, ``B`` images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.data.pixels import to_unit
from sklearn_excb.runtime.transfers import to_device
from sklearn_excb.views import color
from sklearn_excb.views.multicrop import FloatArray, ViewParameters, ViewRecipe, blur_scale

_COMPILED_FROM = 64  # px; smaller views never regain the some 15 s that compiling takes
_SHARP = 0.25  # sigma in pixels; below, a Gaussian of integer taps is the identity to 3e-4
_BLOCK_PIXELS = 224**2  # pixels that a CPU processes at a time, few enough for its cache


def _blur_radius(size: int) -> int:
    """Return the radius of the blur kernel: 4 at 224 pixels, for the published kernel of 9."""
    return max(1, round(4 * blur_scale(size)))


def finish_views(
    crops: Tensor, parameters: ViewParameters, recipe: ViewRecipe, *, out: Tensor | None = None
) -> Tensor:
    """Apply the drawn operations to each crop and normalise it.

    Parameters
    ----------
    crops : Tensor of shape (V, B, c, size, size)
        Crops of uint8 or float in [0, 1].
    parameters : ViewParameters
        Drawn operations, arrays of shape (V, B).
    recipe : ViewRecipe
        Recipe with the mean and standard deviation for the normalisation.
    out : Tensor of shape (V, B, c, size, size), float32, optional
        Destination of the views. Each of its crops has to be contiguous, but the crops need not be
        adjacent.

    Returns
    -------
    Tensor of shape (V, B, c, size, size), float32
        Normalised views; ``out`` if it is given.
    """
    views = torch.empty(crops.shape, device=crops.device) if out is None else out
    if crops.device.type == "cpu" and (loops := compiled_loops(recipe)):
        _finish_compiled(loops, crops, parameters, recipe, views)
        return views
    size, n_images = crops.shape[-1], crops.shape[1]
    crops, parameters = crops.flatten(0, 1), parameters.flattened()
    for rows in _blocks(parameters, size, crops.device):
        chosen = to_device(torch.from_numpy(rows), crops.device)
        some = _finish(crops.index_select(0, chosen), parameters.part(rows), size, recipe)
        views[chosen // n_images, chosen % n_images] = some
    return views


def _blocks(
    parameters: ViewParameters, size: int, device: torch.device
) -> list[npt.NDArray[np.int64]]:
    """Group the crops into blocks to process together: small blocks on a CPU, else one block.

    If there are enough crops to fill a block for every order of the jitter, each block holds crops
    of one order.
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
    """Apply n sets of drawn operations to n crops (n, c, size, size)."""
    views = to_unit(crops)
    device, p = views.device, parameters

    def tensor(array: FloatArray) -> Tensor:
        return to_device(torch.from_numpy(array.astype(np.float32)), device)

    def jitter(some: Tensor, factors: Tensor) -> Tensor:
        return color.jitter(some, factors, p.jitter_order[p.jitter])

    blur = p.blur & (p.blur_sigma > _SHARP)
    views = color.on_some(views, p.flip, lambda some: some.flip(-1))
    views = color.on_some(views, p.jitter, jitter, tensor(p.jitter_factors))
    views = color.on_some(views, p.gray, color.grayscale)
    views = color.on_some(
        views,
        blur,
        lambda some, sigma: color.gaussian_blur(some, sigma, _blur_radius(size)),
        tensor(p.blur_sigma),
    )
    views = color.on_some(views, p.solarize, color.solarize)
    return normalize(views, recipe.mean, recipe.std)


def compiled_loops(recipe: ViewRecipe) -> ModuleType | None:
    """Return the module of compiled loops; None without Numba or for views that are too small."""
    return _import_loops() if recipe.global_size >= _COMPILED_FROM else None


@functools.cache
def _import_loops() -> ModuleType | None:
    try:
        from sklearn_excb.views import compiled_color
    except ImportError:  # Numba is optional
        return None
    return compiled_color


def _finish_compiled(
    loops: ModuleType,
    crops: Tensor,
    parameters: ViewParameters,
    recipe: ViewRecipe,
    out: Tensor,
) -> None:
    """Apply the drawn operations to crops on a CPU by the compiled loops."""
    p, size = parameters, crops.shape[-1]
    sigma = np.where(p.blur & (p.blur_sigma > _SHARP), p.blur_sigma, 0.0)
    loops.finish(
        crops.movedim(2, -1).flatten(-2).numpy(),
        p.flip,
        p.jitter,
        p.jitter_factors,
        p.jitter_order,
        p.gray,
        sigma.astype(np.float32),
        _blur_radius(size),
        p.solarize,
        np.array(recipe.mean, np.float32),
        np.array(recipe.std, np.float32),
        np.float32(255 if crops.dtype == torch.uint8 else 1),
        out.numpy(),
    )


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel."""
    statistics = torch.tensor([list(mean), list(std)], dtype=images.dtype)[:, None, :, None, None]
    shift, scale = to_device(statistics, images.device)
    return (images - shift) / scale
