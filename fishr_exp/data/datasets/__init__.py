"""The datasets, one file for each family."""
