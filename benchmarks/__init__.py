"""Each script prints a ratio against something named, measured in the same run."""
