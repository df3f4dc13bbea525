"""Two-dimensional maps of embeddings."""

from . import pictures, projection

__all__ = ["pictures", "projection"]
