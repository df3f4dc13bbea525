"""Objects in a file of which the arrays are mapped into memory, for processes of one machine.

Pickled with cloudpickle, which takes along what a user has defined in a script or a notebook. An
array that is mapped from a file already stays there. Only for files that the same user has just
written: reading one runs what it says.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import numpy.typing as npt

_ALIGNED = 64  # bytes at which an array begins


def write_job(path: Path, value: Any) -> None:
    """Write an object; it is there whole or not at all."""
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
    """Read an object; its arrays are pages of the file until somebody writes to them."""
    with open(path, "rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    start = int.from_bytes(mapped[-8:])
    places, pickled = pickle.loads(mapped[start:-8])
    buffers = [mapped[at : at + n_bytes] for at, n_bytes in places]
    return pickle.loads(pickled, buffers=buffers)


class _Pickler(cloudpickle.Pickler):
    """Leaves arrays in the files that they are mapped from."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray) and (place := _place_of(obj)) is not None:
            return _mapped, (*place, obj.shape, obj.strides, obj.dtype)
        return super().reducer_override(obj)


def _place_of(array: npt.NDArray[Any]) -> tuple[str, int] | None:
    """File in which an array lies as it is, and its first byte there; None if it does not."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and isinstance(base.base, mmap.mmap):
            file = base.filename
            if base.mode == "c" or file is None or not os.path.exists(file):
                return None
            return os.fspath(file), base.offset + _address(array) - _address(base)
        base = base.base
    return None


def _address(array: npt.NDArray[Any]) -> int:
    return array.__array_interface__["data"][0]


def _mapped(
    file: str,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
) -> npt.NDArray[Any]:
    whole = np.memmap(file, np.uint8, mode="c")
    return np.ndarray(shape, dtype, buffer=whole, offset=offset, strides=strides)
