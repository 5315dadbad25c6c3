"""The tables, one file per kind."""
