"""Readers that turn any supported collection into samples with an index."""
