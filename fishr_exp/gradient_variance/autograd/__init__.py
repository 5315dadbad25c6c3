"""Hand-written derivatives."""
