"""Files that are written whole or not at all, tried before the work that fills them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return the file that a path names, or raise now what writing there would raise.

    Parameters
    ----------
    path : str or path-like
        A file, there or not. A link stands for what it leads to.

    Returns
    -------
    Path
        Absolute, without links.

    Raises
    ------
    OSError
        If it is a folder or a device, lies in no folder, or must not be written to.
    """
    file = Path(path).resolve()
    if file.is_dir():
        raise IsADirectoryError(f"{path} is a folder, needed a file: add a name.")
    if file.exists() and not file.is_file():
        raise OSError(f"{path} is no plain file, and would be replaced. Name another one.")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{file.parent} is no folder. Make it first, or write elsewhere.")
    if file.exists() and not os.access(file, os.W_OK):
        raise PermissionError(f"{path} must not be written to: no permission.")
    _beside(file).unlink()
    return file


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a file to write to, and put it in the place of another: a failure leaves the old one.

    The new one is on the disk before it takes that place, so a machine that loses its power has one
    of the two.

    Parameters
    ----------
    file : Path
        As `check_writable` returns it; there or not. Its permissions stay.
    """
    beside = _beside(file)
    try:
        yield beside
        if file.exists():
            beside.chmod(file.stat().st_mode)
        _flush(beside)
        beside.replace(file)
        if os.name == "posix":  # elsewhere folders cannot be opened
            _flush(file.parent)
    finally:
        beside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have the disk hold a file, or which files a folder has."""
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(file: Path) -> Path:
    """Make an empty file in the same folder, of a name that nothing else has."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".partial", dir=file.parent)
    os.close(handle)
    beside = Path(name)
    umask = os.umask(0)
    os.umask(umask)
    beside.chmod(0o666 & ~umask)
    return beside
