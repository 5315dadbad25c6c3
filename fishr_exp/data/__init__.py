"""Domains, their splits and minibatches; one file a family of datasets."""
