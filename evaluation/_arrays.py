"""Arrays of whatever is passed: tensors of any kind, masked arrays, classes of which some lack."""

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

_IN_NUMPY = ("float64", "float32", "float16")
_SQUARED = (1e-140, 1e150)  # norms whose squares float64 holds with all digits


def without_torch(x: Any) -> Any:
    """Return a tensor, or a list of tensors, as arrays; anything else as it is.

    The tensor may have any dtype, be on any device, need a gradient or be sparse.
    """
    if isinstance(x, (list, tuple)) and any(hasattr(each, "detach") for each in x):
        return [without_torch(each) for each in x]
    if not hasattr(x, "detach"):
        return x
    tensor: Any = x
    tensor = tensor.detach().cpu()
    tensor = tensor.to_dense() if "sparse" in str(tensor.layout) else tensor
    if tensor.is_floating_point() and str(tensor.dtype).removeprefix("torch.") not in _IN_NUMPY:
        tensor = tensor.float()  # bfloat16 and smaller ones
    return tensor.resolve_conj().resolve_neg().numpy()


def as_array(x: Any) -> NDArray:
    """Return an array of anything array-like; masked values become NaN, or None if not numbers."""
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        if x.ndim > 1 or x.dtype.kind == "f":
            return np.ma.filled(x.astype(np.float64), np.nan)
        values = np.asarray(x).astype(object)
        values[np.ma.getmaskarray(x)] = None
        return values
    try:
        array = np.asarray(without_torch(x))
    except ValueError as error:  # of NumPy
        raise ValueError(
            f"A {type(x).__name__} cannot be read as one array, expected a value or a row of one "
            f"length for each image ({error})."
        ) from error
    if array.dtype.kind == "V" and array.dtype.names is None:  # bfloat16 of JAX and TensorFlow
        return array.astype(np.float32)
    return array


def scaled(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rows (n, d) and their norms (n, 1), 1 for rows of zeros; the quotients are unit rows.

    Rows whose squares are beyond float64 are divided by their largest value first.
    """
    with np.errstate(over="ignore", under="ignore"):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
    low, high = _SQUARED
    beyond = ((norms < low) | (norms > high))[:, 0]
    if beyond.any():
        largest = np.abs(rows[beyond]).max(axis=1, keepdims=True)
        rows = rows.copy()
        rows[beyond] /= np.where(largest > 0, largest, 1)
        norms[beyond] = np.linalg.norm(rows[beyond], axis=1, keepdims=True)
    return rows, np.where(norms > 0, norms, 1)


def known_values(values: NDArray) -> NDArray[np.bool_]:
    """Return a mask of the values that are not missing: None, NaN, NaT or the NA of pandas."""
    if values.dtype.kind == "f":
        return ~np.isnan(values)
    if values.dtype.kind in "mM":
        return ~np.isnat(values)
    if values.dtype.kind == "O":
        return np.array([not _is_missing(value) for value in values], bool)
    return np.ones(len(values), bool)


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)
    except TypeError:  # the NA of pandas is neither true nor false
        return True


def of_one_type(values: list[Any], name: str) -> NDArray:
    """Return values as an array that can be sorted: of text or numbers where all are.

    Raises
    ------
    ValueError
        If they cannot be sorted.
    """
    if all(isinstance(value, (str, np.str_)) for value in values):
        return np.array(values)
    if all(isinstance(value, (Real, np.bool_)) for value in values):
        return np.array(values)
    array = np.empty(len(values), object)
    array[:] = values
    try:
        sorted(set(values))
    except TypeError:
        types = ", ".join(sorted({type(value).__name__.rstrip("_") for value in values}))
        raise ValueError(
            f"{name} holds values of several types ({types}), expected one type that can be "
            "sorted. "
            "Convert them to text: [str(value) for value in values]."
        ) from None
    return array
