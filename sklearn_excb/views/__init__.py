"""Crops, views of feature vectors, and batches of them."""
