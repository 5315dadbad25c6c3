"""From Hydra's configuration to plain arguments, and what a user did wrong on the way."""
