"""Ways to get gradient variances: by rule, by torch.func, by BackPACK."""
