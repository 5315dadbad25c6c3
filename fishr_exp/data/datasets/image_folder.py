"""Images on disk, `root/domain/class/image`: PACS, VLCS, OfficeHome and your own."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fishr_exp.core.contracts import Domains
from fishr_exp.core.errors import ConfigError, printable, some
from fishr_exp.data.datasets.layout import check_layout, refuse_one_class
from fishr_exp.data.images.decoding import MAX_PIXELS
from fishr_exp.data.images.folders import SUFFIXES, Folders, folders_in, images_of, root_folder
from fishr_exp.data.images.listed import (
    Images,
    by_class,
    check_classes,
    check_missing_classes,
    empty_domain,
    listed_domains,
)

_log = logging.getLogger(__name__)


def image_folder(
    *,
    root: str,
    name: str,
    image_size: int,
    augment: bool,
    domains: Sequence[str] | None = None,
    class_map: Mapping[str, Sequence[str]] | None = None,
    missing_classes: str = "refuse",
    on_bad_image: str = "error",
    cache: str | None = None,
    stored_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Domains:
    """Build a domain of each folder under `root`; the folders in it are its classes.

    Domains, classes and files are in the order of their names. Images may be at any depth under
    their class, also behind links; hidden files, and files without the extension of an image, are
    ignored. What is not UTF-8 in the name of a domain or class is escaped. Images are rotated by
    their EXIF orientation, converted to RGB, and scaled by ImageNet's mean and standard deviation.
    They are decoded at every read, or only once with a cache; the result is identical.

    Args:
        root: The folder of the domains.
        name: The name of the dataset.
        image_size: Height and width of the images as the model sees them, in pixels.
        augment: Augment the training minibatches as DomainBed does (see `ImageDomain`).
        domains: The folders that are domains, in this order; None: all.
        class_map: For each class, in the order of the labels, the folders that contain it, for
            domains with different names for it; None: folders are classes of the same name.
        missing_classes: `refuse` a domain that has no folder of a class, or `allow` it; the classes
            are then those of all domains together. A class may always have an empty folder, or
            with `class_map` no folder. The run warns of each class without images.
        on_bad_image: How to handle an image that cannot be read: `error` stops the run when it
            reads one, `skip` reads all images at the start and leaves the bad ones out. With a
            cache, all images are read once, before the run is stopped or the bad ones are left
            out.
        cache: The folder of the cache of decoded images, one file per domain, which is created if
            missing; None: no cache.
        stored_size: Images of more than `stored_size` × `stored_size` pixels are shrunk to this
            square when they are decoded, which limits the size of the cache; None: no image is. If
            it equals `image_size`, evaluation does not change. Training crops have the same
            distribution as in the original image, but at the resolution of the shrunk one, which
            departs from DomainBed.
        max_pixels: An image of more pixels is not decoded, but handled by `on_bad_image`, since it
            may take all memory: up to about 1 GB at this limit.

    Returns:
        Domains of images [3, image_size, image_size].

    Raises:
        ConfigError: If an argument is invalid, or `find_images` fails.
    """
    images = find_images(
        root=root, domains=domains, class_map=class_map, missing_classes=missing_classes
    )
    return listed_domains(
        by_class(images),
        list(next(iter(images.values()))),
        root=root,
        name=name,
        image_size=image_size,
        augment=augment,
        on_bad_image=on_bad_image,
        cache=cache,
        stored_size=stored_size,
        max_pixels=max_pixels,
    )


def find_images(
    *,
    root: str,
    domains: Sequence[str] | None = None,
    class_map: Mapping[str, Sequence[str]] | None = None,
    missing_classes: str = "refuse",
) -> Images:
    """List the images of all domains and classes; the arguments are those of `image_folder`.

    Raises:
        ConfigError: If `root` does not exist, lacks a domain, is not arranged as
            domain/class/image, or contains fewer than two domains or classes, a domain without
            images, domains with different classes, or a link to a folder that contains it.
    """
    check_missing_classes(missing_classes)
    files = _listed(root, domains)
    images = {d: {c: images_of(paths) for c, paths in of.items()} for d, of in files.items()}
    if ignored := _count(files) - _count(images):
        files_said = "1 file" if ignored == 1 else f"{ignored} files"
        message = "%s: ignored %s that are hidden or are not images by name"
        _log.info(message, printable(root), files_said)
    if class_map is not None:
        images = {domain: _mapped(domain, of, class_map) for domain, of in images.items()}
    _check_domains(root, images)
    if class_map is None:
        check_layout(root, images)
        images = _with_the_same_classes(root, images, missing_classes)
    refuse_one_class(root, images)
    for domain, classes in images.items():
        if not any(classes.values()):
            raise empty_domain(root, domain)
    check_classes("dataset.root", root, images, "allow")  # an empty folder or a map is a choice
    return images


def _listed(root: str, domains: Sequence[str] | None) -> dict[str, dict[str, list[str]]]:
    """Return the files of each domain and folder in it."""
    folder = root_folder(root)
    if not os.path.isdir(folder):  # also of a path that is too long
        reason = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise ConfigError("dataset.root", root, reason, "pass the folder that contains the domains")
    folders = Folders(root)
    try:
        there = {printable(path.name): path for path in folders_in(folder)}
        if missing := [domain for domain in domains or () if domain not in there]:
            raise ConfigError(
                "dataset.root", root, f"has no folder {', '.join(missing)}; it has "
                f"{some(there) or 'none'}",
                "pass the folder that contains the domains, or their names as dataset.domains",
            )  # fmt: skip
        files: dict[str, dict[str, list[str]]] = {}
        for domain in domains or there:
            folders.check_link(there[domain])
            classes = folders_in(there[domain])
            files[domain] = {printable(path.name): folders.files(path) for path in classes}
    except OSError as error:
        raise ConfigError(
            "dataset.root",
            root,
            f"{error.filename} cannot be listed ({error.strerror})",
            "check its permissions",
        ) from error
    return files


def _mapped(
    domain: str, folders: Mapping[str, list[str]], class_map: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Merge the folders of a domain into classes; a class may have no folder in this domain."""
    known = [folder for folders in class_map.values() for folder in folders]
    if twice := [folder for folder, count in Counter(known).items() if count > 1]:
        classes = [name for name, own in class_map.items() if twice[0] in own]
        raise ConfigError(
            "dataset.class_map",
            f"{{{', '.join(class_map)}}}",
            f"lists the folder {twice[0]} for {' and '.join(dict.fromkeys(classes))}",
            "list it once",
        )
    if unknown := [folder for folder in folders if folder not in known]:
        raise ConfigError(
            "dataset.class_map",
            f"{{{', '.join(class_map)}}}",
            f"has no class for the folders {some(unknown)} of domain {domain}",
            "add each to the folders of its class, as in {car: [auto, vehicle]}",
        )
    return {
        name: [path for folder in of for path in folders.get(folder, ())]
        for name, of in class_map.items()
    }


def _count(files: Mapping[str, Mapping[str, Sequence[str]]]) -> int:
    return sum(len(paths) for classes in files.values() for paths in classes.values())


def _check_domains(root: str, images: Images) -> None:
    if _count(images) == 0:
        raise ConfigError(
            "dataset.root",
            root,
            "contains no images at domain/class/image",
            f"image files end in {', '.join(SUFFIXES)}",
        )
    first, *others = images
    if not others:
        raise ConfigError(
            "dataset.root",
            root,
            f"contains one domain, {first}, and at least 2 are needed",
            "pass the folder that contains the folders of the domains",
        )
    if none := [domain for domain, classes in images.items() if not classes]:
        kept = [domain for domain in images if domain not in none]
        raise ConfigError(
            "dataset.root",
            root,
            f"the folder {none[0]} contains no class folders",
            f"if it is not a domain, exclude it: dataset.domains=[{', '.join(kept)}]",
        )


def _with_the_same_classes(
    root: str, images: Mapping[str, Mapping[str, list[str]]], missing_classes: str
) -> dict[str, dict[str, list[str]]]:
    """Give every domain the classes of all domains, in the order of their names."""
    first, *others = images
    for other in others:
        if missing_classes == "refuse" and images[other].keys() != images[first].keys():
            raise ConfigError(
                "dataset.root",
                root,
                f"the classes of domain {other} differ from those of domain {first}: "
                f"{_difference(other, images[other], first, images[first])}",
                "use the same folder names in all domains, map them to classes: "
                "dataset.class_map={car: [auto, vehicle], ...}, or allow that a domain lacks a "
                "class: dataset.missing_classes=allow",
            )
    classes = sorted({name for of in images.values() for name in of})
    return {d: {name: list(of.get(name, ())) for name in classes} for d, of in images.items()}


def _difference(one: str, ones: Iterable[str], other: str, others: Iterable[str]) -> str:
    only = ((one, sorted(set(ones) - set(others))), (other, sorted(set(others) - set(ones))))
    return ", ".join(f"only {domain} has {some(names, ' ')}" for domain, names in only if names)
