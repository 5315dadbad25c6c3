"""The loop for all methods, the step, the early-stopping observer, the checkpoint."""
