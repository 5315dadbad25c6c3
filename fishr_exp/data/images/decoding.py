"""Decodes image files."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from fishr_exp.core.errors import TrainingError

# Raised by Pillow for files that are truncated, damaged, not images, or suspiciously large.
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)


class Picture(NamedTuple):
    """A decoded image."""

    pixels: np.ndarray  # [h, w, 3], uint8
    size: tuple[int, int]  # height and width before it was shrunk


class Files:
    """Images decoded at every read.

    Args:
        paths: Paths of the images.
        stored_size: Images of more than `stored_size` × `stored_size` pixels are shrunk to this
            square; None: no image is.
    """

    def __init__(self, paths: Sequence[str], stored_size: int | None = None) -> None:
        self.paths = list(paths)
        self.stored_size = stored_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Picture:
        pixels = np.asarray(decode(self.paths[i]))
        height, width, _ = pixels.shape
        if self.stored_size is not None and width * height > self.stored_size**2:
            return Picture(_shrunk(pixels, self.stored_size), (height, width))
        return Picture(pixels, (height, width))

    def selected(self, places: Sequence[int]) -> Files:
        """Return the images at these positions."""
        return Files([self.paths[i] for i in places], self.stored_size)

    unreadable: Sequence[int] = ()  # unknown before they are read


def _shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    from fishr_exp.data.images.compiled import resize  # slow import

    out = np.empty((3, side, side), np.uint8)
    height, width, _ = pixels.shape
    resize(pixels, 0, 0, height, width, False, out)
    return np.ascontiguousarray(out.transpose(1, 2, 0))


def decode(path: str) -> Image.Image:
    """Read a file as RGB, rotated by its EXIF orientation.

    Raises:
        TrainingError: If it cannot be read; the message begins with its path.
    """
    try:
        with Image.open(path) as image:
            return _as_rgb(ImageOps.exif_transpose(image))
    except _UNREADABLE as error:
        hint = "repair it, or skip such images with dataset.on_bad_image=skip"
        raise TrainingError(
            f"{path}: the image cannot be read ({_message(error)}); {hint}"
        ) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB as displayed; transparency is dropped."""
    if image.mode.startswith("I"):  # 16 bits, or 32 with 16 in use: Pillow would clip them
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)
                               ).convert("RGB")  # fmt: skip
    return image.convert("RGB")


def fault(path: str) -> str:
    """Return why an image cannot be read; empty if it can."""
    try:
        decode(path)
    except TrainingError as error:
        return _message(error.__cause__ or error)
    return ""


def _message(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
