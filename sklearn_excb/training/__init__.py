"""Training by Algorithm 1, its start and its monitoring, settling, and inference."""
