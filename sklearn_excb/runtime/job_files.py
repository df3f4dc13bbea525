"""Files of pickled objects whose arrays are memory-mapped, for processes of one machine.

cloudpickle includes the definitions of a user's script or notebook. An array that is already mapped
from a file stays in that file. Read only files that the same user has just written, because reading
a file executes code in it.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import numpy.typing as npt

_ALIGNED = 64  # alignment of the arrays in bytes


def write_job(path: Path, value: Any) -> None:
    """Write an object to a file, whole or not at all."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=5, buffer_callback=buffers.append).dump(value)
    raw = [buffer.raw() for buffer in buffers]
    beside = path.with_suffix(".partial")
    with open(beside, "wb") as file:
        places = []
        for view in raw:
            file.write(bytes(-file.tell() % _ALIGNED))
            places.append((file.tell(), view.nbytes))
            file.write(view)
        start = file.tell()
        pickle.dump((places, pickled.getvalue()), file)
        file.write(start.to_bytes(8))
    beside.replace(path)


def read_job(path: Path) -> Any:
    """Read an object; its arrays are mapped from the file, and writes to them stay in memory."""
    with open(path, "rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    start = int.from_bytes(mapped[-8:])
    places, pickled = pickle.loads(mapped[start:-8])
    buffers = [mapped[at : at + n_bytes] for at, n_bytes in places]
    return pickle.loads(pickled, buffers=buffers)


class _Pickler(cloudpickle.Pickler):
    """Pickler that leaves memory-mapped arrays in their files and opens each file once."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._files: dict[int, _File | None] = {}

    def reducer_override(self, obj: Any) -> Any:
        # subclasses of arrays may have more state
        base = _base(obj) if type(obj) in (np.ndarray, np.memmap) else None
        if base is not None:
            if id(base.base) not in self._files:
                self._files[id(base.base)] = _File.of(base)
            if (file := self._files[id(base.base)]) is not None:
                first = base.offset + _address(obj) - _address(base)
                return file.array, (first, obj.shape, obj.strides, obj.dtype)
        return super().reducer_override(obj)


class _File:
    """File that is mapped when its first array is requested; changes stay in memory."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._bytes: npt.NDArray[np.uint8] | None = None

    @classmethod
    def of(cls, mapped: np.memmap[Any, Any]) -> _File | None:
        """Return the file that an array is mapped from, if the file still exists under its name."""
        name = mapped.filename
        if name is None or mapped.mode == "c" or not _is_mapped_at(name, _address(mapped)):
            return None
        return cls(os.fspath(name))

    def array(
        self, first: int, shape: Sequence[int], strides: Sequence[int], dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        """Return the array that begins at byte ``first`` of the file."""
        if self._bytes is None:
            self._bytes = np.memmap(self._path, np.uint8, mode="c")
        return np.ndarray(shape, dtype, buffer=self._bytes, offset=first, strides=strides)

    def __reduce__(self) -> Any:
        return _File, (self._path,)


def _base(array: npt.NDArray[Any]) -> np.memmap[Any, Any] | None:
    """Return the memory-mapped array that an array is a view of; None if there is none."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and isinstance(base.base, mmap.mmap):
            return base
        base = base.base
    return None


def _is_mapped_at(file: str | os.PathLike[str], address: int) -> bool:
    """Return whether this very file is mapped at an address; always False except on Linux."""
    try:
        inode = os.stat(file).st_ino
        for line in Path("/proc/self/maps").read_text().splitlines():
            where, _, _, _, number, *_ = line.split(maxsplit=5)
            first, last = (int(end, 16) for end in where.split("-"))
            if first <= address < last:
                return int(number) == inode
    except OSError:
        pass
    return False


def _address(array: npt.NDArray[Any]) -> int:
    return array.__array_interface__["data"][0]
