"""Anything a user has, as one indexed source of images or rows.

A source has a length and gives samples by index: images as tensors (c, h, w) of uint8, uint16 or
float in [0, 1], rows as they came. What can be checked without decoding is checked when the source
is opened; every error names the item.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.folders import list_images
from sklearn_excb.pixels import (
    ImageError,
    channels_first,
    check_layout,
    check_pixels,
    image_tensor,
    is_gray,
    is_picture,
    tensor_array,
)
from sklearn_excb.resampling import to_unit

_PROBES = 64  # images looked at to learn what a collection is like
_STATISTICS = 1024  # images that channel statistics are taken from


class Shape(NamedTuple):
    """Height and width of an image, in pixels."""

    height: int
    width: int


class Rows:
    """Feature vectors (n, d), already validated."""

    kind: Literal["images", "rows"] = "rows"
    names: list[str] | None = None
    reads_in_parallel = False

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        self.n_channels = array.shape[1]

    def __len__(self) -> int:
        return len(self._array)

    def load(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Rows (B, d), in the dtype they came in."""
        return self._array[indices]


class ArrayImages:
    """Images of one size in an array: (n, h, w) gray or (n, h, w, c)."""

    kind: Literal["images", "rows"] = "images"
    names: list[str] | None = None
    reads_in_parallel = False

    def __init__(self, array: npt.NDArray[Any], n_channels: int | None = None) -> None:
        self._array = check_pixels(check_layout(array, n_channels))
        self.n_channels = 1 if array.ndim == 3 else array.shape[3]

    def __len__(self) -> int:
        return len(self._array)

    def load(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Images (B, c, h, w)."""
        return channels_first(self._array[indices])

    def shape(self, index: int) -> Shape:
        """Shape of every image."""
        return Shape(*self._array.shape[1:3])


class ItemImages:
    """Images that are opened one by one: files, a list, or a map-style data set.

    Parameters
    ----------
    items : Sequence
        Whatever ``open_item`` opens.
    open_item : callable
        From an item to a PIL image, an array (h, w[, c]) or a tensor.
    names : list of str, optional
        Paths, where the items are files.
    n_channels : int, optional
        1 or 3 to convert images to. By default 3 for pictures, unless all those looked at are
        gray, and what the first item has for arrays.
    reads_in_parallel : bool, default=True
        Whether ``open_item`` is safe in several threads.
    """

    kind: Literal["images", "rows"] = "images"

    def __init__(
        self,
        items: Any,
        open_item: Callable[[Any], Any],
        *,
        names: list[str] | None = None,
        n_channels: int | None = None,
        reads_in_parallel: bool = True,
    ) -> None:
        self.names = names
        self.reads_in_parallel = reads_in_parallel
        self._items = items
        self._open_item = open_item
        self._wanted = self._pictures_channels() if n_channels is None else n_channels
        self.n_channels = 0
        self.n_channels = self._wanted or self.load_one(0).shape[0]

    def __len__(self) -> int:
        return len(self._items)

    def load_one(self, index: int) -> Tensor:
        """Image (c, h, w)."""
        image = self._named(index, lambda: image_tensor(self._open(index), self._wanted))
        if self.n_channels and image.shape[0] != self.n_channels:
            raise ImageError(
                f"Image {self._name(index)} has {image.shape[0]} channels, others "
                f"{self.n_channels}: mixed channel counts. Convert the images to one mode, or pass "
                "n_channels=1 or n_channels=3."
            )
        return image

    def shape(self, index: int) -> Shape:
        """Shape of an image; of a picture without decoding it."""
        image = self._named(index, lambda: self._open(index))
        if is_picture(image):
            return Shape(image.height, image.width)
        return Shape(*self.load_one(index).shape[1:])

    def _pictures_channels(self) -> int | None:
        if not is_picture(self._named(0, lambda: self._open(0))):
            return None
        opened = (self._named(i, lambda i=i: self._open(i)) for i in _probes(self))
        return 1 if all(is_picture(image) and is_gray(image) for image in opened) else 3

    def _open(self, index: int) -> Any:
        return self._open_item(self._items[index])

    def _name(self, index: int) -> str:
        return self.names[index] if self.names else f"{index} of {len(self)}"

    def _named(self, index: int, read: Callable[[], Any]) -> Any:
        """Run ``read``; whatever goes wrong, the error names the image."""
        try:
            return read()
        except ImageError as error:
            raise ImageError(f"Image {self._name(index)}: {error}") from error
        except Exception as error:
            raise ImageError(f"Image {self._name(index)} cannot be read: {error}") from error


Source = Rows | ArrayImages | ItemImages


def _probes(source: Source, n_probes: int = _PROBES) -> list[int]:
    """Indices of up to ``n_probes`` samples, evenly spaced."""
    spaced = np.linspace(0, len(source) - 1, n_probes)
    return np.unique(spaced.astype(np.int64)).tolist()


def _each(source: ArrayImages | ItemImages, indices: Sequence[int]) -> Iterator[Tensor]:
    """Yield images (c, h, w), one in memory at a time."""
    for index in indices:
        if isinstance(source, ArrayImages):
            yield source.load(np.array([index]))[0]
        else:
            yield source.load_one(index)


def typical_shape(source: ArrayImages | ItemImages) -> Shape:
    """Median height and width over up to 64 images, evenly spaced in the source."""
    if isinstance(source, ArrayImages):
        return source.shape(0)
    shapes = np.array([source.shape(index) for index in _probes(source)])
    height, width = np.median(shapes, axis=0)
    return Shape(int(height), int(width))


def channel_statistics(
    source: ArrayImages | ItemImages,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over up to 1,024 images, in [0, 1]."""
    moments = torch.zeros(2, source.n_channels, dtype=torch.float64)
    n_pixels = 0
    for image in _each(source, _probes(source, _STATISTICS)):
        pixels = to_unit(image).flatten(1).double()
        moments += torch.stack([pixels.sum(dim=1), (pixels**2).sum(dim=1)])
        n_pixels += pixels.shape[1]
    mean, square = moments / n_pixels
    std = (square - mean**2).clamp(min=1e-6).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def are_rows(X: Any) -> bool:
    """Whether X is feature vectors: anything that makes a 2-D array (or one that never could).

    Lists of images, of paths, of a data set's items, folders and data sets are not.
    """
    items = _items(X)
    if items is not None:
        first = items[0] if items else ""
        return not (_is_path(first) or _is_item(first)) and np.ndim(first) <= 1
    if hasattr(X, "__array__") and not hasattr(X, "ndim"):
        X = np.asarray(X)
    return getattr(X, "ndim", 3) <= 2


def _items(X: Any) -> list[Any] | None:
    """List of what a list, a tuple or a 1-D array of objects holds; None for anything else."""
    if isinstance(X, (list, tuple)):
        return list(X)
    if hasattr(X, "__array__") and not isinstance(X, Tensor) and getattr(X, "ndim", 1) == 1:
        array = np.asarray(X)
        if array.ndim == 1 and array.dtype.kind in "OU":
            return array.tolist()
    return None


def _is_path(item: Any) -> bool:
    return isinstance(item, (str, os.PathLike))


def _is_item(item: Any) -> bool:
    """Whether it is a picture, or an item of a data set: (image, label, ...) or a dict."""
    if isinstance(item, tuple) and item:
        return _is_item(item[0]) or np.ndim(item[0]) >= 2
    return is_picture(item) or isinstance(item, dict)


def open_source(X: Any, n_channels: int | None = None) -> ArrayImages | ItemImages:
    """Open images of any kind that :class:`~sklearn_excb.ExCBEstimator` takes.

    Parameters
    ----------
    X : array, tensor, list, folder, list of paths, or map-style data set
        See :meth:`~sklearn_excb.ExCBEstimator.fit`; not 2-D rows.
    n_channels : int, optional
        Channels that are wanted; pictures and lists are converted to 1 or 3. Files default to 3.

    Raises
    ------
    ValueError
        If there is nothing in it, or what is in it are not images.
    ImageError
        If an image cannot be read or does not fit the others.
    """
    if _is_path(X):
        return _open_paths(list_images(X), n_channels)
    items = _items(X)
    if items is not None:
        return _open_list(items, n_channels)
    if isinstance(X, Tensor):
        return ArrayImages(tensor_array(X), n_channels)
    if hasattr(X, "__array__"):
        return ArrayImages(np.asarray(X), n_channels)
    if hasattr(X, "__len__") and hasattr(X, "__getitem__"):
        if not len(X):
            raise ValueError("The data set is empty: there is no image in it.")
        # a data set of the user's may keep state: it is read from one thread unless asked
        return ItemImages(X, _image_of_item, n_channels=n_channels, reads_in_parallel=False)
    raise TypeError(
        f"X of type {type(X).__name__} is not a collection of images. Pass an array (n, h, w) or "
        "(n, h, w, c), 2-D rows (n, d), a folder, a list of paths, images or arrays, or a "
        "data set with __len__ and __getitem__."
    )


def _open_paths(paths: Sequence[str | os.PathLike[str]], n_channels: int | None) -> ItemImages:
    names = [os.fspath(path) for path in paths]
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} image files do not exist, the first: {missing[0]}"
        )
    return ItemImages(names, _open_file, names=names, n_channels=n_channels or 3)


def _open_list(items: list[Any], n_channels: int | None) -> ItemImages:
    if not items:
        raise ValueError("X is empty: there is no image in it.")
    if all(_is_path(item) for item in items):
        return _open_paths(items, n_channels)
    return ItemImages(items, _image_of_item, n_channels=n_channels)


def _open_file(name: str) -> Any:
    """Open a picture: its header is read now, its pixels when they are asked for."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    content = Path(name).read_bytes()  # so that no file stays open
    if not content:
        raise ImageError("the file is empty.")
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ImageError(
            "not an image of a format that is known, or its beginning is broken."
        ) from None
    if image.getexif().get(0x0112, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _image_of_item(item: Any) -> Any:
    """Image of an item: itself, the first of a tuple, the entry "image" of a dict, a file."""
    if isinstance(item, dict):
        for key in ("image", "img", "pixel_values"):
            if key in item:
                return item[key]
        raise ImageError(f"a dict without an 'image' entry, but with {sorted(item)}.")
    image = item[0] if isinstance(item, tuple) and item else item
    return _open_file(os.fspath(image)) if isinstance(image, (str, os.PathLike)) else image
