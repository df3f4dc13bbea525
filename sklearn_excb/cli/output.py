"""What the commands write: standard output, tables and JSON, each whole and with clear errors."""

from __future__ import annotations

import codecs
import csv
import errno
import io
import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


def hold_closed_streams() -> None:
    """Keep the numbers of closed streams from files: what C code prints would end in those."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def check_printable() -> None:
    """Raise an error before the work if its results could not be printed.

    Raises
    ------
    OSError
        If standard output is closed.
    """
    if sys.stdout is None:
        raise OSError(
            "Standard output is closed, so the results cannot be printed. Send it to a file, or to "
            f"{os.devnull}."
        )


def take_any_text() -> None:
    """Have standard output take every file name.

    Files and pipes get UTF-8, in which names of bytes that are no text stay as they are. A terminal
    in another encoding shows escapes for what it lacks.
    """
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return
    if sys.stdout.isatty() and codecs.lookup(sys.stdout.encoding).name != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")
    else:
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def tell(text: str) -> None:
    """Write text to standard output at once.

    Raises
    ------
    BrokenPipeError
        If the reader has closed it.
    OSError
        If it cannot be written, for example to a full disk.
    """
    from sklearn_excb.evaluation import output_files

    try:
        with output_files.naming("Standard output"):
            sys.stdout.write(text)
            sys.stdout.flush()
    except OSError:
        _forget_output()
        raise


def complain(text: str) -> None:
    """Write an error message to standard error, if that can be written."""
    with suppress(OSError, AttributeError):  # a full disk; a stream that is closed
        sys.stderr.write(f"sklearn-excb: {text}\n")


def write_json(found: Any, file: str) -> None:
    """Write a result as JSON to a file, or to standard output if ``file`` is "-"."""
    from sklearn_excb.saving.saved_estimator import plain

    text = json.dumps(plain(found), indent=1, allow_nan=False) + "\n"
    if file == "-":
        tell(text)
    else:
        _write(file, text)


def write_table(rows: Iterable[Iterable[Any]], file: str | None) -> None:
    """Write a table as CSV to a file, or to standard output if ``file`` is None.

    Names of files may have bytes that are not valid text: they are written unchanged.
    """
    table = io.StringIO(newline="")
    csv.writer(table).writerows(rows)
    if file is not None:
        _write(file, table.getvalue())
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(newline="")  # the table has line ends of its own
    tell(table.getvalue())


def reserve(file: Path) -> None:
    """Take the room of a sparse file on the disk.

    Without room, writing to a memory map of the file would end the process by a signal.

    Raises
    ------
    OSError
        If there is too little room.
    """
    if not hasattr(os, "posix_fallocate"):  # on Windows and macOS
        return
    with open(file, "r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise  # file systems that cannot reserve raise others


def _write(file: str, text: str) -> None:
    from sklearn_excb.evaluation import output_files

    with output_files.replacing(output_files.check_writable(file)) as beside:
        Path(beside).write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def _forget_output() -> None:
    """Send what standard output could not write nowhere; Python would try again at its end."""
    with suppress(OSError, AttributeError):  # of streams that are no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
