"""Inference on a stream, with one part of it in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.open_source import StreamPart, stream_parts
from sklearn_excb.data.sources import Skipped, Source
from sklearn_excb.data.unusable_images import skipped_of

_STREAM_PART = 64  # images per part


def infer_stream(
    open_part: Callable[[StreamPart], Source],
    function: Callable[[Source, npt.NDArray[Any] | None], npt.NDArray[Any]],
    X: Iterable[Any],
    out: npt.NDArray[Any] | None,
) -> tuple[npt.NDArray[Any], list[Skipped]]:
    """Return the results of a stream of unknown length, computed part by part.

    Parameters
    ----------
    open_part : callable
        Function that opens a part of the stream as a source.
    function : callable
        Function of a source and an array to write to, or None, which returns the results.
    X : iterable
        Stream of images.
    out : ndarray or None
        Array for the results of all images.

    Returns
    -------
    results : ndarray
        Results of all images; ``out``, if that was passed.
    skipped : list of Skipped
        Skipped images, indexed by their positions in the stream.

    Raises
    ------
    ValueError
        If the stream is empty, or if ``out`` does not have one row per image.
    """
    found: list[npt.NDArray[Any]] = []
    skipped: list[Skipped] = []
    done = 0
    for part in stream_parts(X, _STREAM_PART):
        end = done + len(part)
        if out is not None and end > len(out):
            raise ValueError(
                f"out has {len(out):,} rows, but X has more images. Pass an array with one row "
                "per image."
            )
        source = open_part(part)
        found.append(function(source, None if out is None else out[done:end]))
        skipped += skipped_of(source)
        done = end
        del part, source  # before the next part is read
    if not done:
        raise ValueError("X is empty: it contains no image.")
    if out is None:
        return np.concatenate(found), skipped
    if done < len(out):
        raise ValueError(
            f"out has {len(out):,} rows, but X ended after {done:,} images. Only the first "
            f"{done:,} rows were filled. Pass an array with one row per image."
        )
    return out, skipped
