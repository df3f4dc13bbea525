"""Parameters of a fit: validation, the rules of "auto", and recipes."""
