"""Any map-style `torch.utils.data.Dataset` as a domain; WILDS' by the `wilds` package."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fishr_exp.core.contracts import Domains, Minibatch
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.datasets.image_folder import ImageDomain
from fishr_exp.data.images.decoding import Picture


class DatasetDomain:
    """Samples (x, y) of a dataset as a domain.

    Args:
        name: The domain's name.
        dataset: Its samples; x a tensor of a fixed shape, y a class from 0 on.
        augmented: The same samples, augmented, for training minibatches; None: as they are. What
            it draws from PyTorch's global stream is a function of the run's seed and the step.
    """

    def __init__(
        self, name: str, dataset: Dataset[Any], augmented: Dataset[Any] | None = None
    ) -> None:
        self.name = name
        self._dataset = dataset
        self._augmented = dataset if augmented is None else augmented

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

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
    """Make domains of datasets, for a function that a `dataset._target_` names.

    Args:
        name: The name of the whole.
        datasets: The samples of each domain, in order.
        num_classes: Number of classes.
        augmented: Of domains that are augmented in training, the samples of `DatasetDomain`.
    """
    more = augmented or {}
    by_name = {key: DatasetDomain(key, own, more.get(key)) for key, own in datasets.items()}
    first = next(iter(by_name.values())).read(torch.tensor([0])).x[0]
    return Domains(name, by_name, num_classes, tuple(first.shape))


def wilds(*, root: str, name: str, domain: str, image_size: int, augment: bool) -> Domains:
    """Build a domain of each value of a WILDS dataset's metadata, as DomainBed does.

    Args:
        root: The folder of WILDS' data; nothing is downloaded.
        name: WILDS' name of the dataset: camelyon17, fmow.
        domain: The metadata field whose values are the domains; they are called FIELD_VALUE.
        image_size: Height and width of the images as the model sees them, in pixels.
        augment: Augment the training minibatches, by DomainBed's chain.

    Raises:
        ConfigError: If the package is missing, or the data cannot be read.

    Source: Koh et al. 2021 (arXiv:2012.07421).
    """
    importlib.import_module(
        "fishr_exp.core._torchvision"
    )  # which lets the package import torchvision
    try:
        package = importlib.import_module("wilds")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "dataset", name, "needs the package wilds", "pip install wilds"
        ) from error
    try:
        whole = package.get_dataset(dataset=name, root_dir=root, download=False)
    except (OSError, ValueError) as error:
        reason = f"holds no {name} of WILDS ({str(error).splitlines()[0]})"
        mend = "download it with the wilds package"
        raise ConfigError("dataset.root", root, reason, mend) from error
    values = whole.metadata_array[:, whole.metadata_fields.index(domain)]
    parts = {f"{domain}_{v}": (values == v).nonzero()[:, 0] for v in values.unique().tolist()}

    by_name = {
        key: ImageDomain(
            key, _Pictures(whole, own.tolist()), torch.as_tensor(whole.y_array)[own].long(),
            image_size=image_size, augment=augment,
        )
        for key, own in parts.items()
    }  # fmt: skip
    return Domains(name, by_name, int(whole.n_classes), (3, image_size, image_size))


class _Pictures:
    """The images of a WILDS dataset at some indices."""

    def __init__(self, whole: Any, indices: list[int]) -> None:
        self.whole, self.indices = whole, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Picture:
        pixels = np.asarray(self.whole.get_input(self.indices[i]).convert("RGB"))
        return Picture(pixels, pixels.shape[:2])


@contextlib.contextmanager
def _global_draws_from(stream: torch.Generator) -> Iterator[None]:
    """Seed the CPU's global stream from `stream` for a while, for transforms draw from there."""
    seed = int(torch.randint(2**63 - 1, (), generator=stream))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA's as well
        yield
