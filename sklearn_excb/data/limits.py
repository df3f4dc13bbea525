"""Limits on the size of an image file and of an image, by the memory that is free.

Files may claim more than they hold: a sparse file of a terabyte takes no disk, a PNG of 20 KB may
have 169 million pixels. One such file must not take the memory of a run.
"""

from __future__ import annotations

import psutil
import torch

from sklearn_excb.exceptions import ImageError
from sklearn_excb.runtime.devices import available_memory

_ANY = 2**26  # bytes that every machine has; looking at the free memory takes longer than a JPEG
_SHARE = 4  # one image may take a quarter of the free memory: several are read at a time
_BYTES_PER_PIXEL = 24  # at the peak: decoded, and as three floats before and after a resize


def check_bytes(n_bytes: int) -> None:
    """Refuse a file that is too large for the free memory.

    Raises
    ------
    ImageError
        If it would take more than a quarter of the free memory.
    """
    _check(n_bytes, f"the file has {_readable(n_bytes)}")


def check_n_pixels(height: int, width: int) -> None:
    """Refuse an image that is too large for the free memory once it is decoded.

    Raises
    ------
    ImageError
        If it would take more than a quarter of the free memory.
    """
    needed = height * width * _BYTES_PER_PIXEL
    _check(needed, f"an image of {width} x {height} pixels needs {_readable(needed)} of memory")


def _check(needed: int, what: str) -> None:
    if needed > _ANY and needed > (most := _free() // _SHARE):
        raise ImageError(
            f"{what}, but one image may take at most {_readable(most)}, a quarter of the free "
            "memory. Make the image smaller, or leave it out."
        )


def _free() -> int:
    """Return the bytes of memory that this process may still take."""
    left = [available_memory(torch.device("cpu"))]
    if psutil.LINUX:
        process = psutil.Process()
        most, _ = process.rlimit(psutil.RLIMIT_AS)  # what ulimit -v sets
        left += [most - process.memory_info().vms] if most != psutil.RLIM_INFINITY else []
    return max(0, min(left))


def _readable(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB"
