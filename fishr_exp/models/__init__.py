"""Featurizers and linear classifiers, one builder a file."""
