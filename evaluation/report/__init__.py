"""The report: a clustering in one HTML file."""
