"""The checkpoint folder of a run: the latest checkpoints and the best, for one run at a time.

``step-000001234.safetensors`` is the checkpoint after that number of steps, ``best.safetensors`` is
the checkpoint of the epoch with the lowest loss, and ``lock`` keeps other runs out.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sklearn_excb.exceptions import CheckpointWarning, DamagedFileError
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.storage.packing import pack, unpack
from sklearn_excb.storage.tensor_files import read_tensors, write_tensors

FORMAT = 2
_NAME = re.compile(r"step-\d{9,}\.safetensors")
_PARTIAL = re.compile(r"\.(step-\d{9,}|best)\.safetensors\..*\.partial")
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
_AUTO_SECONDS = 600.0  # between two checkpoints within an epoch
_AUTO_SHARE = 20.0  # least interval in units of the last write time, so writing takes 5 % at most


class CheckpointFolder:
    """Folder with the checkpoints of a run; see :func:`open_checkpoint_folder`.

    Parameters
    ----------
    path : Path
        Existing folder.
    every : int or "auto"
        Steps between two checkpoints; see :meth:`due`.
    n_kept : int
        Number of checkpoints to keep, besides the best.

    Attributes
    ----------
    written : int or None
        Step of the checkpoint that was written or read last.
    """

    def __init__(self, path: Path, every: int | str, n_kept: int) -> None:
        self.path = path
        self._every = every
        self._n_kept = n_kept
        self._last, self._took = time.monotonic(), 0.0
        self.written: int | None = None
        self._failing = False

    def due(self, step: int, *, epoch_ends: bool) -> bool:
        """Return whether to write a checkpoint after ``step`` steps.

        With ``every=n``, a checkpoint is due every n steps and at the end of each epoch. With
        "auto", it is due at the end of each epoch and ten minutes after the last checkpoint, unless
        the last write took more than a twentieth of the time since then.
        """
        if self._every != "auto":
            return epoch_ends or step % int(self._every) == 0
        since = time.monotonic() - self._last
        return since >= self._took * _AUTO_SHARE and (epoch_ends or since >= _AUTO_SECONDS)

    def write(self, step: int, state: dict[str, Any], *, best: bool = False) -> bool:
        """Write the checkpoint of a step in place of the oldest, and warn if writing fails.

        A full disk does not end the run: the run continues, and the previous checkpoint stays.

        Returns
        -------
        bool
            Whether the checkpoint was written.
        """
        from sklearn_excb.evaluation import output_files

        begun = time.monotonic()
        file = self._file(step)
        try:
            with output_files.naming(self.path):
                for old in self._files()[max(1, self._n_kept - 1) :]:  # make room for the new file
                    old.unlink()
                write_tensors(file, *pack({"format": FORMAT, **state}))
                self.written = step
                files = self._files()
                here = files.index(file)  # later files are from a run that this run has replaced
                for old in files[:here] + files[here + self._n_kept :]:
                    old.unlink()
        except OSError as error:
            if not self._failing:
                warn_caller(
                    f"The checkpoint after {step:,} steps could not be written to {self.path}: "
                    f"{error} The fit continues and tries again later. {self._last_checkpoint()}.",
                    CheckpointWarning,
                )
            self._failing = True
            return False
        finally:
            self._last = time.monotonic()
            self._took = self._last - begun
        self._failing = False
        if best:
            self._keep_as_best(file)
        return True

    def newest(self) -> dict[str, Any] | None:
        """Read the newest intact checkpoint and warn of damaged ones; None in an empty folder.

        Raises
        ------
        ValueError
            If there are checkpoints, but none can be read.
        """
        files, failed = self._files(), ""
        for file in files:
            try:
                state = read_checkpoint(file)
            except DamagedFileError as error:  # a file that the disk cannot read may be intact
                failed = str(error)
                continue
            if failed:
                warn_caller(
                    f"{failed} The fit resumes from the checkpoint before it, {file.name}.",
                    CheckpointWarning,
                )
            self.written = state["step"]
            return state
        if files:
            raise ValueError(
                f"{self.path} holds {len(files)} checkpoints, but none can be read. {failed} "
                "To start a new run, remove them or choose another checkpoint_dir."
            )
        return None

    def _last_checkpoint(self) -> str:
        files = self._files()
        if not files:
            return "No checkpoint has been written yet"
        return f"The last checkpoint is {files[0].name}"

    def _file(self, step: int) -> Path:
        return self.path / f"step-{step:09d}.safetensors"

    def _files(self) -> list[Path]:
        """Return the existing checkpoints, newest first."""
        return sorted(_checkpoints_in(self.path), key=_step_of, reverse=True)

    def _keep_as_best(self, file: Path) -> None:
        from sklearn_excb.evaluation import output_files

        try:
            with output_files.replacing(self.path / "best.safetensors") as beside:
                beside.unlink()
                try:
                    os.link(file, beside)  # the same bytes under a second name
                except OSError:  # a file system without links
                    shutil.copyfile(file, beside)
        except OSError as error:
            warn_caller(
                f"{file} is the best checkpoint so far, but could not be kept as "
                f"best.safetensors: {error}",
                CheckpointWarning,
            )


def has_checkpoints(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds checkpoints from which a run can resume."""
    return bool(_checkpoints_in(Path(path)))


def _step_of(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


def _checkpoints_in(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if _NAME.fullmatch(file.name)] if path.is_dir() else []


@contextmanager
def open_checkpoint_folder(
    path: str | os.PathLike[str] | None, every: int | str, n_kept: int
) -> Iterator[CheckpointFolder | None]:
    """Create or open the checkpoint folder of a run and lock it; yield None without a path.

    Raises
    ------
    OSError
        If the folder cannot be written to.
    BlockingIOError
        If another run uses the folder.
    """
    if path is None:
        yield None
        return
    from sklearn_excb.evaluation import output_files

    folder = output_files.as_path(path).absolute()
    with output_files.naming(f"checkpoint_dir={str(folder)!r}"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            errno.EWOULDBLOCK,
            "Another fit uses checkpoint_dir. Wait for it to end, or give each fit its own folder",
            str(folder),
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warn_caller(
            f"The file system of {folder} has no locks. Make sure that no other fit uses this "
            "folder.",
            CheckpointWarning,
        )
    try:
        for left in folder.iterdir():
            if _PARTIAL.fullmatch(left.name):  # left by a process that was killed while writing
                left.unlink()
        yield CheckpointFolder(folder, every, n_kept)
    finally:
        lock.release()


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint of :meth:`CheckpointFolder.write`.

    Raises
    ------
    DamagedFileError
        If the file has changed since it was written.
    ValueError
        If the file has another format.
    """
    tensors, rest, _ = read_tensors(file)
    try:
        state = unpack(tensors, rest)
        known = state["format"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFileError(
            f"{file} is damaged, or is not a checkpoint ({type(error).__name__}: {error})."
        ) from error
    if known != FORMAT:
        raise ValueError(
            f"{file} has format {known!r}, but this version of sklearn_excb reads format "
            f"{FORMAT}. Resume with the version that wrote it, or choose another checkpoint_dir."
        )
    return state
