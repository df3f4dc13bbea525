"""Fits: build, resume, train, label; streams, partial_fit, memory and the dry run."""
