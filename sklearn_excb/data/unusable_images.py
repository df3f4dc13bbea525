"""Images that cannot be used, or not as they are: left out without shifting labels, and told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.broken_files import shortened
from sklearn_excb.data.folders import unread_pictures
from sklearn_excb.data.sources import ItemImages, Rows, Skipped, Source, probes
from sklearn_excb.exceptions import (
    PixelRangeWarning,
    SkippedImageWarning,
    UnreadPicturesWarning,
)
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.runtime.progress import progress_bar
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.runtime.threads import reader_threads

# white of each dtype, and the share of it that some pixel of 64 images exceeds in any photos:
# 14 bits in 16, 5 in 8, and 12 bits in 16 that were divided by 65,535
_WHITE = {"uint16": (65_535, 1 / 4), "uint8": (255, 1 / 8)}
_WHITE_OF_FLOATS = (1, 1 / 12)
_LEAST_IN_ARRAY, _LEAST_ITEMS = 64, 640  # images for a check outside a fit
_BLOCK = 1024  # images that are queued for the threads at a time


def drop_unusable(
    source: Source, n_jobs: int, *, progress: bool = False, most: int | None = None
) -> Source:
    """Return the source without the images that cannot be used.

    Each image is read once, or up to ``most`` evenly spaced images. Random draws depend on the
    position of an image among the remaining images, so a fit equals one on a collection that never
    held the others.

    Raises
    ------
    ImageError
        If no image is left.
    """
    if not (isinstance(source, ItemImages) and source.skips):
        return source

    def attempt(index: int) -> None:
        source.load_one(index, at_least=1)

    with ExitStack() as stack:
        read = stack.enter_context(reader_threads(n_jobs))
        some = np.linspace(0, len(source) - 1, min(len(source), most or len(source))).astype(int)
        bar = stack.enter_context(
            progress_bar(shown=progress, total=len(some), desc="ExCB: checking the images")
        )
        for first in range(0, len(some), _BLOCK):
            for _ in read(attempt, some[first : first + _BLOCK].tolist()):
                bar.update()
    left = source.usable()
    if not len(left):
        raise source.none_usable()
    return left


def skipped_of(source: Source) -> list[Skipped]:
    """Return the images of a source that could not be used."""
    return source.skipped() if isinstance(source, ItemImages) else []


def share_skipped(source: Source, ranks: Ranks) -> None:
    """Share with every rank the images that any rank could not use."""
    if isinstance(source, ItemImages) and source.skips:
        for reasons in ranks.objects(source.reasons):
            source.merge_reasons(reasons)


def expand_labels(
    labels: npt.NDArray[np.int64], usable: Source, source: Source
) -> npt.NDArray[np.int64]:
    """Spread labels of the usable images over a whole source, (n_samples,), with -1 elsewhere."""
    if not isinstance(usable, ItemImages):
        return labels
    spread = np.full(len(source), -1, dtype=np.int64)
    spread[usable.places] = labels
    # some images may have become unreadable later
    spread[[image.index for image in skipped_of(source)]] = -1
    return spread


def fill_skipped(
    result: npt.NDArray[Any],
    skipped: Sequence[Skipped],
    *,
    fill: float,
) -> npt.NDArray[Any]:
    """Write ``fill`` into the rows of skipped images, in place, and warn if there are any."""
    if skipped:
        result[[image.index for image in skipped]] = fill
        warn_skipped(skipped, len(result))
    return result


def ignored_with_reasons(source: ItemImages) -> list[str]:
    """Return the paths that a source ignores, those that cannot be opened with the reason."""
    why = source.unreachable
    return [f"{name} ({why[name]})" if name in why else name for name in source.ignored or ()]


def warn_unread(source: Source) -> None:
    """Warn of images of folders and archives that cannot be read, because they have no row."""
    if not isinstance(source, ItemImages) or not source.ignored:
        return
    if source.unreachable:
        first, reason = next(iter(source.unreachable.items()))
        warn_caller(
            f"{len(source.unreachable):,} folders, links or archives cannot be read to their end. "
            f"Their missing images are not among the {len(source):,} images of X. The first is "
            f"{first}: {reason}",
            SkippedImageWarning,
        )
    if unread := unread_pictures(source.ignored, source.names or ()):
        kinds = sorted({os.path.splitext(name)[1].lower() for name in unread})
        warn_caller(
            f"{len(unread):,} images of unsupported formats ({', '.join(kinds)}) are ignored and "
            f"are not among the {len(source):,} images of X. Convert them to JPEG or PNG to "
            f"include them. The first is {unread[0]}",
            UnreadPicturesWarning,
        )


def warn_skipped(
    skipped: Sequence[Skipped],
    n_samples: int,
    become: str = "were skipped: their label is -1, their embedding NaN",
) -> None:
    """Warn how many images were skipped, if any, and why the first was skipped."""
    if skipped:
        first = skipped[0]
        warn_caller(
            f"{len(skipped)} of {n_samples:,} images cannot be used and {become}. The first is "
            f"{shortened(first.name) or first.index}: {first.reason}",
            SkippedImageWarning,
        )


def warn_if_nearly_black(source: Source, *, fitting: bool = True) -> None:
    """Warn if the brightest pixel of up to 64 images is far from white, with how to scale them.

    Outside a fit, a small source is not checked: its images may all be dark, and reading 64 of them
    twice would take long.
    """
    least = _LEAST_ITEMS if isinstance(source, ItemImages) else _LEAST_IN_ARRAY
    if not fitting and len(source) < least:
        return
    for kind, found in _brightest(source, fitting).items():
        white, share = _WHITE.get(kind, _WHITE_OF_FLOATS)
        if not 0 < found <= share * white:
            continue
        bits = f" ({int(found).bit_length()} bits)" if kind in _WHITE else ""
        likely = 2 ** int(found).bit_length() - 1 if kind in _WHITE else found
        warn_caller(
            f"The brightest pixel of the sampled images is {found:g}, but white is {white:,} in "
            f"{kind}: the images are nearly black. If white is {likely:g}{bits} in "
            f"X, divide by it: X.astype('float32') / {likely:g}, or rescale the files.",
            PixelRangeWarning,
        )


def _brightest(source: Source, fitting: bool) -> dict[str, float]:
    """Return the largest pixel of up to 64 images by dtype; pictures of 8 bits are left out."""
    if isinstance(source, ItemImages):
        if fitting:
            _ = source.probed_shapes
        elif source.shape(0) and source.brightest:  # not pictures of 8 bits
            for index in probes(source):
                source.shape(index)
        return source.brightest
    if isinstance(source, Rows):
        return {}
    images = [source.load(np.array([index])).numpy() for index in probes(source)]
    return {images[0].dtype.name: max(float(image.max()) for image in images)}
