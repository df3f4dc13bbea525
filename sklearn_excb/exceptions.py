"""Exceptions and warnings of sklearn_excb. Each has a class of its own to catch or to filter."""

from __future__ import annotations

from sklearn.exceptions import ConvergenceWarning


class ImageError(ValueError):
    """An image cannot be used. The message names the image and gives the reason."""


class DamagedFileError(ValueError):
    """A file is damaged: it was cut short, or changed after it was written."""


class PretrainedWeightsError(OSError):
    """The pretrained weights of a backbone are not available, or do not fit the backbone."""


class RankError(RuntimeError):
    """Another process of a distributed fit has failed, or runs a different fit."""


class DivergedError(FloatingPointError):
    """Training diverged in the first epoch, before anything was learned.

    Attributes
    ----------
    rows : list of int
        Rows of X in the batch that diverged; empty if they are not known.
    """

    rows: list[int] = []  # noqa: RUF012 - instances replace this list and never change it


class CollapseWarning(ConvergenceWarning):
    """Clusters collapse, or the network learns nothing. The message names what to change."""


class DivergenceWarning(ConvergenceWarning):
    """Training diverged. The fit ended with the last sound epoch."""


class DurationWarning(UserWarning):
    """A fit will take more than an hour on the CPU of this machine."""


class MemoryWarning(UserWarning):
    """The device has less free memory than the estimate for a fit."""


class DeviceWarning(UserWarning):
    """The requested device is not available, and inference continues on the CPU."""


class SkippedImageWarning(UserWarning):
    """Images that cannot be used were skipped."""


class UnreadPicturesWarning(UserWarning):
    """A folder holds pictures in formats that the library does not read, such as HEIC."""


class PixelRangeWarning(UserWarning):
    """Images are nearly black, as 12-bit images stored in 16 bits are."""


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written or read, or cannot be resumed exactly as it was."""


class RenamedWarning(FutureWarning):
    """A parameter has a new name, and the old one will go."""


class BaselineWarning(UserWarning):
    """A report lacks a baseline, which could not be computed."""


class StreamEndError(ValueError):
    """A stream has ended and yields nothing when it is iterated again."""
