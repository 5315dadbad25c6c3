"""Means, differences, and which run each selection takes."""
