"""Output files: checked before the computation, and written completely or not at all."""

import errno
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LONGEST = 100  # bytes of a name; file systems take 143 and more, 18 of which are needed besides
_NO_SPACE = "Free some space, or choose another disk."
_NO_PERMISSION = "Choose another folder, or ask for permission to write there."
_ADVICE = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: _NO_PERMISSION,
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


def as_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a file or folder can have; the disk is not looked at.

    Raises
    ------
    TypeError
        If ``path`` is neither text nor path-like.
    ValueError
        If it is empty, contains a null character, or is text that no file name can have.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(f"The path {path!r} is of type {type(text).__name__}, expected a str.")
    if not text:
        raise ValueError("The path is empty. Pass the name of a file or a folder.")
    try:
        unusable = b"\0" in os.fsencode(text)
    except UnicodeEncodeError:
        unusable = True
    if unusable:
        raise ValueError(
            f"{text!r} contains a character that no file name can have. Choose another name."
        )
    return Path(text)


@contextmanager
def naming(what: object, *, only: Path | None = None) -> Iterator[None]:
    """Have errors of the system name what cannot be written, and say what to do.

    Parameters
    ----------
    what : object
        Path, or name of a stream: the subject of the message.
    only : Path, optional
        File that the errors are about. Errors about other files pass.
    """
    try:
        yield
    except BrokenPipeError:  # whoever reads has enough
        raise
    except OSError as error:
        others = only is not None and error.filename not in (None, str(only))
        if error.strerror is None or others:
            raise
        advice = _ADVICE.get(error.errno or 0, "Choose another path.")
        kind = type(OSError(error.errno, ""))  # Python's own, such as PermissionError
        named = kind(f"{what} cannot be written ({error.strerror}). {advice}")
        named.errno = error.errno
        raise named from error


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
    TypeError, ValueError
        If it is not the path of a file; see `as_path`.
    """
    file = Path(os.path.realpath(as_path(path)))
    with naming(path):
        _exists(file)  # raises an error if the name is too long
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


def check_folder(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a folder, or raise an error if files cannot be written to it.

    Parameters
    ----------
    path : str or path-like
        Path of a folder that may or may not exist, like the folders above it. None is created.

    Raises
    ------
    OSError
        If the path, or one above it, is a file, or writing is not permitted.
    TypeError, ValueError
        If it is not the path of a folder; see `as_path`.
    """
    nearest = folder = as_path(path).absolute()
    with naming(path):
        while not _exists(nearest):
            nearest = nearest.parent
    if not nearest.is_dir():
        where = "it" if nearest == folder else nearest
        raise NotADirectoryError(
            f"{path} cannot be a folder because {where} is a file. Choose another folder."
        )
    if not os.access(nearest, os.W_OK):
        raise PermissionError(
            f"{path} cannot be written: no write permission in {nearest}. Choose another folder."
        )
    return folder


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder, and those above it, unless it exists; return its absolute path.

    Raises
    ------
    OSError, TypeError, ValueError
        As `check_folder`.
    """
    folder = check_folder(path)
    with naming(path):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces ``file`` when the block ends without an error.

    After an error, the old file remains. The new file is flushed to the disk before it replaces
    the old one, so that one of the two survives a power failure.

    Parameters
    ----------
    file : Path
        Path from `check_writable`. An existing file keeps its permissions.

    Raises
    ------
    OSError
        If the file cannot be written, for example to a full disk.
    """
    with naming(file):
        beside = _beside(file)
    try:
        with naming(file, only=beside):
            yield beside
        with naming(file):
            if file.exists():
                beside.chmod(file.stat().st_mode)
            _flush(beside)
            beside.replace(file)
            if os.name == "posix":  # elsewhere folders cannot be opened
                _flush(file.parent)
    finally:
        beside.unlink(missing_ok=True)


def _exists(path: Path) -> bool:
    """Whether there is such a file or folder; unlike `Path.exists`, raise any other error."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.stat()
        return True
    return False


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
    beside = file.with_name(f"{hidden(file)}.{uuid.uuid4().hex[:8]}.partial")
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return beside


def hidden(file: Path) -> str:
    """Return how the names of temporary files beside a file begin."""
    return "." + os.fsencode(file.name)[:_LONGEST].decode(sys.getfilesystemencoding(), "ignore")
