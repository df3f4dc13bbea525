"""Scores, sizes and reviews of clusters."""
