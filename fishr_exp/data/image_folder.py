"""Images on disk, `root/domain/class/image`: PACS, VLCS, OfficeHome and your own."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

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


def image_folder(*, root: str, name: str, image_size: int, augment: bool) -> Domains:
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

    Returns:
        Domains of images [3, image_size, image_size].

    Raises:
        ConfigError: If `image_size` is not positive, or `root` does not exist, holds no images,
            holds fewer than two domains, a domain without images, or domains whose classes differ.
    """
    if image_size < 1:
        raise ConfigError("dataset.image_size", image_size, "a size is at least 1 pixel")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        fault = "is no folder" if folder.exists() else "does not exist"
        raise ConfigError("dataset.root", root, fault, "pass the folder that holds the domains")
    try:
        files = {
            path.name: {c.name: _files(c) for c in _folders(path)} for path in _folders(folder)
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
    _check(root, images)
    by_name = {
        domain: ImageDomain(domain, classes, image_size=image_size, augment=augment)
        for domain, classes in images.items()
    }
    return Domains(name, by_name, len(next(iter(images.values()))), (3, image_size, image_size))


class ImageDomain:
    """Images of one domain, decoded when they are read.

    Args:
        name: The domain's name.
        classes: For each class, in the order of the labels, the paths of its images.
        image_size: Height and width of the images that are read, in pixels.
        augment: Whether a read with a generator augments: a random crop of 70 to 100 % of the
            area, resized; a flip; brightness, contrast, saturation and hue by up to 0.3; grey in
            1 of 10 images.

    Source:
        Gulrajani and Lopez-Paz 2021 (arXiv:2007.01434) and their code, for the augmentation.
    """

    def __init__(
        self,
        name: str,
        classes: Mapping[str, Sequence[str]],
        *,
        image_size: int,
        augment: bool,
    ) -> None:
        self.name = name
        self._paths = [path for paths in classes.values() for path in paths]
        sizes = torch.tensor([len(paths) for paths in classes.values()])
        self._y = torch.arange(len(sizes)).repeat_interleave(sizes)  # [N]
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
            return ImageOps.exif_transpose(image).convert("RGB")
    except _UNREADABLE as error:
        fault = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainingError(f"{path}: the image cannot be read ({fault})") from error


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
                "give the folders the same names in all domains",
            )
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
