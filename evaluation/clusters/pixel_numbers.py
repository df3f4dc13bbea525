"""Three plain numbers of a picture, by which black, white, gray and noisy pictures stand out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..maps.pictures import as_rgb, fit_into

_SIDE = 64  # pixels of the longer side at most


def pixel_deviations(
    images: Sequence[Any] | NDArray, positions: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return how unusual the pixels of each picture are among all of them, (m,).

    This is the largest deviation from the median picture, in robust standard deviations, of three
    numbers: brightness (mean), contrast (standard deviation) and roughness (mean difference of
    neighbouring pixels).

    Parameters
    ----------
    images : ndarray or sequence of images
        Images in one of the forms that `ContactSheetDisplay` takes.
    positions : ndarray of shape (m,)
        Positions of the pictures to look at.
    """
    numbers = np.array([_numbers(images[int(i)], int(i)) for i in positions])
    apart = np.abs(numbers - np.median(numbers, axis=0))
    # as for clusters: where more than half of the pictures are equal, the mean deviation counts
    spread = 1.4826 * np.median(apart, axis=0)
    spread = np.where(spread > 0, spread, 1.2533 * apart.mean(axis=0))
    return (apart / np.where(spread > 0, spread, 1)).max(axis=1).astype(np.float32)


def _numbers(image: Any, position: int) -> list[float]:
    picture = as_rgb(image, position)
    picture = fit_into(picture, _SIDE) if max(picture.shape[:2]) > _SIDE else picture
    gray = picture.mean(axis=2, dtype=np.float32) / np.float32(255)
    steps = [np.abs(np.diff(gray, axis=axis)) for axis in (0, 1) if gray.shape[axis] > 1]
    roughness = sum(float(each.mean()) for each in steps)
    return [float(gray.mean()), float(gray.std()), roughness]
