"""A fitted estimator at work: what it learned, predict and transform on every device."""
