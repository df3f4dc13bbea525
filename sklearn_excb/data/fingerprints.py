"""Fingerprints of the data and the parameters of a run, which reveal changes between two runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_excb.data.sources import ArrayImages, ItemImages, Rows, Source, probes
from sklearn_excb.runtime.process_state import preserved_generators
from sklearn_excb.settings.validation import CHECKPOINT_PARAMETERS
from sklearn_excb.storage.weight_files import existing

_ALL_BYTES = 2**30  # arrays up to this size are hashed whole, larger ones at 1,024 samples
_SAMPLES = 1024
_PIXELS = 64  # least short side at which a hashed image is decoded

# these parameters change where or how a fit runs, but not its result
_WITHOUT_EFFECT = CHECKPOINT_PARAMETERS | frozenset(
    ("n_jobs", "device", "devices", "compile", "verbose", "embedding", "on_error", "random_state")
)


def parameter_fingerprint(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that the result of a fit depends on.

    A module is represented by its class and a digest of its ``repr``.
    """
    return {
        name: _plain(value) for name, value in parameters.items() if name not in _WITHOUT_EFFECT
    }


def source_fingerprint(source: Source) -> dict[str, Any]:
    """Return facts about a source that change when its samples change.

    The digest covers every byte of arrays up to 1 GB and 1,024 samples of larger arrays. For files,
    the digests cover every name, without the folder that all files share, and the contents of 64
    images. Items that differ each time they are read (a data set that draws random numbers) cannot
    be compared and are left out.
    """
    facts: dict[str, Any] = {
        "kind": source.kind,
        "n_samples": len(source),
        "n_channels": source.n_channels,
    }
    if isinstance(source, ItemImages):
        if source.names:
            facts["names"] = _digest(_without_folder(source.names))
        with preserved_generators(if_drawn=may_draw(source)):
            facts["contents"] = _digest(_sampled_contents(source))
    else:
        facts["contents"] = _digest(_blocks(source))
    return facts


def may_draw(source: Source) -> bool:
    """Whether reading a source calls code of the user, which may draw from global generators."""
    return isinstance(source, ItemImages) and not source.reads_in_parallel


def tensor_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of the names, dtypes, shapes and bytes of tensors."""

    def parts() -> Iterator[bytes]:
        for name, tensor in sorted(tensors.items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()

    return _digest(parts())


def frozen_fingerprint(parameters: Mapping[str, Any]) -> str | None:
    """Return a digest of the weights that a fit uses but does not change; None if it trains all.

    The digest covers every byte of a module or a file. Weights that a library provides by name
    (``pretrained=True``) are represented by the word "named".

    Raises
    ------
    PretrainedWeightsError
        If the file does not exist.
    """
    backbone, pretrained = parameters["backbone"], parameters["pretrained"]
    if not parameters["freeze_backbone"]:
        return None
    if isinstance(backbone, nn.Module):
        return tensor_fingerprint(backbone.state_dict())
    if pretrained is True:
        return "named"
    with existing(pretrained).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe each difference in words, such as "K was 74, now 80"."""
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [
        f"{name} changed"
        if name in ("names", "contents")
        else f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in differing
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return f"{type(value).__name__} {_digest(iter([repr(value).encode()]))[:8]}"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value


def _digest(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _without_folder(names: list[str]) -> Iterator[bytes]:
    try:
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # absolute and relative paths mixed, or several drives
        folder = ""
    for name in names:
        yield os.fsencode(os.path.relpath(name, folder) if folder else name) + b"\0"


def _blocks(source: ArrayImages | Rows) -> Iterator[bytes]:
    one = _bytes(source, np.arange(1))
    every = len(one) * len(source) <= _ALL_BYTES
    rows = np.arange(len(source)) if every else np.array(probes(source, _SAMPLES))
    for first in range(0, len(rows), 256):
        yield _bytes(source, rows[first : first + 256])


def _bytes(source: ArrayImages | Rows, rows: np.ndarray[Any, Any]) -> bytes:
    found = np.ascontiguousarray(source.load(rows))
    return f"{found.dtype} {found.shape}".encode() + found.tobytes()


def _sampled_contents(source: ItemImages) -> Iterator[bytes]:
    for index in probes(source):
        first, second = (source.load_one(index, _PIXELS) for _ in range(2))
        if torch.equal(first, second):
            yield f"{first.dtype} {tuple(first.shape)}".encode()
            yield first.contiguous().numpy().tobytes()
