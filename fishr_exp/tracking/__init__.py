"""Where records go besides the run folder."""
