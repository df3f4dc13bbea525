"""Balanced clusters and embeddings of image collections, without labels, by ExCB."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sklearn_excb.augmented import AugmentedViews, augmented_views
    from sklearn_excb.estimator import ExCBEstimator
    from sklearn_excb.exceptions import (
        BaselineWarning,
        CheckpointWarning,
        CollapseWarning,
        DamagedFileError,
        DeviceWarning,
        DivergedError,
        DivergenceWarning,
        DurationWarning,
        ImageError,
        MemoryWarning,
        PixelRangeWarning,
        PretrainedWeightsError,
        RankError,
        RenamedWarning,
        SkippedImageWarning,
        StreamEndError,
        UnreadPicturesWarning,
    )

__version__ = "0.2.0.dev0"
__all__ = [
    "AugmentedViews",
    "BaselineWarning",
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
    "PixelRangeWarning",
    "PretrainedWeightsError",
    "RankError",
    "RenamedWarning",
    "SkippedImageWarning",
    "StreamEndError",
    "UnreadPicturesWarning",
    "__version__",
    "augmented_views",
]
_MODULES = {
    "ExCBEstimator": "estimator",
    "AugmentedViews": "augmented",
    "augmented_views": "augmented",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the command's help does without torch."""
    if name in ("estimator", "exceptions"):
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES.get(name, 'exceptions')}")
    return globals().setdefault(name, getattr(module, name))


def __dir__() -> list[str]:
    """Names that are there, and those that will be."""
    return sorted({*globals(), *__all__})
