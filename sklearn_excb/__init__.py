"""Balanced clusters and embeddings of image collections, without labels, by ExCB."""

from sklearn_excb.estimator import ExCBEstimator

__version__ = "0.1.0.dev0"
__all__ = ["ExCBEstimator", "__version__"]
