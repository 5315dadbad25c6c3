"""The rules, one file per kind of layer."""
