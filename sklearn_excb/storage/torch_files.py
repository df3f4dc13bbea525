"""Reader of ``torch.save`` files from other sources that executes nothing in them."""

from __future__ import annotations

import argparse
import math
import os
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import torch


class _Ignored:
    """Stand-in for NumPy's scalars and dtypes, which optimizers store and the reader does not need.

    NumPy's own constructors would be executed with arguments from the file.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_ALLOWED: list[Any] = [
    argparse.Namespace,
    _Ignored,
    (_Ignored, "numpy.core.multiarray.scalar"),
    (_Ignored, "numpy._core.multiarray.scalar"),  # the name in NumPy 2
    (_Ignored, "numpy.dtype"),
]


# torch has one list of allowed classes for all threads, as Python has one of warning filters. The
# list is extended only for files that need it, and by one thread at a time, so that none takes away
# what another still needs
_alone = threading.Lock()


def load_objects(path: str | os.PathLike[str]) -> Any:
    """Read tensors, numbers, text, containers of these and ``argparse.Namespace`` to the CPU.

    Parameters
    ----------
    path : str or path-like
        Path of the file.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the file does not exist or is a folder.
    ValueError
        If the file has another format, is damaged, or holds objects that would run code.
    """
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(
            f"{file} is a folder. Pass the file of a checkpoint, or read a folder of save() with "
            "ExCBEstimator.load."
        )
    if not file.exists():
        raise FileNotFoundError(f"The file {file} does not exist.")
    if not file.is_file():
        raise ValueError(f"{file} is not a regular file.")
    stream = file.open("rb")  # outside of the try block, so that an OSError reaches the caller
    try:
        with stream, _alone:
            try:
                return _load(stream)
            except pickle.UnpicklingError as error:
                if " GLOBAL " not in str(error):
                    raise
            stream.seek(0)
            before = torch.serialization.get_safe_globals()
            allowed = [each for each in _ALLOWED if each not in before]  # the caller's stay
            with torch.serialization.safe_globals(allowed):
                return _load(stream)
    except MemoryError:
        raise
    except Exception as error:  # a broken file can raise any error
        raise ValueError(
            f"{file} cannot be read as a checkpoint. The file has another format, is broken or "
            "truncated, or holds objects other than tensors, numbers and text. Such objects are "
            f"refused because they could run code. {_described(error)}"
        ) from error


def _load(stream: BinaryIO) -> Any:
    with warnings.catch_warnings(action="ignore"):  # torch warns of old formats, but reads them
        return torch.load(stream, map_location="cpu", weights_only=True)


def _described(error: Exception) -> str:
    """Describe the problem that torch found, without torch's advice to execute the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if " GLOBAL " in line]
    first = next((line for line in lines if "weights_only" not in line), "")
    line = (told or [first])[0].split(" was not an allowed")[0]
    return f"({type(error).__name__}: {line[:200]})" if line else f"({type(error).__name__})"


def plain_arguments(arguments: Any) -> dict[str, Any]:
    """Convert the arguments of a command to values that JSON can hold; {} for other objects.

    Parameters
    ----------
    arguments : argparse.Namespace or dict
        Arguments by name. Values become None unless they are str, int, float, bool or lists of
        these.
    """
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    if not isinstance(arguments, dict):
        return {}
    return {str(name): _plain(value) for name, value in arguments.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain_number_or_name(entry) for entry in value]
    return _plain_number_or_name(value)


def _plain_number_or_name(value: Any) -> str | int | float | None:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float)) else None
