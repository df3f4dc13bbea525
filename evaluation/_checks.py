"""Input validation: every public function checks its arrays with these functions, once."""

import os
from collections.abc import Sized
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from ._arrays import as_array, known_values, of_one_type

SKIPPED = -1
"""Label of a skipped image. All scores leave out skipped images and count them."""

LARGEST_SEED = 2**32 - 1

_BLOCK = 2**22  # elements processed at once
_MOST_CLUSTERS = 2**24  # or as many as there are labels, if those are more


def check_rows(x: ArrayLike, name: str) -> NDArray:
    """Return ``x`` as a real array of shape (rows, features); values are not checked."""
    array = as_array(str(x) if isinstance(x, os.PathLike) else x)
    if array.dtype.kind in "US" and array.ndim < 2:
        raise ValueError(
            f"{name} is a path, or a list of names, expected embeddings: numbers of shape (rows, "
            "features), with one row per image. Embed the images first, with transform(images) of "
            "a fitted estimator."
        )
    if array.ndim != 2:
        raise ValueError(
            f"{name} has shape {array.shape}, expected (rows, features), with one row per image. "
            "Use x.reshape(len(x), -1) for arrays of other shapes, x[None] for a single row."
        )
    if array.dtype.kind not in "buif":
        raise ValueError(
            f"{name} has dtype {array.dtype}, expected real numbers. Convert it to float32."
        )
    if array.shape[1] == 0:
        raise ValueError(f"{name} has shape {array.shape}: each row needs at least one feature.")
    return array


def check_finite(
    x: NDArray, name: str, *, first_row: int = 0, rows: NDArray[np.int64] | None = None
) -> None:
    """Raise if a row holds NaN or infinity; the error names the first such row.

    ``rows`` are the row numbers in the whole array, for the error message.
    """
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        row = first_row + row if rows is None else int(rows[row])
        raise ValueError(
            f"{name} holds NaN or infinity (first in row {row}), expected finite numbers. Drop "
            "such "
            f"rows with {name}[np.isfinite({name}).all(axis=1)], or check how they were computed."
        )


def missing_rows(x: NDArray) -> NDArray[np.bool_]:
    """Return a mask of the rows that are entirely NaN, which mark skipped images, (n,)."""
    missing = np.zeros(len(x), bool)
    if x.dtype.kind == "f":
        step = max(1, _BLOCK // x.shape[1])
        for start in range(0, len(x), step):
            missing[start : start + step] = np.isnan(x[start : start + step]).all(axis=1)
    return missing


def check_cluster_labels(labels: ArrayLike, name: str) -> NDArray[np.int64]:
    """Return cluster ids as int64 of shape (n,), at least -1; -1 marks a skipped image."""
    array = check_1d(labels, name)
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has dtype {array.dtype}, expected integer cluster ids. Use "
            "labels.astype(int), "
            "or np.unique(labels, return_inverse=True)[1] for names."
        )
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:  # int64 would wrap
        raise ValueError(f"{name} holds {array.max()}, expected ids of at most {2**63 - 1}.")
    array = array.astype(np.int64, copy=False)
    if array.min() < SKIPPED:
        raise ValueError(
            f"{name} holds {array.min()}, expected ids of at least 0, or -1 for a skipped image. "
            "Other negative labels are not allowed."
        )
    return array


def check_1d(values: ArrayLike, name: str) -> NDArray:
    """Return ``values`` as an array of shape (n,) with n > 0; the only column of a table counts."""
    array = as_array(values)
    if array.ndim == 2 and array.shape[1] == 1:  # a table of one column, such as df[["label"]]
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"{name} has shape {array.shape}, expected (n_samples,), with one value per image. "
            "If the array holds similarities, take their argmax over axis 1."
        )
    if array.size == 0:
        raise ValueError(f"{name} is empty, expected at least one value.")
    return array


def check_classes(y: ArrayLike, name: str) -> tuple[NDArray, NDArray[np.bool_]]:
    """Return class labels (n,) of one type, and a mask of those that are known.

    None, NaN, NaT and the NA of pandas are missing classes; another class stands in their place.
    """
    array = check_1d(y, name)
    if array.dtype.kind == "c":
        raise ValueError(f"{name} has dtype {array.dtype}, expected numbers or names of classes.")
    known = known_values(array)
    if not known.any():
        raise ValueError(
            f"All {len(array)} classes in {name} are None or NaN, expected at least one class. If "
            f"{name} is optional, leave it out."
        )
    if array.dtype.kind in "mM":  # which no array of objects is compared with
        return array.astype(str), known
    if array.dtype.kind != "O":
        return array, known
    typed = of_one_type(array[known].tolist(), name)
    full = np.empty(len(array), typed.dtype)
    full[:] = typed[0]
    full[known] = typed
    return full, known


def check_n_clusters(n_clusters: int | None, labels: NDArray[np.int64]) -> int:
    """Return the number of clusters, as given or one more than the largest label.

    Raise if an id is not below it, or if it is so large that ids must be something else.
    """
    largest = int(labels.max())
    if n_clusters is None:
        if largest == SKIPPED:
            raise ValueError(
                f"All {len(labels)} labels are -1 (skipped), expected at least one cluster id."
            )
        given, n_clusters = f"labels hold {largest}", largest + 1
    else:
        n_clusters = check_count(n_clusters, "n_clusters")
        given = f"n_clusters={n_clusters}"
    if largest >= n_clusters:
        raise ValueError(
            f"labels hold {largest} with n_clusters={n_clusters}, expected ids below "
            "n_clusters. Pass the number of clusters of the model."
        )
    most = max(_MOST_CLUSTERS, len(labels))
    if n_clusters > most:
        raise ValueError(
            f"{given}, expected at most {most} clusters. Number the clusters from 0: "
            "np.unique(labels, return_inverse=True)[1]."
        )
    return n_clusters


def check_same_length(first: NDArray, second: NDArray, first_name: str, second_name: str) -> None:
    """Raise if two arrays differ in length."""
    if len(first) != len(second):
        raise ValueError(
            f"{first_name} has {len(first)} rows and {second_name} has {len(second)}, expected one "
            "row per image in both, in the same order."
        )


def check_images(images: object, rows: NDArray, name: str) -> None:
    """Raise unless ``images`` is a sequence of as many images as there are rows."""
    if isinstance(images, str | os.PathLike) or not isinstance(images, Sized):
        raise ValueError(
            f"images is of type {type(images).__name__}, expected a sequence of images, one per "
            "row "
            f"of {name}: arrays or opened pictures. For a folder, use near_duplicates or report of "
            "sklearn_excb.reporting."
        )
    check_same_length(rows, images, name, "images")  # pyright: ignore[reportArgumentType]


def check_comparable(train: NDArray, y_train: NDArray, test: NDArray, y_test: NDArray) -> None:
    """Raise if the two sets differ in the number of features or in the type of their classes."""
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train has {train.shape[1]} features and test {test.shape[1]}, expected the same "
            "number. Embed both with the same model."
        )
    if (y_train.dtype.kind in "US") != (y_test.dtype.kind in "US"):
        raise ValueError(
            f"y_train has dtype {y_train.dtype} and y_test {y_test.dtype}, expected classes named "
            "the same way in both. Convert one of them."
        )


def check_count(value: object, name: str, *, minimum: int = 1) -> int:
    """Return ``value`` as an int of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name}={value!r}, expected an integer of at least {minimum}.")
    return int(value)


def random_generator(random_state: int | np.random.RandomState | None) -> np.random.RandomState:
    """Return the generator of a ``random_state``, or raise an error that names the parameter."""
    try:
        return check_random_state(random_state)
    except ValueError as error:
        raise ValueError(
            f"random_state={random_state!r}, expected None, an integer from 0 to {LARGEST_SEED}, "
            "or a RandomState."
        ) from error


def check_positive(value: object, name: str) -> float:
    """Return ``value`` as a finite float above zero."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < np.inf:
        raise ValueError(f"{name}={value!r}, expected a finite number above 0.")
    return float(value)


def check_choice(value: object, name: str, choices: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}, expected one of {', '.join(map(repr, choices))}.")
