"""One small file a method: a batch in, an objective out."""
