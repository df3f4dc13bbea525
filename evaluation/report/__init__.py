"""A clustering as one HTML file."""
