"""Files that are opened only if they are regular: reading a pipe or a device may never end."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO


class NotRegularError(OSError):
    """The path leads to a pipe, a socket or a device in the place of a file."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read its bytes.

    Raises
    ------
    NotRegularError
        If the path leads to a pipe, a socket or a device.
    OSError
        If the file does not exist, is a folder, or cannot be read.
    """
    check_regular(os.stat(path).st_mode, path)  # opening a device may already have an effect
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        check_regular(os.fstat(handle).st_mode, path)  # it may have been replaced
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_regular(mode: int, path: str | os.PathLike[str]) -> None:
    """Refuse the mode of a path that is neither a regular file nor a folder."""
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise NotRegularError(
            f"{os.fspath(path)} is not a regular file. Pass a file, not a pipe, socket or device."
        )
