"""The run folder: its files, its identity, its records."""
