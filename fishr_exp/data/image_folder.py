"""Images on disk, `root/domain/class/image`: PACS, VLCS, OfficeHome and your own."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from fishr_exp.contracts import Domains, Minibatch
from fishr_exp.errors import ConfigError, TrainingError
from fishr_exp.vision import torchvision

_log = logging.getLogger(__name__)
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
_IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
# What Pillow raises for files that are cut off, damaged, no images, or too big to be honest.
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)
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
) -> Domains:
    """Build a domain of each folder under `root`; the folders in it are its classes.

    Domains, classes and files are in the order of their names. Images lie at any depth under their
    class; hidden files, and files that by their names are no images, are passed over. Images are
    decoded when they are read: turned as their EXIF data say, as RGB, scaled by ImageNet's mean
    and deviation.

    Args:
        root: The folder of the domains.
        name: The name of the dataset.
        image_size: Height and width of the images as the model sees them, in pixels.
        augment: Augment the training minibatches, by DomainBed's chain (see `ImageDomain`).
        domains: The folders that are domains, in this order; None: all.
        class_map: For each class, in the order of the labels, the folders that hold it, where
            domains call it by different names; None: classes are folders of the same names.
        on_bad_image: What becomes of an image that cannot be read: `error` ends the run when it
            meets one, `skip` reads all images at the start and leaves the bad ones out.

    Returns:
        Domains of images [3, image_size, image_size].

    Raises:
        ConfigError: If an argument is not as it must be, or `find_images` finds none.
    """
    if image_size < 1:
        raise ConfigError("dataset.image_size", image_size, "a size is at least 1 pixel")
    if on_bad_image not in ("error", "skip"):
        raise ConfigError("dataset.on_bad_image", on_bad_image, "choose from error, skip")
    images = find_images(root=root, domains=domains, class_map=class_map)
    skipped: dict[str, int] = {}
    if on_bad_image == "skip":
        images, skipped = _readable(images)
        _check_filled(root, images)
    by_name = {
        domain: ImageDomain(domain, *_flat(classes), image_size=image_size, augment=augment)
        for domain, classes in images.items()
    }
    shape = (3, image_size, image_size)
    return Domains(name, by_name, len(next(iter(images.values()))), shape, skipped)


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
        _log.info("%s: passed over %d files that are hidden or no images", folder, passed_over)
    if class_map is not None:
        images = {domain: _mapped(domain, of, class_map) for domain, of in images.items()}
    _check(root, images)
    return images


def _mapped(
    domain: str, folders: Mapping[str, list[str]], class_map: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Put the folders of a domain together to classes; a class may have none here."""
    known = {folder for folders in class_map.values() for folder in folders}
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


def _readable(images: Images) -> tuple[dict[str, dict[str, list[str]]], dict[str, int]]:
    """Leave out the images that cannot be read; return the others, and how many a domain lost."""
    paths = [path for of in images.values() for own in of.values() for path in own]
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
        bar = tqdm(pool.map(fault, paths), "reading all images", len(paths), False, disable=None)
        faults = dict(zip(paths, bar, strict=True))
    kept = {
        domain: {name: [path for path in own if not faults[path]] for name, own in of.items()}
        for domain, of in images.items()
    }
    skipped = {domain: _count({domain: images[domain]}) - _count({domain: kept[domain]})
               for domain in images}  # fmt: skip
    if bad := [path for path in paths if faults[path]]:
        _log.warning(
            "skipped %d of %d images that cannot be read, the first: %s (%s)",
            len(bad),
            len(paths),
            bad[0],
            faults[bad[0]],
        )
    return kept, {domain: count for domain, count in skipped.items() if count}


class ImageDomain:
    """Images of one domain, decoded when they are read.

    Args:
        name: The domain's name.
        paths: Of its images.
        labels: Of its images, int64 [N].
        image_size: Height and width of the images that are read, in pixels.
        augment: Whether a read with a generator augments: a random crop of 70 to 100 % of the
            area, resized; a flip; brightness, contrast, saturation and hue by up to 0.3; grey in
            1 of 10 images.
        validation: Which of the images make up the validation part, int64; None: drawn by
            `split`.

    Source:
        Gulrajani and Lopez-Paz 2021 (arXiv:2007.01434) and their code, for the augmentation.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        labels: Tensor,
        *,
        image_size: int,
        augment: bool,
        validation: Tensor | None = None,
    ) -> None:
        self.name = name
        self.validation = validation
        self._paths = list(paths)
        self._y = labels
        self._size = (image_size, image_size)
        self._augment = _domainbed_chain(image_size) if augment else None

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: Tensor, augment: torch.Generator | None = None) -> Minibatch:
        """Read the images at `indices` ([n], int64), augmented by draws from `augment`.

        Raises:
            TrainingError: If an image cannot be read; the message begins with its path.
        """
        paths = [self._paths[i] for i in indices.tolist()]
        if augment is None or self._augment is None:
            pixels = [np.asarray(self._resized(_decode(path))) for path in paths]
        else:
            with _global_draws_from(augment):
                pixels = [np.asarray(self._augment(_decode(path))) for path in paths]
        return Minibatch(_normalised(np.stack(pixels)), self._y[indices])

    def _resized(self, image: Image.Image) -> Image.Image:
        return image.resize(self._size, Image.Resampling.BILINEAR)


def _flat(classes: Mapping[str, Sequence[str]]) -> tuple[list[str], Tensor]:
    """Return the paths of all classes, and their labels [N]."""
    sizes = torch.tensor([len(paths) for paths in classes.values()])
    paths = [path for of in classes.values() for path in of]
    return paths, torch.arange(len(sizes)).repeat_interleave(sizes)


def _domainbed_chain(image_size: int) -> Callable[[Image.Image], Image.Image]:
    v2 = torchvision.transforms.v2
    return v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=(0.7, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.3),
            v2.RandomGrayscale(p=0.1),
        ]
    )


@contextlib.contextmanager
def _global_draws_from(stream: torch.Generator) -> Iterator[None]:
    """Seed the CPU's global stream from `stream` for a while, for torchvision draws from there."""
    seed = int(torch.randint(2**63 - 1, (), generator=stream))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA's as well
        yield


def _decode(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return _as_rgb(ImageOps.exif_transpose(image))
    except _UNREADABLE as error:
        raise TrainingError(f"{path}: the image cannot be read ({_said(error)})") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    """Show an image of any mode as a person would see it; transparency shows what is behind it."""
    if image.mode.startswith("I"):  # 16 bits, or 32 with 16 in use: Pillow would cut them off
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)
                               ).convert("RGB")  # fmt: skip
    return image.convert("RGB")


def fault(path: str) -> str:
    """Say why an image cannot be read; empty where it can."""
    try:
        _decode(path)
    except TrainingError as error:
        return _said(error.__cause__ or error)
    return ""


def _said(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _normalised(pixels: np.ndarray) -> Tensor:
    """Scale pixels [n, H, W, 3], uint8, to x [n, 3, H, W], float32."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return x.to(torch.float32).div_(255).sub_(_IMAGENET_MEAN).div_(_IMAGENET_STD)


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
    _check_filled(root, images)


def _check_filled(root: str, images: Images) -> None:
    for domain, classes in images.items():
        if not any(classes.values()):
            raise ConfigError(
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
