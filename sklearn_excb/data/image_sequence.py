"""The images of a source as a sequence of arrays, to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.pixels import to_unit
from sklearn_excb.data.sources import ArrayImages, ItemImages

_THUMBNAIL = 128  # decode at least this short side in pixels, where the format allows smaller sizes


class ImageSequence(Sequence[npt.NDArray[np.float32]]):
    """Images of a source as arrays (h, w, c), opened on access.

    Parameters
    ----------
    source : ArrayImages or ItemImages
        Images with any number of channels. Of two channels the first is shown, of more than three
        the first three.
    """

    def __init__(self, source: ArrayImages | ItemImages) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(self._source, ArrayImages):
            image = self._source.load(np.array([index]))[0]
        else:
            image = self._source.load_one(index, at_least=_THUMBNAIL)
        shown = image if image.shape[0] in (1, 3) else image[: 3 if image.shape[0] > 3 else 1]
        return to_unit(shown).permute(1, 2, 0).float().numpy()
