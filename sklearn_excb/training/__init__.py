"""Algorithm 1: start, step, loop, settling and inference."""
