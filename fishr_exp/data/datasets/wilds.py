"""WILDS' image datasets, read by the `wilds` package."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from fishr_exp.core.contracts import Domains
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.digests import digest_of
from fishr_exp.data.images.augmentation import NORMALIZATION
from fishr_exp.data.images.decoding import Picture
from fishr_exp.data.images.domain import ImageDomain


def wilds(*, root: str, name: str, domain: str, image_size: int, augment: bool) -> Domains:
    """Build a domain from each value of a metadata field of a WILDS dataset, as DomainBed does.

    Args:
        root: The folder of the WILDS data; nothing is downloaded.
        name: WILDS' name of the dataset: camelyon17, fmow.
        domain: The metadata field whose values are the domains; their names are FIELD_VALUE.
        image_size: Height and width of the images as the model sees them, in pixels.
        augment: Augment the training minibatches as DomainBed does.

    Raises:
        ConfigError: If the package is missing, or the data cannot be read.

    Source:
        Koh et al. 2021 (arXiv:2012.07421); DomainBed's code for the domains. Departs: images are
        cropped at their original size and resized once, theirs are resized to 224 × 224 pixels
        before the crop.
    """
    # The package imports torchvision, which may need our schemas of its operators.
    importlib.import_module("fishr_exp.core._torchvision")
    try:
        package = importlib.import_module("wilds")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "dataset", name, "needs the package wilds", "pip install wilds"
        ) from error
    try:
        whole = package.get_dataset(dataset=name, root_dir=root, download=False)
    except (OSError, ValueError) as error:
        reason = f"does not contain {name} of WILDS ({str(error).splitlines()[0]})"
        hint = "download it with the wilds package"
        raise ConfigError("dataset.root", root, reason, hint) from error
    values = whole.metadata_array[:, whole.metadata_fields.index(domain)]
    parts = {f"{domain}_{v}": (values == v).nonzero()[:, 0] for v in values.unique().tolist()}

    by_name = {
        key: ImageDomain(
            key, _Pictures(whole, own.tolist()), torch.as_tensor(whole.y_array)[own].long(),
            image_size=image_size, augment=augment,
            digest=digest_of(map(str, own.tolist()), torch.as_tensor(whole.y_array)[own].long()),
        )
        for key, own in parts.items()
    }  # fmt: skip
    shape = (3, image_size, image_size)
    return Domains(name, by_name, int(whole.n_classes), shape, normalization=NORMALIZATION)


class _Pictures:
    """The images of a WILDS dataset at some indices."""

    def __init__(self, whole: Any, indices: list[int]) -> None:
        self.whole, self.indices = whole, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Picture:
        pixels = np.asarray(self.whole.get_input(self.indices[i]).convert("RGB"))
        return Picture(pixels, pixels.shape[:2])
