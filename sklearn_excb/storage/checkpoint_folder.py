"""The folder of a run: its states, the last ones and the best, whole, for one run at a time.

``step-000001234.safetensors`` is the state after so many steps, ``best.safetensors`` that of the
epoch with the lowest loss, ``lock`` what keeps a second run out.
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
_AUTO_SECONDS = 600.0  # between two states within an epoch
_AUTO_SHARE = 20.0  # times as long as the last one took to write, at least: 5 % of the run


class CheckpointFolder:
    """States of a run; made by :func:`open_checkpoint_folder`.

    Parameters
    ----------
    path : Path
        The folder; there has to be one to write to.
    every : int or "auto"
        Steps between two states; see :meth:`due`.
    n_kept : int
        States that are kept, besides the best.

    Attributes
    ----------
    written : int or None
        Steps before the state that was written or read last.
    """

    def __init__(self, path: Path, every: int | str, n_kept: int) -> None:
        self.path = path
        self._every = every
        self._n_kept = n_kept
        self._last, self._took = time.monotonic(), 0.0
        self.written: int | None = None
        self._failing = False

    def due(self, step: int, *, epoch_ends: bool) -> bool:
        """Whether a state is to be written after so many steps.

        With ``every=n``, each n steps and at each end of an epoch. "auto" is the end of each epoch,
        and ten minutes after the last state, unless writing took more than a twentieth of the time
        since.
        """
        if self._every != "auto":
            return epoch_ends or step % int(self._every) == 0
        since = time.monotonic() - self._last
        return since >= self._took * _AUTO_SHARE and (epoch_ends or since >= _AUTO_SECONDS)

    def write(self, step: int, state: dict[str, Any], *, best: bool = False) -> bool:
        """Write the state after so many steps in the place of the oldest; warn if that fails.

        A run does not end for want of room: it goes on, and the state before stays.

        Returns
        -------
        bool
            Whether it is written.
        """
        begun = time.monotonic()
        file = self._file(step)
        try:
            for old in self._files()[max(1, self._n_kept - 1) :]:  # room for the new one
                old.unlink()
            write_tensors(file, *pack({"format": FORMAT, **state}))
            self.written = step
            files = self._files()
            here = files.index(file)  # later ones are of a run that this one has taken the place of
            for old in files[:here] + files[here + self._n_kept :]:
                old.unlink()
        except OSError as error:
            if not self._failing:
                warn_caller(
                    f"The state after {step:,} steps could not be written to {self.path}: {error}. "
                    f"The fit goes on, and tries again; {self._last_checkpoint()}.",
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
        """Read the newest state that is whole, warning of others; None if none is there.

        Raises
        ------
        ValueError
            If there are states, and none can be read.
        """
        files, failed = self._files(), ""
        for file in files:
            try:
                state = read_checkpoint(file)
            except DamagedFileError as error:  # what the disk refuses to read may be whole
                failed = str(error)
                continue
            if failed:
                warn_caller(
                    f"{failed} The fit goes on from {file.name}, the one before.",
                    CheckpointWarning,
                )
            self.written = state["step"]
            return state
        if files:
            raise ValueError(
                f"{self.path} holds {len(files)} states of a run, and none can be read. {failed} "
                "To start anew, remove them or choose another checkpoint_dir."
            )
        return None

    def _last_checkpoint(self) -> str:
        files = self._files()
        return f"{files[0].name} is the last that was" if files else "none was before"

    def _file(self, step: int) -> Path:
        return self.path / f"step-{step:09d}.safetensors"

    def _files(self) -> list[Path]:
        """States that are there, the newest first."""
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
                f"{file} is the best so far, but could not be kept as best.safetensors: {error}",
                CheckpointWarning,
            )


def has_checkpoints(path: str | os.PathLike[str]) -> bool:
    """Whether there is a run in a folder to go on with."""
    return bool(_checkpoints_in(Path(path)))


def _step_of(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


def _checkpoints_in(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if _NAME.fullmatch(file.name)] if path.is_dir() else []


@contextmanager
def open_checkpoint_folder(
    path: str | os.PathLike[str] | None, every: int | str, n_kept: int
) -> Iterator[CheckpointFolder | None]:
    """Open the folder of a run, made if it is not there, for this run alone; None without a path.

    Raises
    ------
    OSError
        If it cannot be written to.
    BlockingIOError
        If another run has it open.
    """
    if path is None:
        yield None
        return
    folder = Path(path).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(
            error.errno, f"checkpoint_dir cannot be written to ({error.strerror})", str(folder)
        ) from error
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            errno.EWOULDBLOCK,
            "Another fit is at work in checkpoint_dir: wait for it, or give each fit its own",
            str(folder),
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warn_caller(
            f"The file system of {folder} has no locks: nothing keeps a second fit out of it.",
            CheckpointWarning,
        )
    try:
        for left in folder.iterdir():
            if _PARTIAL.fullmatch(left.name):  # of a process that was killed while it wrote
                left.unlink()
        yield CheckpointFolder(folder, every, n_kept)
    finally:
        lock.release()


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a state that :meth:`CheckpointFolder.write` wrote.

    Raises
    ------
    DamagedFileError
        If it is not what was written.
    ValueError
        If it is of another format.
    """
    tensors, rest, _ = read_tensors(file)
    state = unpack(tensors, rest)
    known = state.get("format") if isinstance(state, dict) else None
    if known != FORMAT:
        raise ValueError(
            f"{file} has format {known!r}; this version of sklearn_excb reads format "
            f"{FORMAT}. Go on with the version that wrote it, or choose another checkpoint_dir."
        )
    return state
