"""Progress bars that redraw in place on a terminal or in a notebook, and log occasional lines."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any, TextIO

from tqdm.auto import tqdm

_FIRST, _LONGEST = 60.0, 600.0  # seconds between lines of a log, doubling from first to longest
_UP = "\x1b[A"  # tqdm's code for moving up to the previous bar


def progress_bar(iterable: Any = None, *, shown: bool, **options: Any) -> tqdm[Any]:
    """Build a progress bar on standard error.

    Parameters
    ----------
    iterable : iterable, optional
        Items to count.
    shown : bool
        Whether the bar writes anything. Without a standard error, as in a service, the bar never
        writes.
    **options
        Other arguments of tqdm.
    """
    stream = sys.stderr
    if not shown or stream is None or getattr(stream, "closed", False):
        return tqdm(iterable, disable=True, **options)
    if "ipykernel" in sys.modules or (hasattr(stream, "isatty") and stream.isatty()):
        return tqdm(iterable, file=stream, **options)
    return tqdm(iterable, file=LogLines(stream), position=0, **options)


class LogLines:
    r"""File for tqdm that writes the last state of a bar and a few of the earlier states as lines.

    tqdm begins each state with ``\r`` and ends the last one with ``\n``.

    Parameters
    ----------
    stream : text file
        Destination of the lines. The first line comes after one minute, the next after two more,
        and so on up to one line every ten minutes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._state = ""
        self._pause = _FIRST
        self._due = time.monotonic() + self._pause

    def write(self, text: str) -> None:
        """Keep a state, and write it if it is the last one or if a line is due."""
        state = " ".join(text.replace(_UP, "").split())
        self._state = state or self._state
        ends = text == "\n"
        if not ends and not (state and time.monotonic() >= self._due):
            return
        with suppress(OSError):  # a full disk ends no fit
            self._stream.write(f"{self._state}\n")
        self._pause = min(2 * self._pause, _LONGEST)
        self._due = time.monotonic() + self._pause

    def flush(self) -> None:
        """Flush the stream."""
        with suppress(OSError):
            self._stream.flush()
