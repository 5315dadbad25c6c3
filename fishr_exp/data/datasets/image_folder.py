"""Images on disk, `root/domain/class/image`: PACS, VLCS, OfficeHome and your own."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from fishr_exp.core.contracts import Domains, Minibatch
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.images.augmentation import Pixels, cut, draw
from fishr_exp.data.images.cache import Cached, cached
from fishr_exp.data.images.decoding import Files, Picture, fault

_log = logging.getLogger(__name__)
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_NAMED = 5  # classes that a message lists, before it only counts them


Images = Mapping[str, Mapping[str, Sequence[str]]]
"""Domain -> class -> paths of its images, in order."""


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

    Domains, classes and files are in the order of their names. Images lie at any depth under their
    class; hidden files, and files that by their names are no images, are passed over. Images are
    turned as their EXIF data say, as RGB, scaled by ImageNet's mean and deviation. They are decoded
    at every read, or once, with a cache; what is read is the same to the last bit.

    Args:
        root: The folder of the domains.
        name: The name of the dataset.
        image_size: Height and width of the images as the model sees them, in pixels.
        augment: Augment the training minibatches, by DomainBed's chain (see `ImageDomain`).
        domains: The folders that are domains, in this order; None: all.
        class_map: For each class, in the order of the labels, the folders that hold it, where
            domains call it by different names; None: classes are folders of the same names.
        on_bad_image: What becomes of an image that cannot be read: `error` ends the run when it
            meets one, `skip` reads all images at the start and leaves the bad ones out. A cache
            reads all images once, and then ends the run or leaves them out.
        cache: The folder that holds decoded images, one file a domain, or where they are written
            first; None: none are.
        stored_size: Images of more than `stored_size` × `stored_size` pixels are shrunk to this
            square when they are decoded, which bounds the cache; None: none are. With
            `image_size`, evaluation stays the same. Training crops keep the distribution that
            they have in the original image, but their details are those of the shrunk one, which
            departs from DomainBed.

    Returns:
        Domains of images [3, image_size, image_size].

    Raises:
        ConfigError: If an argument is not as it must be, or `find_images` finds none.
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


class Listed(NamedTuple):
    """The images of one domain."""

    paths: Sequence[str]
    labels: Tensor  # [N], int64
    validation: Tensor | None = None  # [N], bool: which make up that part; None: drawn by `split`


def by_class(images: Images) -> dict[str, Listed]:
    """List each domain's images class by class; a class's place is its label."""
    return {domain: Listed(*_flat(classes)) for domain, classes in images.items()}


def listed_domains(
    listed: Mapping[str, Listed],
    num_classes: int,
    *,
    root: str,
    name: str,
    image_size: int,
    augment: bool,
    on_bad_image: str,
    cache: str | None,
    stored_size: int | None,
) -> Domains:
    """Build a domain of each list of images; all but these two arguments are as of `image_folder`.

    Args:
        listed: The images by domain.
        num_classes: Number of classes.
        root: The folder that the images are under.
        name: The name of the dataset.
        image_size: As of `image_folder`.
        augment: As of `image_folder`.
        on_bad_image: As of `image_folder`.
        cache: As of `image_folder`.
        stored_size: As of `image_folder`.

    Raises:
        ConfigError: If an argument is not as it must be, or an image cannot be read.
    """
    if image_size < 1:
        raise ConfigError("dataset.image_size", image_size, "a size is at least 1 pixel")
    if stored_size is not None and stored_size < 1:
        raise ConfigError("dataset.stored_size", stored_size, "a size is at least 1 pixel")
    if on_bad_image not in ("error", "skip"):
        raise ConfigError("dataset.on_bad_image", on_bad_image, "choose from error, skip")
    pictures = {
        domain: stored(own.paths, root, f"{name}-{domain}", cache, stored_size)
        for domain, own in listed.items()
    }
    bad: dict[str, str] = {}  # path -> why it cannot be read
    if cache is not None:
        known = [
            listed[domain].paths[i] for domain, own in pictures.items() for i in own.unreadable
        ]
        bad = {path: fault(path) or "when the cache was made" for path in known}
    elif on_bad_image == "skip":
        bad = _faults([path for own in listed.values() for path in own.paths])
    if bad and on_bad_image == "error":
        first = next(iter(bad))
        raise ConfigError(
            "dataset.root",
            root,
            f"{len(bad)} image{'s' * (len(bad) > 1)} cannot be read, the first: {first} "
            f"({bad[first]})",
            "mend it, or leave them out with dataset.on_bad_image=skip",
        )
    skipped: dict[str, int] = {}
    by_name = {}
    for domain, (paths, labels, validation) in listed.items():
        kept = [i for i, path in enumerate(paths) if path not in bad]
        if lost := len(paths) - len(kept):
            skipped[domain] = lost
        if not kept:
            raise _empty(root, domain)
        by_name[domain] = ImageDomain(
            domain,
            pictures[domain].chosen(kept) if lost else pictures[domain],
            labels[kept],
            image_size=image_size,
            augment=augment,
            validation=None if validation is None else validation[kept].nonzero()[:, 0],
        )
    if bad:
        _log.warning(
            "skipped %d of %d images that cannot be read, the first: %s (%s)",
            len(bad),
            sum(len(own.paths) for own in listed.values()),
            *next(iter(bad.items())),
        )
    return Domains(name, by_name, num_classes, (3, image_size, image_size), skipped)


def find_images(
    *,
    root: str,
    domains: Sequence[str] | None = None,
    class_map: Mapping[str, Sequence[str]] | None = None,
) -> Images:
    """List the images of all domains and classes; the arguments are those of `image_folder`.

    Raises:
        ConfigError: If `root` does not exist, lacks a domain, holds fewer than two, one without
            images, or domains whose classes differ.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        reason = "is no folder" if folder.exists() else "does not exist"
        raise ConfigError("dataset.root", root, reason, "pass the folder that holds the domains")
    try:
        there = {path.name: path for path in _folders(folder)}
        if missing := [domain for domain in domains or () if domain not in there]:
            raise ConfigError(
                "dataset.root", root, f"has no folder {', '.join(missing)}; it has "
                f"{', '.join(list(there)[:_NAMED]) or 'none'}",
                "pass the folder that holds the domains, or their names as dataset.domains",
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
    passed_over = _count(files) - _count(images)
    if passed_over:
        files_said = "1 file" if passed_over == 1 else f"{passed_over} files"
        _log.info("%s: passed over %s, hidden or by name no image", folder, files_said)
    if class_map is not None:
        images = {domain: _mapped(domain, of, class_map) for domain, of in images.items()}
    _check(root, images)
    return images


def _mapped(
    domain: str, folders: Mapping[str, list[str]], class_map: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Put the folders of a domain together to classes; a class may have none here."""
    known = [folder for folders in class_map.values() for folder in folders]
    if twice := [folder for folder, count in Counter(known).items() if count > 1]:
        classes = [name for name, own in class_map.items() if twice[0] in own]
        raise ConfigError(
            "dataset.class_map",
            f"{{{', '.join(class_map)}}}",
            f"names the folder {twice[0]} for {' and '.join(dict.fromkeys(classes))}",
            "name it once",
        )
    if unknown := [folder for folder in folders if folder not in known]:
        raise ConfigError(
            "dataset.class_map",
            f"{{{', '.join(class_map)}}}",
            f"names no class for the folders {', '.join(unknown[:_NAMED])} of domain {domain}",
            "add each to the folders of its class, as in {car: [auto, vehicle]}",
        )
    return {
        name: [path for folder in of for path in folders.get(folder, ())]
        for name, of in class_map.items()
    }


def stored(
    paths: Sequence[str], root: str, name: str, cache: str | None, stored_size: int | None
) -> Files | Cached:
    """Return the images at `paths`: from the files, or from a cache, which is made if need be."""
    files = Files(paths, stored_size)
    return files if cache is None else cached(files, Path(root), name, Path(cache))


def _faults(paths: Sequence[str]) -> dict[str, str]:
    """Read all images; say of the bad ones why they cannot be read."""
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
        bar = tqdm(pool.map(fault, paths), "reading all images", len(paths), False, disable=None)
        return {path: why for path, why in zip(paths, bar, strict=True) if why}


class Pictures(Protocol):
    """Images by number: of files, of a cache, of a dataset of others."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Picture: ...


class ImageDomain:
    """Images of one domain.

    Args:
        name: The domain's name.
        pictures: The images, decoded when they are read, or from a cache.
        labels: Of the images, int64 [N].
        image_size: Height and width of the images that are read, in pixels.
        augment: Whether a read with a generator augments: a random crop of 70 to 100 % of the
            area, resized; a flip; brightness, contrast, saturation and hue by up to 0.3; grey in
            1 of 10 images. See `augmentation.py`.
        validation: Which of the images make up the validation part, int64; None: drawn by
            `split`.
    """

    def __init__(
        self,
        name: str,
        pictures: Pictures,
        labels: Tensor,
        *,
        image_size: int,
        augment: bool,
        validation: Tensor | None = None,
    ) -> None:
        self.name = name
        self.validation = validation
        self.pictures = pictures
        self._y = labels
        self._size = (image_size, image_size)
        self._augment = augment

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: Tensor, augment: torch.Generator | None = None) -> Minibatch:
        """Read the images at `indices` ([n], int64), augmented by draws from `augment`.

        Raises:
            TrainingError: If an image cannot be read; the message begins with its path.
        """
        return self.read_pixels(indices, augment).to(torch.device("cpu"))

    def read_pixels(self, indices: Tensor, augment: torch.Generator | None = None) -> Pixels:
        """Read as `read` does, up to the point where a device can take over."""
        pictures = [self.pictures[i] for i in indices.tolist()]
        x = torch.empty((len(pictures), 3, *self._size), dtype=torch.uint8)
        if augment is None or not self._augment:
            for place, (pixels, _) in zip(x, pictures, strict=True):
                height, width, _ = pixels.shape
                cut(pixels, (height, width), (0, 0, height, width), False, place)
            return Pixels(x, self._y[indices])
        drawn = draw(torch.tensor([picture.size for picture in pictures]), augment)
        for place, picture, box, flip in zip(
            x, pictures, drawn.box.tolist(), drawn.flip.tolist(), strict=True
        ):
            cut(picture.pixels, picture.size, box, flip, place)
        return Pixels(x, self._y[indices], drawn.colours)


def _flat(classes: Mapping[str, Sequence[str]]) -> tuple[list[str], Tensor]:
    """Return the paths of all classes, and their labels [N]."""
    sizes = torch.tensor([len(paths) for paths in classes.values()])
    paths = [path for of in classes.values() for path in of]
    return paths, torch.arange(len(sizes)).repeat_interleave(sizes)


def files_of(folder: Path) -> list[str]:
    """Return the image files at any depth under a folder, in the order of their names."""
    return [path for path in _files(folder) if _is_image(path)]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def _files(folder: Path) -> list[str]:
    """Return the files at any depth under a folder, in order, but none of hidden folders."""
    found = []
    for inner, folders, files in os.walk(folder, onerror=_reraise, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(name)]
        found += [os.path.join(inner, name) for name in files]
    return sorted(found)


def _reraise(error: OSError) -> None:  # os.walk would pass over what it cannot list
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
            "holds no images at domain/class/image",
            f"image files end in {', '.join(_SUFFIXES)}",
        )
    first, *others = images
    if not others:
        raise ConfigError(
            "dataset.root",
            root,
            f"holds one domain, {first}, and at least 2 are needed",
            "pass the folder that holds the folders of the domains",
        )
    if none := [domain for domain, classes in images.items() if not classes]:
        kept = [domain for domain in images if domain not in none]
        raise ConfigError(
            "dataset.root",
            root,
            f"the folder {none[0]} holds no folders of classes",
            f"if it is no domain, leave it out: dataset.domains=[{', '.join(kept)}]",
        )
    for other in others:
        if images[other].keys() != images[first].keys():
            raise ConfigError(
                "dataset.root",
                root,
                f"the classes of domain {other} differ from those of domain {first}: "
                f"{_difference(other, images[other], first, images[first])}",
                "give the folders the same names in all domains, or say which belong together: "
                "dataset.class_map={car: [auto, vehicle], ...}",
            )
    for domain, classes in images.items():
        if not any(classes.values()):
            raise _empty(root, domain)


def _empty(root: str, domain: str) -> ConfigError:
    return ConfigError(
        "dataset.root",
        root,
        f"domain {domain} holds no images",
        "add images, or take its folder out of the root",
    )


def _difference(one: str, ones: Iterable[str], other: str, others: Iterable[str]) -> str:
    alone = ((one, sorted(set(ones) - set(others))), (other, sorted(set(others) - set(ones))))
    return ", ".join(
        f"only {domain} has {' '.join(names[:_NAMED])}"
        + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for domain, names in alone
        if names
    )
