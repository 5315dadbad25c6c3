"""Means, differences, and model selection."""
