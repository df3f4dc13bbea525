"""What a run is a run of: its data and parameters, told apart from changed ones."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_excb.data.sources import ArrayImages, ItemImages, Rows, Source, probes
from sklearn_excb.runtime.generator_state import preserved_generators
from sklearn_excb.settings.validation import CHECKPOINT_PARAMETERS
from sklearn_excb.storage.weight_files import existing

_ALL_BYTES = 2**30  # of arrays up to this every byte is looked at, of larger ones 1,024 samples
_SAMPLES = 1024
_PIXELS = 64  # of the short side of an image that is opened to look at it

# they change where or how a fit runs, not what it gives
_WITHOUT_EFFECT = (
    frozenset(
        (
            "n_jobs",
            "device",
            "devices",
            "compile",
            "verbose",
            "embedding",
            "on_error",
            "random_state",
        )
    )
    | CHECKPOINT_PARAMETERS
)


def parameter_fingerprint(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that a result depends on, a module by its class and a digest of its ``repr``."""
    return {
        name: _plain(value) for name, value in parameters.items() if name not in _WITHOUT_EFFECT
    }


def source_fingerprint(source: Source) -> dict[str, Any]:
    """Facts of a source that change when its samples do.

    Every byte of arrays up to 1 GB, 1,024 samples of larger ones; of files every name, less the
    folder that all are in, and 64 pictures. Items that are another each time they are read (a
    data set that draws) cannot be compared and are left out.
    """
    facts: dict[str, Any] = {
        "kind": source.kind,
        "n_samples": len(source),
        "n_channels": source.n_channels,
    }
    if isinstance(source, ItemImages):
        if source.names:
            facts["names"] = _digest(_without_folder(source.names))
        with preserved_generators():  # items may draw from them
            facts["contents"] = _digest(_sampled_contents(source))
    else:
        facts["contents"] = _digest(_blocks(source))
    return facts


def tensor_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Digest of named tensors: dtypes, shapes and every byte."""

    def parts() -> Iterator[bytes]:
        for name, tensor in sorted(tensors.items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()

    return _digest(parts())


def frozen_fingerprint(parameters: Mapping[str, Any]) -> str | None:
    """Digest of the weights that a fit takes and does not change; None if it trains all it has.

    Of a module every byte, of a file too; of those that a library names, that they are these.

    Raises
    ------
    PretrainedWeightsError
        If the file is not there.
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
    """What differs, in words: "K was 74, now 80"."""
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
    except ValueError:  # some from the root, others from here; or on several drives
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
