"""Items in the column of a table: paths, pictures, encoded images or vectors; masked arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from sklearn_excb.data.pixels import is_picture

_NAMED = 3  # columns in a message
_LOOKED_AT = 64  # values of a column; all may be missing


def plain_collection(X: Any) -> Any:
    """Return what X holds where X is a table, an array or a column of items; else X itself.

    Parameters
    ----------
    X : Any
        Tables of pandas, polars and Arrow, and arrays (n, 1), give their only column if it holds
        items: paths, pictures, encoded images, arrays. Vectors in a column become rows (n, d).

    Raises
    ------
    TypeError
        If a table has several columns and one holds items. The message names that column.
    ValueError
        If values of X are masked, or vectors in a column differ in length.
    """
    check_unmasked(X)
    names = _column_names(X)
    if names is not None:
        columns = {f"X[{name!r}]": X[name] for name in names}
        return _only(
            X, columns, {name: kind for name, of in columns.items() if (kind := _kind(of))}
        )
    if isinstance(X, np.ndarray):
        if X.dtype.kind == "S":
            raise TypeError(
                "X is an array of byte strings of fixed width, which loses zeros at their ends. "
                "Pass a list of bytes, or an array of dtype object."
            )
        if X.dtype.kind not in "OUT":
            native = X.dtype.isnative or X.ndim > 2
            # scikit-learn would make float32 of float64 in the other byte order
            return X if native else X.astype(X.dtype.newbyteorder("="))
        if X.ndim == 2:
            columns = {f"X[:, {j}]": X[:, j] for j in range(X.shape[1])}
            kinds = {name: kind for name, of in columns.items() if (kind := _kind(of))}
            several = len(columns) > 1  # a dict among numbers is an error of scikit-learn's
            return _only(
                X, columns, {n: k for n, k in kinds.items() if k != "dicts" or not several}
            )
    is_array = hasattr(X, "__array__") and hasattr(X, "__iter__") and not isinstance(X, Tensor)
    is_column = is_array and getattr(X, "ndim", 1) == 1
    return _stacked(_values(X)) if is_column and _kind(X) else X


def _only(X: Any, columns: dict[str, Any], kinds: dict[str, str]) -> Any:
    """Return the only column of a table if it holds items; refuse items beside other columns."""
    if not kinds:
        return X
    if len(columns) == 1:
        return _stacked(_values(*columns.values()))
    held = ", ".join(f"{name} holds {kind}" for name, kind in list(kinds.items())[:_NAMED])
    ways = [f"np.stack({name})" if kind == "vectors" else name for name, kind in kinds.items()]
    raise TypeError(
        f"X is a table of {len(columns)} columns: {held}. Pass one of them: "
        f"{' or '.join(ways[:_NAMED])}. To fit rows of numbers, leave these columns out."
    )


def check_unmasked(X: Any) -> None:
    """Refuse an array with masked values, because NumPy would use the values under the mask."""
    if isinstance(X, np.ma.MaskedArray) and np.ma.is_masked(X):
        raise ValueError(
            f"X is a masked array with {np.ma.count_masked(X):,} masked values. Pass "
            "X.filled(value), or leave those samples out."
        )


def _column_names(X: Any) -> list[Any] | None:
    """Return the names of a table's columns; None for anything else, such as a data set."""
    if hasattr(X, "features"):  # of Hugging Face: its items are decoded one by one
        return None
    for attribute in ("column_names", "columns"):  # of Arrow, which has both; the others
        names = getattr(X, attribute, None)
        if names is not None and not callable(names) and hasattr(X, "__getitem__"):
            listed = list(names)
            unique = len(set(map(str, listed))) == len(listed)
            return listed if listed and unique else None
    return None


def _kind(column: Iterable[Any]) -> str:
    """Say what items a column holds; "" if it holds numbers or nothing."""
    for value in islice(column, _LOOKED_AT):
        item = value.as_py() if hasattr(value, "as_py") else value
        if isinstance(item, (str, os.PathLike)):
            return "text"
        if isinstance(item, (bytes, bytearray, memoryview)):
            return "bytes"
        if is_picture(item):
            return "images"
        if isinstance(item, dict):
            return "dicts"
        if np.ndim(item) or hasattr(item, "__len__"):
            return "vectors" if np.ndim(item) == 1 else "arrays"
    return ""


def _values(column: Any) -> list[Any]:
    if hasattr(column, "to_pylist"):  # of Arrow
        return column.to_pylist()
    return list(column)


def _stacked(values: list[Any]) -> Any:
    """Return vectors as rows (n, d), and other items as they are."""
    if _kind(values) != "vectors" or any(value is None for value in values):
        return values
    lengths = sorted({len(value) for value in values})
    if len(lengths) > 1:
        raise ValueError(
            f"The vectors in X have different lengths, from {lengths[0]} to {lengths[-1]}. Pass "
            "vectors of one length."
        )
    return np.stack([np.asarray(value) for value in values])
