"""What the library raises and warns of, each with a name of its own, to catch or to filter."""

from __future__ import annotations

from sklearn.exceptions import ConvergenceWarning


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


class DamagedFileError(ValueError):
    """A file is not what was written: cut short, or changed since."""


class PretrainedWeightsError(OSError):
    """The pretrained weights of a backbone cannot be had."""


class RankError(RuntimeError):
    """Another process of the fit has failed, or is not at the same fit."""


class DivergedError(FloatingPointError):
    """A training diverged before anything was learned.

    Attributes
    ----------
    rows : list of int
        Of the batch in which it showed; empty where that is not known.
    """

    rows: list[int] = []  # noqa: RUF012 - replaced, never changed


class CollapseWarning(ConvergenceWarning):
    """Clusters collapse, or nothing is learned; with the parameter to change."""


class DivergenceWarning(ConvergenceWarning):
    """A training diverged; the fit ended with its last sound epoch."""


class DurationWarning(UserWarning):
    """A fit will take more than an hour on this machine's CPU."""


class MemoryWarning(UserWarning):
    """The device has less memory left than a fit is estimated to take."""


class DeviceWarning(UserWarning):
    """The device asked for is not there, and inference goes on with the CPU."""


class SkippedImageWarning(UserWarning):
    """Images could not be used and were skipped."""


class UnreadPicturesWarning(UserWarning):
    """A folder holds pictures of kinds that are not read, such as HEIC."""


class CheckpointWarning(UserWarning):
    """A state of a run could not be written or read, or is not gone on with as it was."""


class StreamEndError(ValueError):
    """A stream has ended and gives nothing when it is iterated again."""
