"""Conversion of nested Python values to tensors and JSON, and back, without executable content.

The values are dicts, lists, tuples, numbers, text, None, tensors and arrays. Anything else raises
an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Snapshot = tuple[dict[str, Tensor], Any]  # a state, copied and packed

_TENSOR, _ARRAY, _TUPLE, _PAIRS = "__tensor__", "__array__", "__tuple__", "__pairs__"


def pack(tree: Any, name: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split nested values into tensors and values that JSON can hold.

    Parameters
    ----------
    tree : dict, list, tuple, Tensor, ndarray, number, str, bool or None
        Values, nested to any depth.
    name : str, default=""
        Name of the tree. The path of a tensor, such as "optimizer/state/0/momentum", starts with
        it and is the tensor's name.

    Returns
    -------
    tensors : dict of Tensor
        Copies on the CPU, each with its own memory.
    rest : Any
        The same tree with tensors replaced by their names.

    Raises
    ------
    TypeError
        If the tree holds a value of another type. The message gives its path.
    """
    tensors: dict[str, Tensor] = {}

    def keep(tensor: Tensor, way: str) -> str:
        while way in tensors:  # paths can collide, for example of keys 0 and "0"
            way += "'"
        tensors[way] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return way

    def rest_of(value: Any, way: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, np.generic):
            return rest_of(value.item(), way)
        if isinstance(value, Tensor):
            return {_TENSOR: keep(value, way)}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return {_ARRAY: keep(torch.from_numpy(np.ascontiguousarray(value)), way)}
        if isinstance(value, (list, tuple)):
            inside = [rest_of(part, f"{way}/{i}".lstrip("/")) for i, part in enumerate(value)]
            return {_TUPLE: inside} if isinstance(value, tuple) else inside
        if isinstance(value, Mapping):
            inside = {key: rest_of(part, f"{way}/{key}".lstrip("/")) for key, part in value.items()}
            if all(isinstance(key, str) for key in inside):
                return inside
            return {_PAIRS: [[rest_of(key, way), part] for key, part in inside.items()]}
        raise TypeError(
            f"{way or 'A value'} has type {type(value).__name__}, which cannot be written."
        )

    return tensors, rest_of(tree, name)


def unpack(tensors: Mapping[str, Tensor], rest: Any) -> Any:
    """Restore the nested values that :func:`pack` has split."""
    if isinstance(rest, list):
        return [unpack(tensors, part) for part in rest]
    if not isinstance(rest, dict):
        return rest
    if len(rest) == 1:
        ((kind, inside),) = rest.items()
        if kind == _TENSOR:
            return tensors[inside]
        if kind == _ARRAY:
            return tensors[inside].numpy()
        if kind == _TUPLE:
            return tuple(unpack(tensors, part) for part in inside)
        if kind == _PAIRS:
            return {unpack(tensors, key): unpack(tensors, part) for key, part in inside}
    return {key: unpack(tensors, part) for key, part in rest.items()}
