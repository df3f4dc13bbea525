"""A file of tensors and a description of them: whole or not at all, and read only if unchanged.

The file is one of safetensors. Its metadata holds the description, as JSON, and a checksum of that
and of every tensor, so that a torn or changed file is told from a good one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sklearn_excb.exceptions import DamagedFileError


def write_tensors(file: Path, tensors: Mapping[str, Tensor], description: Any) -> str:
    """Write a file, flushed to the disk, in the place of what may be there.

    Parameters
    ----------
    file : Path
        In a folder that is there.
    tensors : mapping of str to Tensor
        Contiguous, each with memory of its own, as :func:`sklearn_excb.storage.packing.pack` gives
        them.
    description : Any
        What JSON can hold.

    Returns
    -------
    str
        The checksum.

    Raises
    ------
    OSError
        If it cannot be written, for want of room perhaps. What was there is left as it was.
    TypeError
        If a tensor is of a dtype that safetensors has not, such as complex numbers.
    """
    from sklearn_excb.evaluation import output_files

    text = json.dumps(description)
    checksum = _checksum(tensors, text)
    try:
        with output_files.replacing(file) as beside:
            mode = beside.stat().st_mode
            said = {"description": text, "checksum": checksum}
            save_file(dict(tensors), beside, metadata=said)
            beside.chmod(mode)  # safetensors makes a file anew, which only its owner can read
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from error
    except KeyError as error:  # of a dtype
        raise TypeError(f"Tensors of {error} cannot be written: safetensors has none.") from error
    return checksum


def read_tensors(file: Path) -> tuple[dict[str, Tensor], Any, str]:
    """Read what :func:`write_tensors` wrote: tensors, description, checksum.

    Raises
    ------
    DamagedFileError
        If it is anything else.
    OSError
        If it cannot be read.
    """
    try:
        with safe_open(file, "pt") as opened:
            said = opened.metadata() or {}
            # copies: the file may be replaced while they are used
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedFileError(f"{file} is damaged: {error}.") from error
    text, checksum = said.get("description", ""), said.get("checksum", "")
    if checksum != _checksum(tensors, text):
        raise DamagedFileError(
            f"{file} is damaged: its checksum is not that of what is in it."
            if checksum
            else f"{file} has no checksum: it was not written by sklearn_excb."
        )
    return tensors, json.loads(text), checksum


def text_checksum(text: str) -> str:
    """SHA-256 of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
