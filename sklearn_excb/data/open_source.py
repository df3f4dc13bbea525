"""Open any supported collection as one indexed source of images.

Opening a source runs all checks that need no decoding.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sklearn_excb.data.archives import Member, is_archive, list_members
from sklearn_excb.data.columns import (
    is_bytes,
    is_empty,
    is_file,
    is_item,
    is_list_of_items,
    is_missing,
    is_path,
    n_dimensions,
    plain_collection,
)
from sklearn_excb.data.folders import IMAGE_SUFFIXES, Listing, check_files, list_images
from sklearn_excb.data.image_files import EncodedPicture, open_file
from sklearn_excb.data.input_errors import for_dict, looks_like_path
from sklearn_excb.data.pixels import is_picture, tensor_array
from sklearn_excb.data.sources import ArrayImages, ItemImages
from sklearn_excb.exceptions import ImageError, SkippedImageWarning
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.runtime.devices import available_memory

_IMAGE_KEYS = ("image", "img", "pixel_values")  # keys of the image in an item that is a dict
_FILE_KEYS = ("bytes", "path")  # keys of an image that Hugging Face has not decoded
_FREE_MEMORY_SHARE = 0.05  # share of the memory that the images of a stream leave free
_MEMORY_CHECK_INTERVAL = 64  # images of a stream between two checks of the free memory

_file_object_lock = threading.Lock()  # a file object of the user has only one position


def are_rows(X: Any) -> bool:
    """Return whether X holds feature vectors, that is, makes an array of at most two dimensions.

    Folders, data sets and lists of images, paths or data set items are not feature vectors.
    """
    items = _items(X)
    if items is not None:
        first = next((item for item in items if not is_empty(item)), "")
        return not (is_path(first) or is_item(first)) and n_dimensions(first) <= 1
    if hasattr(X, "__array__") and not hasattr(X, "ndim"):
        X = np.asarray(X)
    return getattr(X, "ndim", 3) <= 2


def _items(X: Any) -> list[Any] | None:
    """Return the elements of a list, a tuple or a 1-D array of objects; None for anything else."""
    if isinstance(X, (list, tuple)):
        return X if isinstance(X, StreamPart) else list(X)
    if hasattr(X, "__array__") and not isinstance(X, Tensor) and getattr(X, "ndim", 1) == 1:
        array = np.asarray(X)
        if array.ndim == 1 and array.dtype.kind in "OU":
            return array.tolist()
    return None


def is_stream(X: Any) -> bool:
    """Return whether X can only be iterated, such as an iterable data set or a generator.

    A collection with an index is not a stream, and neither is a set, which has no fixed order.
    """
    other = _can_be_indexed(X) or is_path(X) or is_file(X) or hasattr(X, "__array__")
    return hasattr(X, "__iter__") and not other and not isinstance(X, (set, frozenset, DataLoader))


def _can_be_indexed(X: Any) -> bool:
    # an IterableDataset inherits a method that only raises
    has_both = hasattr(X, "__len__") and hasattr(X, "__getitem__")
    return has_both and not isinstance(X, IterableDataset)


class StreamPart(list[Any]):
    """Consecutive images of a stream, with the position of the first image in the stream."""

    first: int


def stream_parts(X: Any, size: int) -> Iterator[StreamPart]:
    """Yield the images of a stream, ``size`` at a time, and keep no reference to earlier parts."""
    images = map(_without_label, X)
    first = 0
    while part := StreamPart(islice(images, size)):
        part.first = first
        first += len(part)
        yield part
        del part


def open_source(
    X: Any, n_channels: int | None = None, on_error: str = "raise"
) -> ArrayImages | ItemImages:
    """Open images in any form that :class:`~sklearn_excb.ExCBEstimator` takes.

    Parameters
    ----------
    X : array, tensor, list, folder, list of paths, or map-style data set
        See :meth:`~sklearn_excb.ExCBEstimator.fit`; not 2-D rows.
    n_channels : int, optional
        Number of channels of the source. Images that are opened one by one are converted to 1 or
        3 channels. The default for files is 3.
    on_error : {"raise", "skip"}, default="raise"
        Treatment of images that are opened one by one and cannot be used.

    Raises
    ------
    ValueError
        If X is empty or does not hold images.
    ImageError
        If an image cannot be read or does not match the others.
    """
    X = plain_collection(X)
    if is_path(X):
        if is_archive(X):
            return _open_archives([X], n_channels, on_error)
        return _open_folder(list_images(X, on_error), n_channels, on_error)
    items = _items(X)
    if items is not None:
        return _open_list(items, n_channels, on_error)
    if isinstance(X, Tensor):
        return ArrayImages(tensor_array(X), n_channels)
    if hasattr(X, "__array__"):
        return ArrayImages(np.asarray(X), n_channels)
    if is_bytes(X) or is_file(X) or is_picture(X):
        if is_bytes(X) and looks_like_path(bytes(X)):
            raise TypeError("X is a path as bytes. Pass text: os.fsdecode(X).")
        what = "image" if is_picture(X) else "file"
        raise TypeError(
            f"X is one {what} ({type(X).__name__}), not a collection. Pass a list: [X]."
        )
    if isinstance(X, Mapping) and X and 0 not in X:
        raise TypeError(for_dict(X))
    if _can_be_indexed(X):
        if not len(X):
            raise ValueError("The data set is empty. Pass one that holds images.")
        # a data set of the user may have state: only one thread reads it unless the user asks
        return ItemImages(
            X, _image_of_item, n_channels=n_channels, reads_in_parallel=False, on_error=on_error
        )
    if isinstance(X, DataLoader):
        raise TypeError("X is a DataLoader, which yields batches. Pass its data set: X.dataset.")
    if is_stream(X):
        return _open_list(_all_of_stream(X), n_channels, on_error)
    raise TypeError(
        f"X of type {type(X).__name__} is not a collection of images. Pass an array (n, h, w) or "
        "(n, h, w, c), 2-D rows (n, d), a folder, a tar archive, a list of paths, images "
        "or arrays, or a data set that can be indexed or iterated."
    )


def _all_of_stream(X: Any) -> list[Any]:
    """Read a whole stream into memory; encoded images stay encoded.

    Raises
    ------
    ValueError
        If the images do not fit into memory.
    TypeError
        If the stream yields rows.
    """
    kept: list[Any] = []
    least = _FREE_MEMORY_SHARE * psutil.virtual_memory().total
    for part in stream_parts(X, _MEMORY_CHECK_INTERVAL):
        kept += part
        if available_memory(torch.device("cpu")) < least:
            raise ValueError(
                "X cannot be indexed, so all its images have to fit into memory, which is full "
                f"after {len(kept):,} images. Pass a collection with an index: a folder, a list of "
                "files, tar archives, or a data set with __len__ and __getitem__."
            )
    if are_rows(kept):
        raise TypeError("X yields rows one by one. Pass them as one array: np.stack(list(X)).")
    return kept


def _open_folder(found: Listing, n_channels: int | None, on_error: str) -> ItemImages:
    names = found.images
    source = ItemImages(
        names, open_file, names=names, n_channels=n_channels or 3, on_error=on_error
    )
    source.ignored, source.unreachable = found.ignored, found.unreachable
    return source


def _open_archives(
    paths: Sequence[str | os.PathLike[str]], n_channels: int | None, on_error: str
) -> ItemImages:
    found = list_members(paths, on_error)
    names = [member.path for member in found.images]
    source = ItemImages(
        found.images, Member.open, names=names, n_channels=n_channels or 3, on_error=on_error
    )
    source.ignored, source.unreachable = found.ignored, found.unreachable
    if found.replaced:
        why = "a later member of the archive has the same name"
        source.ignored += [f"{path} ({why})" for path in found.replaced]
        warn_caller(
            f"{len(found.replaced):,} images of archives are not among the {len(names):,} images "
            f"of X, because {why}. The first is {found.replaced[0]}",
            SkippedImageWarning,
        )
    return source


def _open_list(items: list[Any], n_channels: int | None, on_error: str) -> ItemImages:
    if not items:
        raise ValueError("X is empty. Pass at least one image.")
    first = getattr(items, "first", None)  # position of the first item, if X is part of a stream
    missing = [place for place, item in enumerate(items) if is_empty(item)]
    if missing and on_error == "raise" and first is None:
        value = _unwrapped(items[missing[0]])
        raise ImageError(
            f"Image {missing[0]} of {len(items):,}: {value} is a missing value, not an image "
            f"({len(missing):,} in all). Leave such rows out (X.dropna() in pandas), or pass "
            'on_error="skip" (--on-error skip).'
        )
    if not all(is_path(item) or is_missing(item) for item in items) or len(missing) == len(items):
        # Pillow loads pixels into the PIL image itself, which several threads must not do at once
        alone = any(is_picture(_unwrapped(item)) for item in items)
        return ItemImages(
            items,
            _image_of_item,
            n_channels=n_channels,
            reads_in_parallel=not alone,
            on_error=on_error,
            first=first,
        )
    archives = [is_path(item) and is_archive(item) for item in items]
    if all(archives):
        return _open_archives(items, n_channels, on_error)
    if any(archives):
        raise ValueError("X holds tar archives and other files. Pass only one of the two kinds.")
    names = ["" if is_missing(path) else os.fspath(path) for path in items]
    if on_error == "raise" and first is None:
        check_files(names)
    return ItemImages(
        items,
        _image_of_item,
        names=names,
        n_channels=n_channels or 3,
        on_error=on_error,
        first=first,
    )


def _without_label(item: Any) -> Any:
    """Return the part of a stream's item that holds the image, without the label."""
    if isinstance(item, dict):
        return {key: item[key] for key in _image_keys(item)} or item
    return item[:1] if isinstance(item, tuple) else item


def _image_keys(item: dict[Any, Any]) -> list[Any]:
    """Return the keys of a dict that hold an image; several keys if the choice is ambiguous.

    A key holds an image if it has one of the usual names, is a suffix of image files ("jpg") or
    ends in such a suffix ("left.jpg"), as in WebDataset.
    """
    there = [key for key in item if not is_missing(item[key])]
    if named := [key for key in _IMAGE_KEYS if key in there]:
        return named[:1]
    suffixed = [key for key in there if f".{key}".lower().endswith(IMAGE_SUFFIXES)]
    plain = [key for key in suffixed if "." not in str(key)]
    if found := plain or suffixed or [key for key in _FILE_KEYS if key in there][:1]:
        return found
    return there if len(item) == 1 and _holds_image(item[there[0]] if there else None) else []


def _holds_image(value: Any) -> bool:
    return is_path(value) or is_item(value) or np.ndim(value) >= 2


def _unwrapped(item: Any) -> Any:
    """Return the image of an item: the first of a tuple, an entry of a dict, or the item itself."""
    while True:
        if isinstance(item, tuple) and item:
            item = item[0]
        elif isinstance(item, dict) and len(keys := _image_keys(item)) == 1:
            item = item[keys[0]]
        else:
            return item


def _image_of_item(item: Any) -> Any:
    """Open the image of an item."""
    image = _unwrapped(item)
    if isinstance(image, dict):
        if keys := _image_keys(image):
            raise ImageError(f"a dict with several images: {keys}. Keep one of these keys.")
        if empty := [key for key in (*_IMAGE_KEYS, *_FILE_KEYS) if key in image]:
            value = image[empty[0]]
            raise ImageError(f"the entry {empty[0]!r} of the dict is {value}, not an image.")
        raise ImageError(
            f"a dict without an image. Use the key 'image' or 'jpg'; the keys are {list(image)}. "
            "Pass vectors as one array (n, d)."
        )
    if is_missing(image):
        raise ImageError(f"{image} is a missing value, not an image.")
    if is_list_of_items(image):
        raise ImageError("a list is not an image. Pass its first item: [row[0] for row in X].")
    if is_path(image):
        return open_file(image)
    if is_bytes(image):
        return _encoded(bytes(image))
    return _read_file(image) if is_file(image) else image


def _encoded(content: bytes) -> EncodedPicture:
    try:
        return EncodedPicture(content)
    except ImageError:
        if looks_like_path(content):
            raise ImageError(
                "a path as bytes, not the bytes of an image. Pass text: os.fsdecode(path)."
            ) from None
        raise


def _read_file(file: Any) -> EncodedPicture:
    """Read the image of an open file from the beginning of the file."""
    with _file_object_lock:
        file.seek(0)
        return EncodedPicture(file.read())
