"""Spawrious: four breeds of dogs with backgrounds that predict the breed only in training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fishr_exp.core.contracts import Domains
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.images.decoding import MAX_PIXELS
from fishr_exp.data.images.folders import Folders, images_of, root_folder
from fishr_exp.data.images.listed import Images, by_class, listed_domains

CLASSES = ("bulldog", "corgi", "dachshund", "labrador")
TEST, GROUPS = "Test", ("SC_group_1", "SC_group_2")
_SHARES = (0.97, 0.87)  # of a class with its own background, in the two training domains


class _Variant(NamedTuple):
    """Backgrounds of bulldog, dachshund, labrador and corgi, in this order."""

    train: tuple[str, str, str, str]
    test: tuple[str, str, str, str]
    filler: str = ""  # one-to-one: the background of the rest of every class


_ORDER = ("bulldog", "dachshund", "labrador", "corgi")
_VARIANTS = {
    "o2o_easy": _Variant(
        ("desert", "jungle", "dirt", "snow"), ("dirt", "snow", "desert", "jungle"), "beach"
    ),
    "o2o_medium": _Variant(
        ("mountain", "beach", "dirt", "jungle"), ("jungle", "dirt", "beach", "snow"), "desert"
    ),
    "o2o_hard": _Variant(
        ("jungle", "mountain", "snow", "desert"), ("mountain", "snow", "desert", "jungle"), "beach"
    ),
    "m2m_easy": _Variant(
        ("desert", "mountain", "dirt", "jungle"), ("dirt", "jungle", "mountain", "desert")
    ),
    "m2m_medium": _Variant(
        ("beach", "snow", "mountain", "desert"), ("desert", "mountain", "beach", "snow")
    ),
    "m2m_hard": _Variant(
        ("dirt", "jungle", "snow", "beach"), ("snow", "beach", "dirt", "jungle")
    ),
}  # fmt: skip
_SWAPPED = (1, 0, 3, 2)  # many-to-many: the background of a class in the other half


def spawrious(
    *,
    root: str,
    variant: str,
    image_size: int,
    augment: bool,
    on_bad_image: str = "error",
    cache: str | None = None,
    stored_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Domains:
    """Build the domains Test, SC_group_1 and SC_group_2 of a variant, as DomainBed does.

    One-to-one: in the training domains, 97 and 87 % of a class have its own background, and the
    rest one that all classes share; in the test domain each class has that of another class.
    Many-to-many: two classes share two backgrounds, which they exchange between the training
    domains; in the test domain they have those of the other two classes.

    Args:
        root: The folder of 0/location/class/image and, for one-to-one, 1/location/class/image.
        variant: o2o_easy, o2o_medium, o2o_hard, m2m_easy, m2m_medium or m2m_hard.
        image_size: Height and width of the images as the model sees them, in pixels.
        augment: Augment the training minibatches as DomainBed does (see `ImageDomain`).
        on_bad_image: See `image_folder`.
        cache: See `image_folder`.
        stored_size: See `image_folder`.
        max_pixels: See `image_folder`.

    Returns:
        Domains of images [3, image_size, image_size], four classes; the whole dataset has 25,344
        images in the test domain and 12,672 in each of the others.

    Raises:
        ConfigError: If an argument is invalid, or `find_spawrious` fails.

    Source:
        Lynch et al. 2023 (arXiv:2303.05470); DomainBed's code. Departs: if only a part of a
        folder is used, it is the first images by name, not in the order of the file system; the
        augmentation crops, which theirs does not; domains, the test domain included, are split by
        our own stream (`split`).
    """
    images = find_spawrious(root=root, variant=variant)
    return listed_domains(
        by_class(images),
        CLASSES,
        root=root,
        name=f"spawrious_{variant}",
        image_size=image_size,
        augment=augment,
        on_bad_image=on_bad_image,
        cache=cache,
        stored_size=stored_size,
        max_pixels=max_pixels,
    )


def find_spawrious(*, root: str, variant: str) -> Images:
    """List the images of all domains and classes; the arguments are those of `spawrious`.

    Raises:
        ConfigError: If the variant is unknown, or a folder is missing or empty.
    """
    if variant not in _VARIANTS:
        raise ConfigError("dataset.variant", variant, f"choose from {', '.join(_VARIANTS)}")
    backgrounds, folder = _VARIANTS[variant], root_folder(root)
    build = _one_to_one if backgrounds.filler else _many_to_many
    by_domain = build(folder, backgrounds)
    return {domain: {name: of[name] for name in CLASSES} for domain, of in by_domain.items()}


def _one_to_one(root: Path, of: _Variant) -> dict[str, dict[str, list[str]]]:
    images: dict[str, dict[str, list[str]]] = {name: {} for name in (TEST, *GROUPS)}
    for k, name in enumerate(_ORDER):
        both = [_listed(root / half / of.test[k] / name) for half in ("0", "1")]
        images[TEST][name] = [path for paths in both for path in paths]
        for half, (group, share) in enumerate(zip(GROUPS, _SHARES, strict=True)):
            own = _listed(root / str(half) / of.train[k] / name)
            rest = _listed(root / str(half) / of.filler / name)
            # Fractions, not counts: for a complete folder of 3168 images they give DomainBed's
            # counts, and a smaller copy has the same mixture.
            images[group][name] = _first(own, share) + rest[: len(rest) - int(share * len(rest))]
    return images


def _many_to_many(root: Path, of: _Variant) -> dict[str, dict[str, list[str]]]:
    images: dict[str, dict[str, list[str]]] = {name: {} for name in (TEST, *GROUPS)}
    for k, name in enumerate(_ORDER):
        halves = (k, _SWAPPED[k])
        images[TEST][name] = [
            path for i in halves for path in _listed(root / "0" / of.test[i] / name)
        ]
        for group, i in zip(GROUPS, halves, strict=True):
            images[group][name] = _listed(root / "0" / of.train[i] / name)
    return images


def _first(paths: Sequence[str], share: float) -> list[str]:
    return list(paths[: int(share * len(paths))])


def _listed(folder: Path) -> list[str]:
    paths = images_of(Folders(folder.parents[2]).files(folder)) if os.path.isdir(folder) else []
    if not paths:
        place = os.path.join(*folder.parts[-3:])
        raise ConfigError(
            "dataset.root", folder.parents[2], f"has no images at {place}",
            "pass the folder that contains 0/location/class/image; fishr-data download creates it",
        )  # fmt: skip
    return paths
