"""Two-dimensional maps of embeddings."""

from . import projection

__all__ = ["projection"]
