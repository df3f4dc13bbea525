"""Views of images and feature vectors, and batches of views."""
