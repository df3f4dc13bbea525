"""Anything a user has, as one indexed source of images or rows.

A source has a length and gives samples by index: images as tensors (c, h, w) of uint8, uint16 or
float in [0, 1], rows as a float32 tensor (d,). What can be checked without decoding is checked
when the source is opened; every error names the item.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.color import to_gray
from sklearn_excb.resampling import to_unit

_FORMATS = "avif bmp gif jfif jp2 jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
IMAGE_SUFFIXES = frozenset("." + name for name in _FORMATS.split())
_PROBES = 64  # images looked at to learn what a collection is like
_BLOCK = 1 << 24  # pixels checked at a time


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


class Source(Protocol):
    """An indexed collection of samples."""

    kind: Literal["images", "rows"]
    n_channels: int  # features for rows
    reads_in_parallel: bool  # whether reading costs time and is safe in several threads

    def __len__(self) -> int: ...

    def load(self, indices: npt.NDArray[np.int64]) -> Tensor | list[Tensor]:
        """Samples as one tensor (B, c, h, w) or (B, d), or as a list where sizes differ."""
        ...

    def names(self) -> list[str]:
        """Return a name for each sample: its path, or its index."""
        ...


class Shape(NamedTuple):
    """Typical height and width of the images of a collection, in pixels."""

    height: int
    width: int


class Rows:
    """Feature vectors (n, d), already validated."""

    kind: Literal["images", "rows"] = "rows"
    reads_in_parallel = False

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        self.n_channels = array.shape[1]

    def __len__(self) -> int:
        return len(self._array)

    def load(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Rows (B, d), float32."""
        return torch.from_numpy(np.ascontiguousarray(self._array[indices], dtype=np.float32))

    def names(self) -> list[str]:
        """Indices as text."""
        return [str(i) for i in range(len(self))]


class ArrayImages:
    """Images of one size in an array or tensor: (n, h, w) gray or (n, h, w, c)."""

    kind: Literal["images", "rows"] = "images"
    reads_in_parallel = False

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = _check_pixels(_check_layout(array))
        self.n_channels = 1 if array.ndim == 3 else array.shape[3]

    def __len__(self) -> int:
        return len(self._array)

    def load(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Images (B, c, h, w) in the dtype of the array; float64 as float32."""
        images = np.ascontiguousarray(self._array[indices])
        return _channels_first(images[..., None] if images.ndim == 3 else images)

    def names(self) -> list[str]:
        """Indices as text."""
        return [str(i) for i in range(len(self))]


class ItemImages:
    """Images that are opened one by one: files, a list, or a map-style data set.

    Parameters
    ----------
    items : Sequence
        Whatever ``open_item`` opens.
    open_item : callable
        From an item to a PIL image, an array (h, w[, c]) or a tensor (h, w[, c]).
    names : sequence of str
        What each item is called in messages.
    n_channels : int or None
        1 or 3 to convert images to; None to take what the first item has.
    reads_in_parallel : bool, default=True
        Whether ``open_item`` is safe in several threads.
    """

    kind: Literal["images", "rows"] = "images"

    def __init__(
        self,
        items: Any,
        open_item: Callable[[Any], Any],
        names: Sequence[str],
        n_channels: int | None,
        *,
        reads_in_parallel: bool = True,
    ) -> None:
        self.reads_in_parallel = reads_in_parallel
        self._items = items
        self._open = open_item
        self._names = names
        self._wanted = n_channels
        if n_channels is None:
            self.n_channels = self._load_one(0, None).shape[0]
        else:
            self.n_channels = n_channels

    def __len__(self) -> int:
        return len(self._items)

    def names(self) -> list[str]:
        """Paths, or indices as text."""
        return list(self._names)

    def load(self, indices: npt.NDArray[np.int64]) -> list[Tensor]:
        """Images (c, h, w), each of its own size."""
        return [self._load_one(int(i), self.n_channels) for i in indices]

    def _load_one(self, index: int, n_channels: int | None) -> Tensor:
        name = self._names[index]
        try:
            image = _to_tensor(self._open(self._items[index]), self._wanted)
        except ImageError as error:
            raise ImageError(f"Image {name}: {error}") from error
        except Exception as error:
            raise ImageError(f"Image {name} cannot be read: {error}") from error
        if n_channels is not None and image.shape[0] != n_channels:
            raise ImageError(
                f"Image {name} has {image.shape[0]} channels, others {n_channels}: mixed channel "
                "counts. Convert the images to one mode, or pass n_channels=1 or n_channels=3."
            )
        return image


def are_rows(X: Any) -> bool:
    """Whether X is feature vectors: anything that makes a 2-D array (or one that never could).

    Lists of images, of paths, folders and data sets are not.
    """
    if isinstance(X, (list, tuple)) and len(X):
        first = X[0]
        if isinstance(first, (str, os.PathLike)) or hasattr(first, "convert"):
            return False
        return np.ndim(first) <= 1
    if isinstance(X, np.ndarray) and X.ndim == 1:
        return not (X.dtype.kind == "U" or (X.dtype == object and not are_rows(list(X))))
    if hasattr(X, "__array__") and not hasattr(X, "ndim"):
        X = np.asarray(X)
    return getattr(X, "ndim", 3) <= 2


def typical_shape(source: Source) -> Shape:
    """Median height and width over up to 64 images, evenly spaced in the source."""
    if isinstance(source, ArrayImages):
        return Shape(*source._array.shape[1:3])
    chosen = np.unique(np.linspace(0, len(source) - 1, _PROBES).astype(np.int64))
    sizes = [image.shape[1:] for image in source.load(chosen)]
    height, width = np.median(np.array(sizes), axis=0)
    return Shape(int(height), int(width))


def channel_statistics(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over up to 1,024 images, in [0, 1]."""
    chosen = np.unique(np.linspace(0, len(source) - 1, 1024).astype(np.int64))
    pixels = torch.cat([to_unit(image).flatten(1) for image in source.load(chosen)], dim=1)
    std, mean = torch.std_mean(pixels.double(), dim=1)
    return tuple(mean.tolist()), tuple(std.clamp(min=1e-3).tolist())


def open_source(X: Any, n_channels: int | None = None) -> Source:
    """Open images of any kind that :class:`~sklearn_excb.ExCBEstimator` takes.

    Parameters
    ----------
    X : array, tensor, list, folder, list of paths, or map-style data set
        See :meth:`~sklearn_excb.ExCBEstimator.fit`; not 2-D rows.
    n_channels : int, optional
        Channels that are wanted; PIL images and files are converted to 1 or 3. Files default
        to 3.

    Raises
    ------
    ValueError
        If there is nothing in it, or what is in it are not images.
    ImageError
        If an image cannot be read or does not fit the others.
    """
    if isinstance(X, (str, os.PathLike)):
        return _open_paths(list_images(X), n_channels)
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    if isinstance(X, np.ndarray) and X.dtype != object:
        return ArrayImages(X)
    if isinstance(X, (list, tuple, np.ndarray)):
        return _open_list(list(X), n_channels)
    if hasattr(X, "__len__") and hasattr(X, "__getitem__"):
        names = [f"item {i}" for i in range(len(X))]
        if not names:
            raise ValueError("The data set is empty: there is no image to learn from.")
        # a data set of the user's may keep state: it is read from one thread unless asked
        return ItemImages(X, _image_of_item, names, n_channels, reads_in_parallel=False)
    raise TypeError(
        f"X of type {type(X).__name__} is not a collection of images. Pass an array (n, h, w) or "
        "(n, h, w, c), 2-D rows (n, d), a folder, a list of paths, images or arrays, or a "
        "data set with __len__ and __getitem__."
    )


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files below a folder, in natural order (``img2`` before ``img10``).

    Hidden files and folders and files without the ending of an image are left out; links are
    followed, but no folder is entered twice.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    ValueError
        If no image file is in it.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"No such folder: {root}")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file. Pass its folder, or a list of paths.")
    found, n_other, seen = [], 0, set()
    for place, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [f for f in folders if not f.startswith(".")]
        if real in seen:
            continue
        seen.add(real)
        for file in files:
            if Path(file).suffix.lower() in IMAGE_SUFFIXES and not file.startswith("."):
                found.append(Path(place, file))
            else:
                n_other += 1
    if not found:
        raise ValueError(
            f"No image file in {root} ({n_other} other files). Files ending in "
            f"{' '.join(sorted(IMAGE_SUFFIXES))} are looked for, in all its folders."
        )
    return sorted(found, key=lambda path: _natural(path.relative_to(root)))


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.as_posix().lower())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts] + [(1, 0, str(path))]


def _open_paths(paths: Sequence[str | os.PathLike[str]], n_channels: int | None) -> ItemImages:
    names = [os.fspath(path) for path in paths]
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} image files do not exist, the first: {missing[0]}"
        )
    return ItemImages(names, _open_file, names, n_channels or 3)


def _open_list(items: list[Any], n_channels: int | None) -> Source:
    if not items:
        raise ValueError("X is empty: there is no image to learn from.")
    if all(isinstance(item, (str, os.PathLike)) for item in items):
        return _open_paths(items, n_channels)
    return ItemImages(items, _as_image, [f"{i} of the list" for i in range(len(items))], n_channels)


def _open_file(name: str) -> Any:
    from PIL import Image, ImageOps

    with Image.open(name) as image:
        return ImageOps.exif_transpose(image)


def _as_image(item: Any) -> Any:
    return _open_file(os.fspath(item)) if isinstance(item, (str, os.PathLike)) else item


def _image_of_item(item: Any) -> Any:
    """Image of a data set's item: itself, the first of a tuple, or the entry "image" of a dict."""
    if isinstance(item, dict):
        for key in ("image", "img", "pixel_values"):
            if key in item:
                return item[key]
        raise ImageError(f"a dict without an 'image' entry, but with {sorted(item)}.")
    return item[0] if isinstance(item, (tuple, list)) else item


def _to_tensor(image: Any, n_channels: int | None) -> Tensor:
    """Image as a tensor (c, h, w), converted to gray or colour if 1 or 3 channels are asked for."""
    if hasattr(image, "convert") and hasattr(image, "mode"):  # a PIL image
        if n_channels not in (None, 1, 3):
            raise ImageError(f"a picture is read with 1 or 3 channels, not {n_channels}.")
        gray = n_channels == 1 or (n_channels is None and image.mode in ("1", "L", "I;16", "F"))
        image = np.array(_to_mode(image, "L" if gray else "RGB"))
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ImageError(f"an array of shape {array.shape} is not an image (h, w) or (h, w, c).")
    batch = _check_pixels(array[None])
    tensor = _channels_first(batch[..., None] if batch.ndim == 3 else batch)[0]
    if n_channels == 3 and len(tensor) == 1:
        return tensor.expand(3, -1, -1)
    if n_channels == 1 and len(tensor) == 3:
        return to_gray(to_unit(tensor[None]))[0]
    return tensor


def _to_mode(image: Any, mode: str) -> Any:
    """Convert to 8-bit gray or RGB; 16-bit pictures are scaled, not clipped."""
    if image.mode.startswith("I;16"):
        from PIL import Image

        image = Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)


def _channels_first(batch: npt.NDArray[Any]) -> Tensor:
    """Tensor (B, c, h, w) of an array (B, h, w, c)."""
    if batch.dtype == np.float64 or batch.dtype == np.float16:
        batch = batch.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2)


def _check_layout(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Refuse what is not (n, h, w) or (n, h, w, c)."""
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ImageError(
            f"X of shape {array.shape} is not a set of images (n, h, w) or (n, h, w, c), nor of "
            "2-D rows (n, d)."
        )
    if array.ndim == 4 and array.shape[1] in (1, 3, 4) and array.shape[3] not in (1, 3, 4):
        raise ImageError(
            f"X of shape {array.shape} looks channels-first. Pass channels last, (n, h, w, c): "
            "X.transpose(0, 2, 3, 1), or X.permute(0, 2, 3, 1) of a tensor."
        )
    return array


def _check_pixels(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Refuse pixels that are not uint8, uint16, bool, or floats in [0, 1]."""
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype in (np.uint8, np.uint16):
        return array
    if not np.issubdtype(array.dtype, np.floating) and not np.issubdtype(array.dtype, np.integer):
        raise ImageError(
            f"Pixels of type {array.dtype} are not numbers that an image has. Use uint8, uint16 "
            "or floats in [0, 1]."
        )
    low, high = _range(array)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(
            "X contains NaN or infinite pixels. Replace them, np.nan_to_num(X), or leave those "
            "images out."
        )
    if low < 0 or high > 1 or not np.issubdtype(array.dtype, np.floating):
        if low < 0:
            hint = "Shift and scale them: (X - X.min()) / (X.max() - X.min())."
        elif high <= 255 and not np.issubdtype(array.dtype, np.floating):
            hint = "Use X.astype('uint8') if 255 is white, or X / X.max()."
        else:
            hint = f"Divide by what is white: X / {high:g}, which is X / X.max()."
        raise ImageError(
            f"Pixels of type {array.dtype} run from {low:g} to {high:g}; uint8, uint16 or floats "
            f"in [0, 1] are needed. {hint}"
        )
    return array


def _range(array: npt.NDArray[Any]) -> tuple[float, float]:
    """Smallest and largest pixel, NaN if there is one, a block at a time."""
    step = max(1, _BLOCK // max(1, array[0].size))
    blocks = [array[i : i + step] for i in range(0, len(array), step)]
    lows, highs = [float(b.min()) for b in blocks], [float(b.max()) for b in blocks]
    return float(np.min(lows)), float(np.max(highs))
