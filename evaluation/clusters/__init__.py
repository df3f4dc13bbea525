"""Scores, sizes and review of clusters."""
