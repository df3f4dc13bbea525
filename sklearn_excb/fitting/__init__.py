"""Fits: start, resume, plan, stream and launch."""
