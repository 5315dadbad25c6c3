"""Any map-style `torch.utils.data.Dataset` as a domain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from fishr_exp.core.contracts import Domains, Minibatch
from fishr_exp.data.digests import digest_of


class DatasetDomain:
    """Samples (x, y) of a dataset as a domain.

    Args:
        name: The domain's name.
        dataset: Its samples (x, y): x is a tensor of a fixed shape, y a class, from 0.
        augmented: The same samples, augmented, for training minibatches; None: not augmented. Its
            draws from PyTorch's global stream depend only on the run's seed and the step.
    """

    def __init__(
        self, name: str, dataset: Dataset[Any], augmented: Dataset[Any] | None = None
    ) -> None:
        self.name = name
        self._dataset = dataset
        self._augmented = dataset if augmented is None else augmented

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    @property
    def labels(self) -> Tensor | None:
        """The labels, int64 [N], where the dataset has them at hand (`targets`)."""
        labels = getattr(self._dataset, "targets", None)
        if labels is None and isinstance(self._dataset, TensorDataset):
            labels = self._dataset.tensors[1]
        return None if labels is None else torch.as_tensor(labels)

    @property
    def digest(self) -> str:
        """Of the labels, where the dataset has them at hand; see `digests.py`."""
        return "" if self.labels is None else digest_of((), self.labels)

    def read(self, indices: Tensor, augment: torch.Generator | None = None) -> Minibatch:
        """Read the samples at `indices` ([n], int64)."""
        source = self._dataset if augment is None else self._augmented
        with contextlib.nullcontext() if augment is None else _global_draws_from(augment):
            samples = [source[i][:2] for i in indices.tolist()]
        x = torch.stack([torch.as_tensor(x, dtype=torch.float32) for x, _ in samples])
        return Minibatch(x, torch.tensor([int(y) for _, y in samples]))


def domains_of(
    name: str,
    datasets: Mapping[str, Dataset[Any]],
    num_classes: int,
    augmented: Mapping[str, Dataset[Any]] | None = None,
) -> Domains:
    """Turn datasets into domains, for use in a function that is a `dataset._target_`.

    Args:
        name: The name of the whole dataset.
        datasets: The samples of each domain, in order.
        num_classes: Number of classes.
        augmented: Augmented samples of the domains that are augmented in training; see
            `DatasetDomain`.
    """
    more = augmented or {}
    by_name = {key: DatasetDomain(key, own, more.get(key)) for key, own in datasets.items()}
    first = next(iter(by_name.values())).read(torch.tensor([0])).x[0]
    return Domains(name, by_name, num_classes, tuple(first.shape))


@contextlib.contextmanager
def _global_draws_from(stream: torch.Generator) -> Iterator[None]:
    """Seed the CPU's global stream from `stream` in the block, since transforms draw from it."""
    seed = int(torch.randint(2**63 - 1, (), generator=stream))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA's as well
        yield
