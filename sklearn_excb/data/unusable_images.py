"""``on_error="skip"``: images that cannot be used are left out, and no label shifts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.folders import unread_pictures
from sklearn_excb.data.sources import ItemImages, Skipped, Source
from sklearn_excb.exceptions import SkippedImageWarning, UnreadPicturesWarning
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.runtime.progress import progress_bar
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.runtime.threads import reader_threads

_AT_ONCE = 1024  # images that wait for a thread


def drop_unusable(
    source: Source, n_jobs: int, *, progress: bool = False, most: int | None = None
) -> Source:
    """Source without the images that cannot be used; every one is tried once, or ``most`` of them.

    Draws depend on the place of an image among those that are left, so a fit is the one of a
    collection in which the others never were.

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
        for first in range(0, len(some), _AT_ONCE):
            for _ in read(attempt, some[first : first + _AT_ONCE].tolist()):
                bar.update()
    left = source.usable()
    if not len(left):
        raise source.none_usable()
    return left


def skipped_of(source: Source) -> list[Skipped]:
    """Images of a source that could not be used."""
    return source.skipped() if isinstance(source, ItemImages) else []


def share_skipped(source: Source, ranks: Ranks) -> None:
    """Have every rank know of the images that another could not use."""
    if isinstance(source, ItemImages) and source.skips:
        for reasons in ranks.objects(source.reasons):
            source.merge_reasons(reasons)


def expand_labels(
    labels: npt.NDArray[np.int64], usable: Source, source: Source
) -> npt.NDArray[np.int64]:
    """Labels of a whole source, (n_samples,), from those of its usable part; -1 for the others."""
    if not isinstance(usable, ItemImages):
        return labels
    spread = np.full(len(source), -1, dtype=np.int64)
    spread[usable.places] = labels
    spread[[image.index for image in skipped_of(source)]] = -1  # some may have gone since
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


def warn_unread(source: Source) -> None:
    """Say how many pictures of a folder are of kinds that are not read: they have no row."""
    if not isinstance(source, ItemImages) or not source.ignored:
        return
    if unread := unread_pictures(source.ignored, source.names or ()):
        kinds = sorted({os.path.splitext(name)[1].lower() for name in unread})
        warn_caller(
            f"{len(unread):,} pictures ({', '.join(kinds)}) are passed over, for files of their "
            f"kind are not read: they are not among the {len(source):,} images. Convert them to "
            f"JPEG or PNG to have them too. The first: {unread[0]}",
            UnreadPicturesWarning,
        )


def warn_skipped(
    skipped: Sequence[Skipped],
    n_samples: int,
    become: str = "were skipped: their label is -1, their embedding NaN",
) -> None:
    """Say how many images were skipped, if any, and why the first."""
    if skipped:
        first = skipped[0]
        warn_caller(
            f"{len(skipped)} of {n_samples:,} images cannot be used and {become}. The first, "
            f"{first.name or first.index}: {first.reason}",
            SkippedImageWarning,
        )
