"""Exact nearest neighbours, and k-NN classification."""
