"""Embeddings on a plane."""

from . import projection

__all__ = ["projection"]
