"""Fetching, checking and unpacking datasets."""
