"""From the uses of a parameter to the moments of its per-sample gradients."""
