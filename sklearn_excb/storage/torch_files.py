"""Files of ``torch.save`` that others wrote, read without executing anything in them."""

from __future__ import annotations

import argparse
import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch


class _Ignored:
    """In place of a number of NumPy and of its type: optimizers hold them, and nobody needs them.

    NumPy's own would be executed with what the file passes to them.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_ALLOWED: list[Any] = [
    argparse.Namespace,
    _Ignored,
    (_Ignored, "numpy.core.multiarray.scalar"),
    (_Ignored, "numpy._core.multiarray.scalar"),  # as NumPy 2 calls it
    (_Ignored, "numpy.dtype"),
]


def load_objects(path: str | os.PathLike[str]) -> Any:
    """Read tensors, numbers, names, containers of them and an ``argparse.Namespace``, to the CPU.

    Parameters
    ----------
    path : str or path-like
        The file.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If there is none, or a folder.
    ValueError
        If it is of another kind, is broken, or holds what would have to be executed.
    """
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(
            f"{file} is a folder, needed the file of a checkpoint. A folder that save() wrote is "
            "read by ExCBEstimator.load."
        )
    if not file.exists():
        raise FileNotFoundError(f"There is no file {file}.")
    if not file.is_file():
        raise ValueError(f"{file} is not a regular file.")
    before = torch.serialization.get_safe_globals()
    allowed = [each for each in _ALLOWED if each not in before]  # the caller's stay allowed
    stream = file.open("rb")  # what the system refuses is an OSError
    try:
        with (
            stream,
            torch.serialization.safe_globals(allowed),
            warnings.catch_warnings(action="ignore"),  # of old formats, which are read anyway
        ):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # of a broken file anything can come
        raise ValueError(
            f"{file} cannot be read as a checkpoint. Either it is none, or is broken or cut short; "
            "or it holds more than tensors, numbers and names, and nothing is executed here. "
            f"{_described(error)}"
        ) from error


def _described(error: Exception) -> str:
    """What torch found, without its advice to execute it after all."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if " GLOBAL " in line]
    first = next((line for line in lines if "weights_only" not in line), "")
    line = (told or [first])[0].split(" was not an allowed")[0]
    return f"({type(error).__name__}: {line[:200]})" if line else f"({type(error).__name__})"


def plain_arguments(arguments: Any) -> dict[str, Any]:
    """Arguments of a command, as what JSON holds; {} if they are none.

    Parameters
    ----------
    arguments : argparse.Namespace or dict
        Values of other kinds than str, int, float, bool, and lists of them, become None.
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
