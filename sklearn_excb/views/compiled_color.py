"""Colour operations of views as loops over the pixels of a crop, compiled by Numba.

The loops compute what :func:`sklearn_excb.views.augmentation.finish_views` and
:mod:`sklearn_excb.views.color` do with tensors. A crop stays in the processor's cache, and the
loops do not hold the interpreter's lock. Numba is optional (the extra ``fast``). The first call
compiles the loops, which takes some fifteen seconds, and caches the result.

Axes: ``c`` channels, ``p`` the pixels of a crop, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)  # luma weights
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_WHITE, _HALF = np.float32(255), np.float32(128 / 255)
_SIXTH, _TINY = np.float32(1 / 6), np.finfo(np.float32).tiny


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that releases the interpreter's lock and may reorder sums."""
    options: dict[str, Any] = {
        "nogil": True,
        "fastmath": {"contract", "reassoc", "nsz"},
        "error_model": "numpy",
    }
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache
        return njit(**options)(function)


@_compiled
def _unit(value):
    return min(max(value, _ZERO), _ONE)


@_compiled
def _read(lines, white, flip, image):
    """Read pixels as float in [0, 1], mirrored if ``flip`` is set."""
    channels, side = len(image), len(lines)
    scale = _ONE / white
    for y in range(side):
        line = lines[y]  # all channels of a pixel side by side
        for c in range(channels):
            into = image[c, y * side : (y + 1) * side]
            if flip:
                for x in range(side):
                    into[side - 1 - x] = np.float32(line[channels * x + c]) * scale
            else:
                for x in range(side):
                    into[x] = np.float32(line[channels * x + c]) * scale


@_compiled
def _write(image, mean, std, solarize, out):
    """Write the image solarised, if ``solarize`` is set, and normalised."""
    channels, side, _ = out.shape
    for c in range(channels):
        shift, scale = mean[c], _ONE / std[c]
        for y in range(side):
            line, into = image[c, y * side : (y + 1) * side], out[c, y]
            if solarize:
                for x in range(side):
                    value = _ONE - line[x] if line[x] >= _HALF else line[x]
                    into[x] = (value - shift) * scale
            else:
                for x in range(side):
                    into[x] = (line[x] - shift) * scale


@_compiled
def _to_gray(image, gray):
    if len(image) == 3:
        red, green, blue = image[0], image[1], image[2]
        for p in range(len(gray)):
            gray[p] = _RED * red[p] + _GREEN * green[p] + _BLUE * blue[p]
    else:
        gray[:] = _ZERO
        for plane in image:
            for p in range(len(gray)):
                gray[p] += plane[p] / np.float32(len(image))


@_compiled
def _adjust_brightness(image, factor):
    for plane in image:
        for p in range(len(plane)):
            plane[p] = _unit(plane[p] * factor)


@_compiled
def _adjust_contrast(image, factor, gray):
    _to_gray(image, gray)
    total = 0.0
    for p in range(len(gray)):
        total += gray[p]
    rest = np.float32(total / len(gray)) * (_ONE - factor)
    for plane in image:
        for p in range(len(plane)):
            plane[p] = _unit(plane[p] * factor + rest)


@_compiled
def _adjust_saturation(image, factor, gray):
    _to_gray(image, gray)
    for plane in image:
        for p in range(len(plane)):
            plane[p] = _unit(plane[p] * factor + gray[p] * (_ONE - factor))


@_compiled
def _adjust_hue(image, shift):
    red, green, blue = image[0], image[1], image[2]
    sixths = np.float32(6) * shift
    for p in range(len(red)):
        r, g, b = red[p], green[p], blue[p]
        largest, smallest = max(r, max(g, b)), min(r, min(g, b))
        chroma = largest - smallest
        scale = _ONE / max(chroma, _TINY)
        hue = np.float32(4) + (r - g) * scale
        hue = _TWO + (b - r) * scale if g == largest else hue
        hue = (g - b) * scale if r == largest else hue
        hue += sixths
        hue -= np.float32(6) * np.floor(hue * _SIXTH)
        red[p] = smallest + chroma * _unit(abs(hue - np.float32(3)) - _ONE)
        green[p] = smallest + chroma * _unit(_TWO - abs(hue - _TWO))
        blue[p] = smallest + chroma * _unit(_TWO - abs(hue - np.float32(4)))


@_compiled
def _jitter(image, factors, order, gray):
    for number in order:
        factor = np.float32(factors[number])
        if number == 0:
            _adjust_brightness(image, factor)
        elif number == 1:
            _adjust_contrast(image, factor, gray)
        elif len(image) == 3:
            if number == 2:
                _adjust_saturation(image, factor, gray)
            else:
                _adjust_hue(image, factor)


@_compiled
def _reflected(index, length):
    """Return the index of a pixel beyond the border, reflected at the border."""
    index = abs(index)
    return index if index < length else 2 * (length - 1) - index


@_compiled
def _add_pair(into, weight, one, other):
    for x in range(len(into)):
        into[x] += weight * (one[x] + other[x])


@_compiled
def _blur(image, sigma, radius, spare, side):
    """Blur with a Gaussian, first rows and then columns, with reflected borders."""
    taps = np.empty(radius + 1, np.float32)  # weights from the middle outwards
    for i in range(len(taps)):
        taps[i] = np.exp(np.float32(-0.5) * (np.float32(i) / sigma) ** 2)
    taps /= _TWO * taps.sum() - taps[0]
    wide = np.empty(side + 2 * radius, np.float32)
    for plane in image:
        for y in range(side):
            line, into = plane[y * side : (y + 1) * side], spare[y * side : (y + 1) * side]
            wide[radius : radius + side] = line
            for x in range(radius):
                wide[radius - 1 - x] = line[_reflected(-1 - x, side)]
                wide[radius + side + x] = line[_reflected(side + x, side)]
            for x in range(side):
                into[x] = taps[0] * line[x]
            for i in range(1, radius + 1):
                _add_pair(into, taps[i], wide[radius - i :], wide[radius + i :])
        for y in range(side):
            line, into = spare[y * side : (y + 1) * side], plane[y * side : (y + 1) * side]
            for x in range(side):
                into[x] = taps[0] * line[x]
            for i in range(1, radius + 1):
                up, down = _reflected(y - i, side) * side, _reflected(y + i, side) * side
                _add_pair(into, taps[i], spare[up : up + side], spare[down : down + side])


@_compiled
def finish(
    crops, flip, jitter, factors, order, gray, sigma, radius, solarize, mean, std, white, out
):
    """Flip, jitter, gray, blur, solarise and normalise each crop.

    Parameters
    ----------
    crops : ndarray of shape (V, B, side, side * c)
        Crops of any number type, with the channels of a pixel side by side.
    flip, jitter, gray, solarize : ndarrays of shape (V, B), bool
        Choice of the crops for each operation.
    factors, order : ndarrays of shape (V, B, 4)
        Factors and order of the jitter, as for :func:`sklearn_excb.views.color.jitter`.
    sigma : ndarray of shape (V, B), float32
        Standard deviation of the blur in pixels; 0 for no blur.
    radius : int
        Radius of the blur kernel in pixels.
    mean, std : ndarrays of shape (c,), float32
        Mean and standard deviation of each channel, for the normalisation.
    white : float32
        Pixel value that becomes 1.
    out : ndarray of shape (V, B, c, side, side), float32
        Destination of the views.
    """
    views, batch, channels, side, _ = out.shape
    image, spare = np.empty((channels, side * side), np.float32), np.empty(side * side, np.float32)
    for v in range(views):
        for b in range(batch):
            _read(crops[v, b], white, flip[v, b], image)
            if jitter[v, b]:
                _jitter(image, factors[v, b], order[v, b], spare)
            if gray[v, b] and channels == 3:
                _to_gray(image, spare)
                for c in range(channels):
                    image[c] = spare
            if sigma[v, b] > 0:
                _blur(image, sigma[v, b], radius, spare, side)
            _write(image, mean, std, solarize[v, b], out[v, b])
