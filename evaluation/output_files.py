"""Output files: checked before the computation, and written completely or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 100  # bytes of a name; file systems take 143 and more, 18 of which are needed besides


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a file, or raise an error if it cannot be written.

    Parameters
    ----------
    path : str or path-like
        Path of a file that may or may not exist. Links are followed.

    Returns
    -------
    Path
        Absolute path, without links.

    Raises
    ------
    OSError
        If the path is a folder or a device, its folder does not exist, or writing is not permitted.
    """
    file = Path(path).resolve()
    if file.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a file. Add a file name.")
    if file.exists() and not file.is_file():
        raise OSError(f"{path} is not a regular file and will not be replaced. Choose another.")
    if not file.parent.is_dir():
        raise FileNotFoundError(
            f"{file.parent} is not a folder. Create it first, or choose another one."
        )
    if file.exists() and not os.access(file, os.W_OK):
        raise PermissionError(f"{path} cannot be written: no permission. Choose another file.")
    _beside(file).unlink()
    return file


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces ``file`` when the block ends without an error.

    After an error, the old file remains. The new file is flushed to the disk before it replaces
    the old one, so that one of the two survives a power failure.

    Parameters
    ----------
    file : Path
        Path from `check_writable`. An existing file keeps its permissions.
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
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(file: Path) -> Path:
    """Create an empty file with a unique name in the same folder.

    The name begins as that of ``file``, but is shorter: that one may be as long as names can be.
    """
    stem = os.fsencode(file.name)[:_LONGEST].decode(errors="ignore")
    handle, name = tempfile.mkstemp(prefix=f".{stem}.", suffix=".partial", dir=file.parent)
    os.close(handle)
    beside = Path(name)
    umask = os.umask(0)
    os.umask(umask)
    beside.chmod(0o666 & ~umask)
    return beside
