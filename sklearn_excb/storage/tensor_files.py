"""Files of tensors with a description, written whole or not at all and checked when they are read.

The format is safetensors. The metadata hold the description as JSON and a checksum of the
description and every tensor, which detects truncated and changed files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sklearn_excb.exceptions import DamagedFileError
from sklearn_excb.storage.json_files import parsed
from sklearn_excb.storage.regular_files import open_regular


def write_tensors(file: Path, tensors: Mapping[str, Tensor], description: Any) -> str:
    """Write a file, flush it to the disk and replace an existing file.

    Parameters
    ----------
    file : Path
        Path of the file, in an existing folder.
    tensors : mapping of str to Tensor
        Contiguous tensors, each with its own memory, as from
        :func:`sklearn_excb.storage.packing.pack`.
    description : Any
        Value that JSON can hold.

    Returns
    -------
    str
        Checksum of the file's content.

    Raises
    ------
    OSError
        If the file cannot be written, for example to a full disk. An existing file is unchanged.
    TypeError
        If safetensors does not support the dtype of a tensor, such as complex numbers.
    """
    text = json.dumps(description)
    checksum = _checksum(tensors, text)
    try:
        write_safetensors(file, tensors, {"description": text, "checksum": checksum})
    except KeyError as error:  # a dtype that safetensors does not know
        raise TypeError(
            f"Tensors of {error} cannot be written, because safetensors does not support them."
        ) from error
    return checksum


def write_safetensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file of tensors and text, flush it to the disk and replace an existing file.

    Raises
    ------
    OSError
        If the file cannot be written, for example to a full disk. An existing file is unchanged.
    """
    from sklearn_excb.evaluation import output_files

    try:
        with output_files.replacing(file) as beside:
            mode = beside.stat().st_mode
            save_file(dict(tensors), beside, metadata=dict(metadata))
            beside.chmod(mode)  # safetensors makes a new file, which only its owner can read
    except SafetensorError as error:
        raise OSError(
            f"{file} cannot be written ({error}). Free some space, or choose another path."
        ) from error


def read_tensors(file: Path) -> tuple[dict[str, Tensor], Any, str]:
    """Return the tensors, description and checksum of a file by :func:`write_tensors`.

    Raises
    ------
    DamagedFileError
        If the file has changed or was not written by :func:`write_tensors`.
    OSError
        If the file cannot be read.
    """
    try:
        with open_safetensors(file) as opened:
            metadata = opened.metadata() or {}
            # copies, because the file may be replaced while the tensors are used
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedFileError(f"{file} is damaged: {error}.") from error
    text, checksum = metadata.get("description", ""), metadata.get("checksum", "")
    if checksum != _checksum(tensors, text):
        raise DamagedFileError(
            f"{file} is damaged: its content does not match its checksum."
            if checksum
            else f"{file} has no checksum, so it was not written by sklearn_excb."
        )
    return tensors, parsed(text, file), checksum


@contextmanager
def open_safetensors(file: Path) -> Iterator[Any]:
    """Open a file as safetensors does, but only a regular file, at any path, and only once.

    Raises
    ------
    OSError
        If the file cannot be read, or is not regular.
    SafetensorError
        If the file has another format, or is damaged.
    """
    with open_regular(file) as held:
        # the name of what is open, where there is one: safetensors opens a file more than once,
        # which may have been replaced, and takes no path that is not UTF-8
        name = Path(f"/dev/fd/{held.fileno()}")
        with safe_open(name if name.exists() else file, "pt") as opened:
            yield opened


def text_checksum(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
