"""Downloads, checks and unpacks datasets."""
