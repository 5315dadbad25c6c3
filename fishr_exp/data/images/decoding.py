"""Decodes image files."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from fishr_exp.core.errors import TrainingError, printable
from fishr_exp.core.files import require_file

MAX_PIXELS = 50_000_000  # of an image, whose decoding takes up to about 1 GB
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit only warns, up to its double
_MOST_BYTES = 16  # per pixel, of the largest file that may be an image of so many pixels
# What Pillow decodes in this process; it would start other programs for some of the rest.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")


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
        max_pixels: Images of more pixels are not decoded, but count as unreadable.
    """

    def __init__(
        self,
        paths: Sequence[str],
        stored_size: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.paths = list(paths)
        self.stored_size = stored_size
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Picture:
        pixels = np.asarray(decode(self.paths[i], self.max_pixels))
        height, width, _ = pixels.shape
        if self.stored_size is not None and width * height > self.stored_size**2:
            return Picture(_shrunk(pixels, self.stored_size), (height, width))
        return Picture(pixels, (height, width))

    def selected(self, places: Sequence[int]) -> Files:
        """Return the images at these positions."""
        return Files([self.paths[i] for i in places], self.stored_size, self.max_pixels)

    unreadable: Sequence[int] = ()  # unknown before they are read


def _shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    from fishr_exp.data.images.compiled import resize  # slow import

    out = np.empty((3, side, side), np.uint8)
    height, width, _ = pixels.shape
    resize(pixels, 0, 0, height, width, False, out)
    return np.ascontiguousarray(out.transpose(1, 2, 0))


def decode(path: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a file as RGB, rotated by its EXIF orientation.

    Args:
        path: The file.
        max_pixels: An image of more pixels, which its header states, is not decoded.

    Raises:
        TrainingError: If it cannot be read; the message begins with its path.
    """
    try:
        require_file(path)
        if os.path.getsize(path) > _MOST_BYTES * max_pixels:
            raise ValueError(f"its size is above that of images of {_limit(max_pixels)}")
        with Image.open(path, formats=_formats()) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ValueError(f"its {width}x{height} pixels are more than {_limit(max_pixels)}")
            return _as_rgb(ImageOps.exif_transpose(image), image.format)
    except Exception as error:  # a decoder raises almost anything
        hint = "repair it, or skip such images with dataset.on_bad_image=skip"
        why = f"the image cannot be read ({_message(error)})"
        raise TrainingError(printable(f"{path}: {why}; {hint}")) from error


def _limit(max_pixels: int) -> str:
    return f"dataset.max_pixels={max_pixels}"


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of `_FORMATS` that this version of Pillow knows."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _as_rgb(image: Image.Image, form: str | None) -> Image.Image:
    """Convert an image of any mode, from a file of a form such as PNG, to RGB as displayed.

    Transparency is dropped.
    """
    if image.mode == "F":
        return Image.fromarray(_levels_of_floats(np.asarray(image))).convert("RGB")
    if image.mode.startswith("I"):  # Pillow would clip these to 8 bits
        # A PNG or PGM of 16 bits has 32 in (older) versions of Pillow.
        depth = 16 if image.mode != "I" or form in ("PNG", "PPM") else None
        return Image.fromarray(_levels_of_integers(np.asarray(image), depth)).convert("RGB")
    return image.convert("RGB")


_ROUNDING = 1e-3  # that floats may be outside of [0, 1]


def _levels_of_floats(values: np.ndarray) -> np.ndarray:
    """Return the levels 0 to 255 of floats [h, w]: in [0, 1] by convention, or levels."""
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are NaN or infinite")
    low, high = values.min(), values.max()
    if low > -_ROUNDING and high < 1 + _ROUNDING:
        values = 255 * values
    elif low < 0 or not 1.5 < high <= 255:  # standardized, of 16 bits, ...
        raise ValueError(f"its pixels, from {low:g} to {high:g}, are not in [0, 1] or [0, 255]")
    return values.clip(0, 255).round().astype(np.uint8)


def _levels_of_integers(values: np.ndarray, depth: int | None) -> np.ndarray:
    """Return the levels 0 to 255 of integers [h, w] of so many bits.

    None: of 32 bits, of which files often use only 8 or 16; which, the largest value says.
    """
    top = int(values.max())
    if depth is None:
        depth = 8 if top < 2**8 else 16 if top < 2**16 else 31
    if depth == 31 and top < 2**24:
        raise ValueError(f"its pixels, integers up to {top}, have neither 8, 16 nor 32 bits")
    white = 2**depth - 1
    return (values.clip(0, white) * (255 / white)).round().astype(np.uint8)


def fault(path: str, max_pixels: int = MAX_PIXELS) -> str:
    """Return why an image cannot be read; empty if it can."""
    try:
        decode(path, max_pixels)
    except TrainingError as error:
        return reason(error)
    return ""


def reason(error: TrainingError) -> str:
    """Return why an image cannot be read, from the error of `decode`."""
    return _message(error.__cause__ or error)


def _message(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    if not text or not isinstance(error, OSError | ValueError | SyntaxError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text.splitlines()[0]
