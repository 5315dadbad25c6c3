"""The engines: rules per layer (native), torch.func (its fallback), and BackPACK."""
