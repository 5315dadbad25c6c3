"""How the use of a parameter becomes moments of its per-sample gradients."""
