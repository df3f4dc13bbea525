"""Doing to crops what was drawn for them, on the device they are on. [METHOD.md 6]

Batched, or one by one in compiled loops.

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

from sklearn_excb.data.resampling import to_unit
from sklearn_excb.runtime.transfers import to_device
from sklearn_excb.views import color
from sklearn_excb.views.multicrop import FloatArray, ViewParameters, ViewRecipe, blur_scale

_COMPILED_FROM = 64  # px; compiling takes some 15 s, which smaller views do not give back
_SHARP = 0.25  # sigma in pixels; below, a Gaussian of integer taps is the identity to 3e-4
_BLOCK_PIXELS = 224**2  # that a CPU works on at a time: they stay in its cache


def _blur_radius(size: int) -> int:
    """Pixels on each side of the kernel: 4 at 224, for which a kernel of 9 is published."""
    return max(1, round(4 * blur_scale(size)))


def finish_views(
    crops: Tensor, parameters: ViewParameters, recipe: ViewRecipe, *, out: Tensor | None = None
) -> Tensor:
    """Do to each crop what was drawn.

    Parameters
    ----------
    crops : Tensor of shape (V, B, c, size, size)
        uint8 or float in [0, 1].
    parameters : ViewParameters
        Of shape (V, B).
    recipe : ViewRecipe
        For the normalisation.
    out : Tensor of shape (V, B, c, size, size), float32, optional
        Where to write; its crops have to be contiguous, and need not lie side by side.

    Returns
    -------
    Tensor of shape (V, B, c, size, size), float32
        Normalised. ``out``, if it was given.
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
    """What colours crops one by one on a CPU, where Numba is there and compiling is worth it."""
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
    """Do to crops on a CPU what was drawn, by the compiled loops."""
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
