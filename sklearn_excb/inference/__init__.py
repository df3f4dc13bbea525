"""Inference with a fitted estimator: learned attributes, predict and transform."""
