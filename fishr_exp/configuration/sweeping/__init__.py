"""A sweep: which runs it has, which are done, what they share, and how far it is."""
