"""Progress bars: redrawn in place on a terminal and in a notebook, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm.auto import tqdm

_FIRST, _LONGEST = 60.0, 600.0  # seconds between two lines of a log: doubled from one to the other


def progress_bar(iterable: Any = None, *, shown: bool, **options: Any) -> tqdm[Any]:
    """Build a progress bar on standard error.

    Parameters
    ----------
    iterable : iterable, optional
        What is counted.
    shown : bool
        Whether the bar writes anything.
    **options
        Other arguments of tqdm.
    """
    redrawn = sys.stderr.isatty() or "ipykernel" in sys.modules
    file = sys.stderr if redrawn else LogLines(sys.stderr)
    return tqdm(iterable, disable=not shown, file=file, **options)


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
        self._state = text.strip() or self._state
        if text != "\n" and time.monotonic() < self._due:
            return
        self._stream.write(f"{self._state}\n")
        self._pause = min(2 * self._pause, _LONGEST)
        self._due = time.monotonic() + self._pause

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()
