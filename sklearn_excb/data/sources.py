"""Indexed sources of images or rows, from which batches are read.

A source has a length and returns samples by index: images as tensors (c, h, w) of uint8, uint16 or
float in [0, 1], rows unchanged. Every error names the item. With ``on_error="skip"``, a blank image
replaces an item that cannot be used, and the source keeps the reason.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.data.broken_files import BrokenFiles, reason_of, shortened
from sklearn_excb.data.image_files import EncodedPicture
from sklearn_excb.data.limits import check_n_pixels
from sklearn_excb.data.pixels import (
    channels_first,
    check_layout,
    check_pixels,
    image_tensor,
    is_deep,
    is_gray,
    is_picture,
    upright_shape,
)
from sklearn_excb.exceptions import ImageError
from sklearn_excb.runtime.buffers import BufferPool

_PROBES = 64  # sampled images that stand for a collection


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
        """Return rows (B, d) in their original dtype."""
        return self._array[indices]


class ArrayImages:
    """Images of one size in an array, (n, h, w) for gray images or (n, h, w, c)."""

    kind: Literal["images", "rows"] = "images"
    names: list[str] | None = None
    reads_in_parallel = False

    def __init__(self, array: npt.NDArray[Any], n_channels: int | None = None) -> None:
        self._array = check_pixels(check_layout(array, n_channels))
        self.n_channels = 1 if array.ndim == 3 else array.shape[3]

    def __len__(self) -> int:
        return len(self._array)

    def load(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Return images (B, c, h, w)."""
        return channels_first(self._array[indices])

    def shape(self, index: int) -> Shape:
        """Return the shape that all images share."""
        return Shape(*self._array.shape[1:3])


class Skipped(NamedTuple):
    """Image that could not be used.

    Attributes
    ----------
    index : int
        Position of the image in the collection.
    name : str
        Path of the image file; "" for an image without a file.
    reason : str
        Description of the problem.
    """

    index: int
    name: str
    reason: str


class ItemImages:
    """Images that are opened one by one: files, a list, or a map-style data set.

    Parameters
    ----------
    items : Sequence
        Items that ``open_item`` can open.
    open_item : callable
        Function from an item to an encoded image, a PIL image, an array (h, w[, c]) or a tensor.
    names : list of str, optional
        Paths of the items, if the items are files.
    n_channels : int, optional
        Number of channels, 1 or 3, to which images are converted. By default, encoded images and
        PIL images get 3 channels, or 1 if all sampled images are gray. Arrays keep the channels of
        the first array, or with "skip", the most frequent number among the sampled arrays.
    reads_in_parallel : bool, default=True
        Whether several threads may call ``open_item`` at once.
    on_error : {"raise", "skip"}, default="raise"
        Treatment of an image that cannot be used: "raise" raises an error, "skip" gives a blank
        image and an entry in :meth:`skipped`.
    first : int, optional
        Position of the first item in the stream, if the items are a part of a stream.

    Attributes
    ----------
    places : ndarray of shape (n,), int64
        Positions of the images in the whole collection, which also index ``names``. In the result
        of :meth:`usable` they are not 0..n-1.
    ignored : list of str or None
        Other files in the folder or archives.
    unreachable : dict of str to str
        Reason for each folder, link or archive whose images are missing.
    brightest : dict of str to float
        Largest pixel by dtype of the images that were decoded for their shape.

    Raises
    ------
    ImageError
        If a sampled image cannot be used; with "skip", if no image can be used.
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
        on_error: str = "raise",
        first: int | None = None,
    ) -> None:
        self.names = names
        self._first = first
        self.reads_in_parallel = reads_in_parallel
        self.skips = on_error == "skip"
        self.ignored: list[str] | None = None
        self.unreachable: dict[str, str] = {}
        self._items = items
        self._open_item = open_item
        self.places = np.arange(len(items))
        self._reasons: dict[int, str] = {}
        self.brightest: dict[str, float] = {}
        self._broken = BrokenFiles()
        self._n_may_fail = len(items)
        self._wanted = self._pictures_channels() if n_channels is None else n_channels
        self.n_channels = self._wanted or self._usual_channels()

    def __len__(self) -> int:
        return len(self.places)

    def load_one(
        self, index: int, at_least: int = 0, *, buffers: BufferPool | None = None
    ) -> Tensor:
        """Return an image (c, h, w).

        Parameters
        ----------
        index : int
            Index of the image.
        at_least : int, default=0
            Least number of pixels on the short side, unless the image is smaller. A larger image
            may be decoded at a smaller size. 0 decodes at full size.
        buffers : BufferPool, optional
            Memory for the decoded pixels. The image is valid until this memory is used again.
        """
        image = self._attempt(index, lambda: self._load(index, at_least, buffers))
        if image is None:
            return torch.zeros(self.n_channels, 8, 8, dtype=torch.uint8)
        self._reasons.pop(int(self.places[index]), None)  # an earlier failure was temporary
        return image

    def shape(self, index: int) -> Shape | None:
        """Return the shape of an image, without decoding it if possible; None if it is skipped."""
        return self._attempt(index, lambda: self._shape(index))

    @cached_property
    def probed_shapes(self) -> list[Shape]:
        """Shapes of up to 64 evenly spaced images, cached."""
        shapes = [shape for index in probes(self) if (shape := self.shape(index))]
        if not shapes:
            raise self.none_usable()
        return shapes

    def skipped(self) -> list[Skipped]:
        """Return the images that have failed so far, by position in the whole collection."""
        names = self.names or [""] * len(self._items)
        first = self._first or 0
        return [
            Skipped(first + place, names[place], why)
            for place, why in sorted(self._reasons.items())
        ]

    @property
    def reasons(self) -> dict[int, str]:
        """Reasons why images cannot be used, by position of the image."""
        return dict(self._reasons)

    def merge_reasons(self, reasons: Mapping[int, str]) -> None:
        """Add the images that another process could not use."""
        self._reasons.update(reasons)

    def usable(self) -> Self:
        """Return the same source without the images in :meth:`skipped`.

        All images of the result could be read before. The result raises an error as soon as more
        than one image in a hundred (and more than two) can no longer be read.
        """
        less = copy.copy(self)
        less.__dict__.pop("probed_shapes", None)
        less.places = np.setdiff1d(np.arange(len(self._items)), list(self._reasons))
        less._n_may_fail = len(self._reasons) + max(2, len(less) // 100)
        return less

    def _usual_channels(self) -> int:
        """Return the channels of the first image or, with "skip", of most sampled images."""
        if not self.skips:
            return self._attempt(0, lambda: self._read(0, 1)).shape[0]
        for indices in (probes(self), range(len(self))):
            images = (self._attempt(i, lambda i=i: self._read(i, 1)) for i in indices)
            counts = Counter(image.shape[0] for image in images if image is not None)
            if counts:
                return counts.most_common(1)[0][0]
        raise self.none_usable()

    def _pictures_channels(self) -> int | None:
        """Return 3 for encoded and PIL images, 1 if all sampled ones are gray; None for arrays."""
        gray = []
        for index in probes(self):
            image = self._attempt(index, lambda index=index: self._open(index))
            if isinstance(image, EncodedPicture):
                gray.append(image.is_gray)
            elif is_picture(image):
                gray.append(is_gray(image))
            elif image is not None:
                if not gray:
                    return None
                gray.append(False)
        return 1 if gray and all(gray) else 3 if gray else None

    def _open(self, index: int) -> Any:
        return self._open_item(self._items[int(self.places[index])])

    def _shape(self, index: int) -> Shape:
        image = self._open(index)
        if isinstance(image, EncodedPicture):
            if not image.is_deep:
                return Shape(*image.shape)
        elif is_picture(image) and not is_deep(image):
            return Shape(*upright_shape(image))
        pixels = self._load(index, 0)
        kind, found = str(pixels.dtype).removeprefix("torch."), float(pixels.numpy().max())
        self.brightest[kind] = max(found, self.brightest.get(kind, 0))
        return Shape(*pixels.shape[1:])

    def _read(self, index: int, at_least: int, buffers: BufferPool | None = None) -> Tensor:
        image = self._open(index)
        if isinstance(image, EncodedPicture):
            image = image.decode(at_least, buffers)
        elif is_picture(image):
            check_n_pixels(image.height, image.width)
        return image_tensor(image, self._wanted)

    def _load(self, index: int, at_least: int, buffers: BufferPool | None = None) -> Tensor:
        image = self._read(index, at_least, buffers)
        if image.shape[0] != self.n_channels:
            raise ImageError(
                f"mixed channel counts, {image.shape[0]} here and {self.n_channels} in other "
                "images. Convert the images to one mode, or set n_channels=1 or n_channels=3."
            )
        return image

    def _attempt(self, index: int, read: Callable[[], Any]) -> Any:
        """Run ``read``; on failure raise an error that names the image, or keep the reason.

        Return None if the reason is kept.
        """
        place = int(self.places[index])
        number = f"{place} of {len(self._items)}" if self._first is None else self._first + place
        name = (shortened(self.names[place]) if self.names else "") or str(number)
        try:
            return read()
        except MemoryError as error:
            error.add_note(f"It was image {name}.")
            raise
        except Exception as error:
            reason, cause = reason_of(error), error
        if not self.skips:
            count = self._broken.advice(place, self.names, self._items, self._open_item)
            raise ImageError(f"Image {name}: {reason.rstrip('.')}. {count}") from cause
        self._reasons[place] = reason
        if len(self._reasons) > self._n_may_fail:
            raise ImageError(
                "Images that could be read before can no longer be read. Check that their storage "
                f"is still available. The last image is {name}: {reason}"
            ) from cause
        return None

    def none_usable(self) -> ImageError:
        """Return the error if no image can be used."""
        first = self.skipped()[0]
        return ImageError(
            f"None of the {len(self._reasons)} tested images can be used. The first is "
            f"{shortened(first.name) or first.index}: {first.reason}"
        )


Source = Rows | ArrayImages | ItemImages


def probes(source: Source, n_probes: int = _PROBES) -> list[int]:
    """Return the indices of up to ``n_probes`` evenly spaced samples."""
    spaced = np.linspace(0, len(source) - 1, n_probes)
    return np.unique(spaced.astype(np.int64)).tolist()


def typical_shape(source: ArrayImages | ItemImages) -> Shape:
    """Return the median height and width of up to 64 evenly spaced images."""
    if isinstance(source, ArrayImages):
        return source.shape(0)
    height, width = np.median(source.probed_shapes, axis=0)
    return Shape(int(height), int(width))
