"""Balanced clusters and embeddings of image collections, without labels, by ExCB."""

from typing import TYPE_CHECKING, Any

from sklearn_excb.estimator import ExCBEstimator
from sklearn_excb.exceptions import (
    CheckpointWarning,
    CollapseWarning,
    DamagedFileError,
    DeviceWarning,
    DivergedError,
    DivergenceWarning,
    DurationWarning,
    ImageError,
    MemoryWarning,
    PretrainedWeightsError,
    RankError,
    SkippedImageWarning,
    StreamEndError,
)

if TYPE_CHECKING:
    from sklearn_excb.augmented import AugmentedViews, augmented_views

__version__ = "0.1.0"
__all__ = [
    "AugmentedViews",
    "CheckpointWarning",
    "CollapseWarning",
    "DamagedFileError",
    "DeviceWarning",
    "DivergedError",
    "DivergenceWarning",
    "DurationWarning",
    "ExCBEstimator",
    "ImageError",
    "MemoryWarning",
    "PretrainedWeightsError",
    "RankError",
    "SkippedImageWarning",
    "StreamEndError",
    "__version__",
    "augmented_views",
]


def __getattr__(name: str) -> Any:
    """Import what a fit does not need when it is first asked for."""
    if name in ("AugmentedViews", "augmented_views"):
        from sklearn_excb import augmented

        return getattr(augmented, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
