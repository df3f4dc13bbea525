"""Memory of a fit: its estimate, and the micro-batch that fits a device."""
