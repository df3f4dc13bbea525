"""Why an image cannot be used, how many files of a collection are broken, and what to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from sklearn_excb.exceptions import ImageError

_MOST = 1000  # files that are read to count broken ones
_NAMED = 3
_ADVICE = 'on_error="skip" (--on-error skip) leaves'
_LONGEST = 1000  # characters of what a message quotes, which may be an image as text
_counting = threading.Lock()


def reason_of(error: Exception) -> str:
    """Describe what is wrong with an image."""
    if isinstance(error, ImageError):
        return str(error)
    kind = "" if isinstance(error, (OSError, ValueError)) and str(error) else type(error).__name__
    return "cannot be read: " + ": ".join(filter(None, (kind, shortened(str(error)))))


def shortened(text: str) -> str:
    """Return a text that fits into a message."""
    return text if len(text) <= _LONGEST else f"{text[:200]} ... ({len(text):,} characters)"


class BrokenFiles:
    """The broken files of a collection, counted when the first of them is found."""

    def __init__(self) -> None:
        self._found = ""

    def advice(
        self,
        place: int,
        names: Sequence[str] | None,
        items: Sequence[Any],
        open_item: Callable[[Any], Any],
    ) -> str:
        """Say how many files cannot be read, and how to leave them out.

        Up to 1,000 files are read, from the one at ``place`` on. Items that are no files, which
        have no names, are not read: each may take as long as the time limit of a network.
        """
        if names is None:
            return f"{_ADVICE} out images that cannot be used."
        with _counting:  # other threads that find broken files wait, and say the same
            if not self._found:
                n = len(items)
                tested = [(place + i) % n for i in range(min(n, _MOST))]
                broken = [names[i] or str(i) for i in tested if not _is_sound(items[i], open_item)]
                also = (
                    f", also {', '.join(map(shortened, broken[1:_NAMED]))}"
                    if len(broken) > 1
                    else ""
                )
                more = ", ..." if len(broken) > _NAMED else ""
                of = f"{n:,} files" if len(tested) == n else f"{_MOST:,} tested files (of {n:,})"
                self._found = (
                    f"{len(broken):,} of {of} cannot be read{also}{more}. {_ADVICE} them out."
                )
        return self._found


def _is_sound(item: Any, open_item: Callable[[Any], Any]) -> bool:
    """Return whether a file can be read, decoded as small as its format allows."""
    from sklearn_excb.data.pixels import image_tensor

    try:
        image_tensor(open_item(item).decode(1), None)
    except Exception:  # whatever is wrong with it
        return False
    return True
