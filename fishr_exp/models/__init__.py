"""Featurizers and linear classifiers, one builder per file."""
