"""The datasets, one file for each family; `domains_of` is for datasets of your own."""

from fishr_exp.data.datasets.torch_dataset import domains_of

__all__ = ["domains_of"]
