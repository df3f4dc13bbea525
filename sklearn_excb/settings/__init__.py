"""What users choose, and what "auto" becomes."""
