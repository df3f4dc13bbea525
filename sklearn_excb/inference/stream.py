"""Inference on a stream, of which only a part is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.open_source import StreamPart, stream_parts
from sklearn_excb.data.sources import Skipped, Source
from sklearn_excb.data.unusable_images import skipped_of

_STREAM_PART = 64  # images of a stream that are in memory together


def infer_stream(
    open_part: Callable[[StreamPart], Source],
    function: Callable[[Source, npt.NDArray[Any] | None], npt.NDArray[Any]],
    X: Iterable[Any],
    out: npt.NDArray[Any] | None,
) -> tuple[npt.NDArray[Any], list[Skipped]]:
    """Results of a stream, whose length nobody knows before its end, a part at a time.

    Parameters
    ----------
    open_part : callable
        From a part of the stream to a source.
    function : callable
        Of a source and of the array to write to, if there is one; gives the results.
    X : iterable
        Of images.
    out : ndarray or None
        For the results of all.

    Returns
    -------
    results : ndarray
    skipped : list of Skipped
        By their places in the stream.

    Raises
    ------
    ValueError
        If there is nothing in it, or its images are not as many as ``out`` takes.
    """
    found: list[npt.NDArray[Any]] = []
    skipped: list[Skipped] = []
    done = 0
    for part in stream_parts(X, _STREAM_PART):
        end = done + len(part)
        if out is not None and end > len(out):
            raise ValueError(
                f"out has {len(out):,} rows, but X goes on after as many images. "
                "Give it a row for each."
            )
        source = open_part(part)
        found.append(function(source, None if out is None else out[done:end]))
        skipped += skipped_of(source)
        done = end
        del part, source  # before the next part is read
    if not done:
        raise ValueError("X is empty: there is no image in it.")
    if out is None:
        return np.concatenate(found), skipped
    if done < len(out):
        raise ValueError(
            f"out has {len(out):,} rows, but X ended after {done:,} images: those rows are filled. "
            "Give it a row for each."
        )
    return out, skipped
