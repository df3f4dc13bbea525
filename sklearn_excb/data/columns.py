"""Items (paths, pictures, encoded images, vectors), also in the column of a table; odd arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from sklearn_excb.data.pixels import check_dense, is_picture

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
        If a table has several columns and one holds items. The message names that column. If a
        table is not computed yet, or an array has fields.
    ValueError
        If values of X are masked, vectors in a column differ in length, or X is a tensor without
        plain values.
    """
    check_unmasked(X)
    if isinstance(X, Tensor):
        check_dense(X)
    if hasattr(X, "collect_schema") and hasattr(X, "collect"):  # of polars
        raise TypeError(f"X is a {type(X).__name__}, which is not computed yet. Pass X.collect().")
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
        if X.dtype.names:
            first = X.dtype.names[0]
            raise TypeError(
                f"X is an array with named fields. Pass one of them, X[{first!r}], or rows of "
                "numbers: numpy.lib.recfunctions.structured_to_unstructured(X)."
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
    raise TypeError(
        f"X is a table of {len(columns)} columns: {held}. Pass one of them: "
        f"{' or '.join(list(kinds)[:_NAMED])}. To fit rows of numbers, leave these columns out."
    )


def check_unmasked(X: Any) -> None:
    """Refuse an array with masked values, because NumPy would use the values under the mask."""
    if isinstance(X, np.ma.MaskedArray) and np.ma.is_masked(X):
        raise ValueError(
            f"X is a masked array with {np.ma.count_masked(X):,} masked values. Pass "
            "X.filled(value), or leave those samples out."
        )


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN, NaT or the NA of pandas."""
    if isinstance(value, (float, np.generic, datetime)):  # pandas' NaT is a datetime
        return bool(value != value)
    return value is None or type(value).__name__ == "NAType"


def is_path(item: Any) -> bool:
    """Return whether an item is a path."""
    return isinstance(item, (str, os.PathLike))


def is_bytes(item: Any) -> bool:
    """Return whether an item holds bytes, such as those of a file."""
    return isinstance(item, (bytes, bytearray, memoryview))


def is_empty(item: Any) -> bool:
    """Return whether an item is missing or (missing, label, ...), an item of unknown kind."""
    return is_missing(item[0] if isinstance(item, tuple) and item else item)


def is_item(item: Any) -> bool:
    """Return whether it is an image or an item of a data set: (image, label, ...) or a dict."""
    if isinstance(item, tuple) and item:
        return is_path(item[0]) or is_item(item[0]) or n_dimensions(item[0]) >= 2
    one = is_picture(item) or isinstance(item, dict) or is_bytes(item) or is_file(item)
    return one or is_list_of_items(item)


def is_list_of_items(item: Any) -> bool:
    """Return whether it is a list that begins with an image, or with text that is no number."""
    if not isinstance(item, list) or not item:
        return False
    with suppress(ValueError, TypeError):  # numbers may be text
        float(item[0])
        return False
    return is_path(item[0]) or is_item(item[0])


def is_file(item: Any) -> bool:
    """Return whether an item is an open file."""
    return hasattr(item, "read") and hasattr(item, "seek")


def n_dimensions(item: Any) -> int:
    """Return the number of dimensions; 2 for lists of different lengths."""
    try:
        return np.ndim(item)
    except ValueError:
        return 2


def _column_names(X: Any) -> list[Any] | None:
    """Return the names of a table's columns; None for anything else, such as a data set."""
    # Hugging Face decodes the items of its data sets one by one; a dict of splits is no table
    if hasattr(X, "features") or isinstance(X, Mapping):
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
        if is_path(item):
            return "text"
        if is_bytes(item):
            return "bytes"
        if is_picture(item):
            return "images"
        if isinstance(item, dict):
            return "dicts"
        if (n := n_dimensions(item)) or hasattr(item, "__len__"):
            return "vectors" if n == 1 else "arrays"
    return ""


def _values(column: Any) -> Any:
    if getattr(getattr(column, "type", None), "shape", None):  # tensors of Arrow
        whole = column.combine_chunks() if hasattr(column, "combine_chunks") else column
        return whole.to_numpy_ndarray()
    if hasattr(column, "to_pylist"):  # of Arrow
        return column.to_pylist()
    return list(column)


def _stacked(values: Any) -> Any:
    """Return vectors as rows (n, d), and other items as they are."""
    if _kind(values) != "vectors" or any(map(is_missing, values)):
        return values
    lengths = sorted({len(value) for value in values})
    if len(lengths) > 1:
        raise ValueError(
            f"The vectors in X have different lengths, from {lengths[0]} to {lengths[-1]}. Pass "
            "vectors of one length."
        )
    rows = np.stack([np.asarray(value) for value in values])
    if rows.dtype == object and rows.size and n_dimensions(rows.flat[0]):
        raise ValueError("The lists in X hold lists. Pass them as an array: np.array([*X]).")
    return rows
