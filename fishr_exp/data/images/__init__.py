"""Image files: decoding, caching, augmentation."""
