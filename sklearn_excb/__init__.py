"""Balanced clusters and embeddings of image collections, without labels, by ExCB."""

from sklearn_excb.augmented import AugmentedViews, augmented_views
from sklearn_excb.estimator import ExCBEstimator
from sklearn_excb.pixels import ImageError
from sklearn_excb.run_folder import CheckpointWarning
from sklearn_excb.skipping import SkippedImageWarning
from sklearn_excb.tensor_files import DamagedFileError
from sklearn_excb.watching import DivergedError

__version__ = "0.1.0.dev0"
__all__ = [
    "AugmentedViews",
    "CheckpointWarning",
    "DamagedFileError",
    "DivergedError",
    "ExCBEstimator",
    "ImageError",
    "SkippedImageWarning",
    "__version__",
    "augmented_views",
]
