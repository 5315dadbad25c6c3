"""Builds domains from lists of image files; unreadable images are an error, or left out."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fishr_exp.core.contracts import Domains
from fishr_exp.core.errors import ConfigError, printable, some
from fishr_exp.data.digests import digest_of
from fishr_exp.data.images.augmentation import NORMALIZATION
from fishr_exp.data.images.decoding import fault
from fishr_exp.data.images.domain import ImageDomain, stored

_log = logging.getLogger(__name__)

Images = Mapping[str, Mapping[str, Sequence[str]]]
"""Domain -> class -> paths of its images, in order."""


class Listed(NamedTuple):
    """The images of one domain."""

    paths: Sequence[str]
    labels: Tensor  # [N], int64
    validation: Tensor | None = None  # [N], bool, true in that part; None: drawn by `split`


def by_class(images: Images) -> dict[str, Listed]:
    """List each domain's images class by class; labels are the positions of the classes."""
    return {domain: Listed(*_flat(classes)) for domain, classes in images.items()}


def check_missing_classes(value: str) -> None:
    """Refuse an unknown value of `dataset.missing_classes`."""
    if value not in ("refuse", "allow"):
        raise ConfigError("dataset.missing_classes", value, "choose from refuse, allow")


def check_classes(key: str, value: object, images: Images, missing_classes: str) -> None:
    """Refuse a domain that has no image of a class; if that is allowed, warn of it.

    Args:
        key: The key that gives the images, for the message.
        value: Its value.
        images: The images; all domains have the same classes.
        missing_classes: See `image_folder`.

    Raises:
        ConfigError: If a domain lacks a class and `missing_classes` is `refuse`.
    """
    said = []
    for domain, classes in images.items():
        if lacking := [name for name, paths in classes.items() if not paths]:
            said.append(f"domain {domain} has no image of class {some(lacking)}")
    if said and missing_classes == "refuse":
        hint = "add images, or allow it: dataset.missing_classes=allow"
        raise ConfigError(key, value, "; ".join(said), hint)
    if said:
        _log.warning("%s", "; ".join(said))


def listed_domains(
    listed: Mapping[str, Listed],
    class_names: Sequence[str],
    *,
    root: str,
    name: str,
    image_size: int,
    augment: bool,
    on_bad_image: str,
    cache: str | None,
    stored_size: int | None,
    max_pixels: int,
) -> Domains:
    """Build a domain from each list of images; the other arguments are those of `image_folder`.

    Args:
        listed: The images by domain.
        class_names: The classes, in the order of the labels.
        root: The folder that contains the images.
        name: The name of the dataset.
        image_size: See `image_folder`.
        augment: See `image_folder`.
        on_bad_image: See `image_folder`.
        cache: See `image_folder`.
        stored_size: See `image_folder`.
        max_pixels: See `image_folder`.

    Raises:
        ConfigError: If an argument is invalid, or an image cannot be read.
    """
    if image_size < 1:
        raise ConfigError("dataset.image_size", image_size, "must be at least 1 pixel")
    if stored_size is not None and stored_size < 1:
        raise ConfigError("dataset.stored_size", stored_size, "must be at least 1 pixel")
    if max_pixels < 1:
        raise ConfigError("dataset.max_pixels", max_pixels, "must be at least 1 pixel")
    if on_bad_image not in ("error", "skip"):
        raise ConfigError("dataset.on_bad_image", on_bad_image, "choose from error, skip")
    pictures = {
        domain: stored(own.paths, root, f"{name}-{domain}", cache, stored_size, max_pixels)
        for domain, own in listed.items()
    }
    bad: dict[str, str] = {}  # path -> why it cannot be read
    if cache is not None:
        known = [
            listed[domain].paths[i] for domain, own in pictures.items() for i in own.unreadable
        ]
        bad = {path: fault(path, max_pixels) or "when the cache was made" for path in known}
    elif on_bad_image == "skip":
        bad = _faults([path for own in listed.values() for path in own.paths], max_pixels)
    if bad and on_bad_image == "error":
        first = next(iter(bad))
        raise ConfigError(
            "dataset.root",
            root,
            f"{len(bad)} image{'s' * (len(bad) > 1)} cannot be read, the first: {first} "
            f"({bad[first]})",
            "repair it, or skip such images with dataset.on_bad_image=skip",
        )
    skipped: dict[str, int] = {}
    by_name = {}
    for domain, (paths, labels, validation) in listed.items():
        kept = [i for i, path in enumerate(paths) if path not in bad]
        if missing := len(paths) - len(kept):
            skipped[domain] = missing
        if not kept:
            raise empty_domain(root, domain)
        by_name[domain] = ImageDomain(
            domain,
            pictures[domain].selected(kept) if missing else pictures[domain],
            labels[kept],
            image_size=image_size,
            augment=augment,
            validation=None if validation is None else validation[kept].nonzero()[:, 0],
            paths=[paths[i] for i in kept],
            digest=digest_of(
                [os.path.relpath(paths[i], os.path.expanduser(root)) for i in kept],
                labels[kept],
                None if validation is None else validation[kept],
            ),
        )
    if bad:
        _log.warning(
            "skipped %d of %d images that cannot be read, the first: %s (%s)",
            len(bad),
            sum(len(own.paths) for own in listed.values()),
            *map(printable, next(iter(bad.items()))),
        )
    shape = (3, image_size, image_size)
    names = tuple(map(printable, class_names))
    return Domains(name, by_name, len(names), shape, skipped, names, NORMALIZATION)


def _faults(paths: Sequence[str], max_pixels: int) -> dict[str, str]:
    """Read all images; return for each bad one why it cannot be read."""
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter lock
        found = pool.map(functools.partial(fault, max_pixels=max_pixels), paths)
        bar = tqdm(found, "reading all images", len(paths), False, disable=None)
        return {path: why for path, why in zip(paths, bar, strict=True) if why}


def _flat(classes: Mapping[str, Sequence[str]]) -> tuple[list[str], Tensor]:
    """Return the paths of all classes, and their labels [N]."""
    sizes = torch.tensor([len(paths) for paths in classes.values()])
    paths = [path for of in classes.values() for path in of]
    return paths, torch.arange(len(sizes)).repeat_interleave(sizes)


def empty_domain(root: str, domain: str) -> ConfigError:
    """Return the error of a domain without images."""
    return ConfigError(
        "dataset.root",
        root,
        f"domain {domain} contains no images",
        "add images, or move its folder out of the root",
    )
