"""Progress bars: redrawn in place on a terminal and in a notebook, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm.auto import tqdm

_FIRST, _LONGEST = 60.0, 600.0  # seconds between two lines of a log: doubled from one to the other
_UP = "\x1b[A"  # how tqdm goes back to the bar above


def progress_bar(iterable: Any = None, *, shown: bool, **options: Any) -> tqdm[Any]:
    """Build a progress bar on standard error.

    Parameters
    ----------
    iterable : iterable, optional
        What is counted.
    shown : bool
        Whether the bar writes anything. It does not where there is no standard error, as in a
        service.
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
    r"""A file for tqdm that passes on the last state of a bar, and few of those before.

    tqdm begins each state with ``\r`` and ends the last one with ``\n``.

    Parameters
    ----------
    stream : text file
        Where lines go: after one minute, after two more, and so on to one every ten minutes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._state = ""
        self._pause = _FIRST
        self._due = time.monotonic() + self._pause

    def write(self, text: str) -> None:
        """Keep a state; write it if it is the last one or a line is due."""
        state = " ".join(text.replace(_UP, "").split())
        self._state = state or self._state
        ends = text == "\n"
        if not ends and not (state and time.monotonic() >= self._due):
            return
        self._stream.write(f"{self._state}\n")
        self._pause = min(2 * self._pause, _LONGEST)
        self._due = time.monotonic() + self._pause

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()
