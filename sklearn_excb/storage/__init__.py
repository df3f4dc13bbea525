"""Tensors and JSON in files, each written whole or not at all."""
