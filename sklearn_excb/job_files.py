"""Objects in a file of which the arrays are mapped into memory, for processes of one machine.

Pickled with cloudpickle, which takes along what a user has defined in a script or a notebook. Only
for files that the same user has just written: reading one runs what it says.
"""

from __future__ import annotations

import mmap
import pickle
from pathlib import Path
from typing import Any

import cloudpickle

_ALIGNED = 64  # bytes at which an array begins


def write_job(path: Path, value: Any) -> None:
    """Write an object; it is there whole or not at all."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    beside = path.with_suffix(".partial")
    with open(beside, "wb") as file:
        places = []
        for view in raw:
            file.write(bytes(-file.tell() % _ALIGNED))
            places.append((file.tell(), view.nbytes))
            file.write(view)
        start = file.tell()
        pickle.dump((places, pickled), file)
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
