"""Images on disk, `root/domain/class/image`: PACS, VLCS, OfficeHome and your own."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fishr_exp.core.contracts import Domains
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.images.listed import Images, by_class, empty_domain, listed_domains

_log = logging.getLogger(__name__)
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_NAMED = 5  # maximum number of names in a message; the rest are counted


def image_folder(
    *,
    root: str,
    name: str,
    image_size: int,
    augment: bool,
    domains: Sequence[str] | None = None,
    class_map: Mapping[str, Sequence[str]] | None = None,
    on_bad_image: str = "error",
    cache: str | None = None,
    stored_size: int | None = None,
) -> Domains:
    """Build a domain of each folder under `root`; the folders in it are its classes.

    Domains, classes and files are in the order of their names. Images may be at any depth under
    their class; hidden files, and files without the extension of an image, are ignored. Images are
    rotated by their EXIF orientation, converted to RGB, and scaled by ImageNet's mean and standard
    deviation. They are decoded at every read, or only once with a cache; the result is identical.

    Args:
        root: The folder of the domains.
        name: The name of the dataset.
        image_size: Height and width of the images as the model sees them, in pixels.
        augment: Augment the training minibatches as DomainBed does (see `ImageDomain`).
        domains: The folders that are domains, in this order; None: all.
        class_map: For each class, in the order of the labels, the folders that contain it, for
            domains with different names for it; None: folders are classes of the same name.
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

    Returns:
        Domains of images [3, image_size, image_size].

    Raises:
        ConfigError: If an argument is invalid, or `find_images` fails.
    """
    images = find_images(root=root, domains=domains, class_map=class_map)
    return listed_domains(
        by_class(images),
        len(next(iter(images.values()))),
        root=root,
        name=name,
        image_size=image_size,
        augment=augment,
        on_bad_image=on_bad_image,
        cache=cache,
        stored_size=stored_size,
    )


def find_images(
    *,
    root: str,
    domains: Sequence[str] | None = None,
    class_map: Mapping[str, Sequence[str]] | None = None,
) -> Images:
    """List the images of all domains and classes; the arguments are those of `image_folder`.

    Raises:
        ConfigError: If `root` does not exist, lacks a domain, or contains fewer than two domains,
            a domain without images, or domains with different classes.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError("dataset.root", root, reason, "pass the folder that contains the domains")
    try:
        there = {path.name: path for path in _folders(folder)}
        if missing := [domain for domain in domains or () if domain not in there]:
            raise ConfigError(
                "dataset.root", root, f"has no folder {', '.join(missing)}; it has "
                f"{', '.join(list(there)[:_NAMED]) or 'none'}",
                "pass the folder that contains the domains, or their names as dataset.domains",
            )  # fmt: skip
        files = {
            domain: {c.name: _files(c) for c in _folders(there[domain])}
            for domain in domains or there
        }
    except OSError as error:
        raise ConfigError(
            "dataset.root",
            root,
            f"{error.filename} cannot be listed ({error.strerror})",
            "check its permissions",
        ) from error
    images = {
        domain: {name: [path for path in paths if _is_image(path)] for name, paths in of.items()}
        for domain, of in files.items()
    }
    ignored = _count(files) - _count(images)
    if ignored:
        files_said = "1 file" if ignored == 1 else f"{ignored} files"
        _log.info("%s: ignored %s that are hidden or are not images by name", folder, files_said)
    if class_map is not None:
        images = {domain: _mapped(domain, of, class_map) for domain, of in images.items()}
    _check(root, images)
    return images


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
            f"has no class for the folders {', '.join(unknown[:_NAMED])} of domain {domain}",
            "add each to the folders of its class, as in {car: [auto, vehicle]}",
        )
    return {
        name: [path for folder in of for path in folders.get(folder, ())]
        for name, of in class_map.items()
    }


def files_of(folder: Path) -> list[str]:
    """Return the image files at any depth under a folder, in the order of their names."""
    return [path for path in _files(folder) if _is_image(path)]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def _files(folder: Path) -> list[str]:
    """Return the files at any depth under a folder, in order, except in hidden folders."""
    found = []
    for inner, folders, files in os.walk(folder, onerror=_reraise, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(name)]
        found += [os.path.join(inner, name) for name in files]
    return sorted(found)


def _reraise(error: OSError) -> None:  # os.walk would ignore folders that it cannot list
    raise error


def _count(files: Mapping[str, Mapping[str, Sequence[str]]]) -> int:
    return sum(len(paths) for classes in files.values() for paths in classes.values())


def _is_image(path: str) -> bool:
    name = os.path.basename(path)
    return name.lower().endswith(_SUFFIXES) and not _hidden(name)


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _check(root: str, images: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    if _count(images) == 0:
        raise ConfigError(
            "dataset.root",
            root,
            "contains no images at domain/class/image",
            f"image files end in {', '.join(_SUFFIXES)}",
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
    for other in others:
        if images[other].keys() != images[first].keys():
            raise ConfigError(
                "dataset.root",
                root,
                f"the classes of domain {other} differ from those of domain {first}: "
                f"{_difference(other, images[other], first, images[first])}",
                "use the same folder names in all domains, or map them to classes: "
                "dataset.class_map={car: [auto, vehicle], ...}",
            )
    for domain, classes in images.items():
        if not any(classes.values()):
            raise empty_domain(root, domain)


def _difference(one: str, ones: Iterable[str], other: str, others: Iterable[str]) -> str:
    only = ((one, sorted(set(ones) - set(others))), (other, sorted(set(others) - set(ones))))
    return ", ".join(
        f"only {domain} has {' '.join(names[:_NAMED])}"
        + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for domain, names in only
        if names
    )
