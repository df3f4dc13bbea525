"""Balanced clusters and embeddings of image collections, without labels, by ExCB."""

from sklearn_excb.augmented import AugmentedViews, augmented_views
from sklearn_excb.estimator import ExCBEstimator
from sklearn_excb.pixels import ImageError
from sklearn_excb.skipping import SkippedImageWarning

__version__ = "0.1.0.dev0"
__all__ = [
    "AugmentedViews",
    "ExCBEstimator",
    "ImageError",
    "SkippedImageWarning",
    "__version__",
    "augmented_views",
]
