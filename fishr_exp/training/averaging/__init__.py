"""Averages of the weights along the way, one file for each scheme; they go with every trainer."""
