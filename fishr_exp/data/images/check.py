"""Examines the images of a dataset before training."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from fishr_exp.core.errors import TrainingError
from fishr_exp.data.images.decoding import MAX_PIXELS, decode, reason
from fishr_exp.data.images.listed import Images

SMALLEST, LONGEST = 32, 4.0  # limits: pixels of the short side; long side over short side


class Found(NamedTuple):
    """One image."""

    domain: str
    path: str
    fault: str  # why it cannot be read; empty if it can
    size: tuple[int, int]  # width and height, pixels; (0, 0) if it cannot be read
    digest: str  # of the file's bytes; empty if it cannot be read
    color: tuple[int, ...] = ()  # red, green, blue, if all pixels have the same color


def examine(images: Images, max_pixels: int = MAX_PIXELS) -> list[Found]:
    """Read every image, several at a time; in the order of the domains and classes.

    Args:
        images: The images.
        max_pixels: See `decode`.
    """
    listed = [(d, path) for d, of in images.items() for own in of.values() for path in own]
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter lock
        found = pool.map(lambda one: _found(one[0], one[1], max_pixels), listed)
        return list(tqdm(found, "reading", len(listed), leave=False, disable=None))


def _found(domain: str, path: str, max_pixels: int) -> Found:
    try:
        image = decode(path, max_pixels)
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except TrainingError as error:
        empty = os.path.isfile(path) and not os.path.getsize(path)
        return Found(domain, path, "the file is empty" if empty else reason(error), (0, 0), "")
    except OSError as error:
        return Found(domain, path, error.strerror or type(error).__name__, (0, 0), "")
    ranges = image.getextrema()  # of each channel: the lowest and the highest level
    color = tuple(low for low, high in ranges if low == high)  # type: ignore[misc]
    return Found(domain, path, "", image.size, digest, color if len(color) == 3 else ())


def unreadable(found: Iterable[Found]) -> list[Found]:
    """Return the files that cannot be read: empty, truncated, or not images."""
    return [one for one in found if one.fault]


def oddly_sized(found: Iterable[Found]) -> list[Found]:
    """Return images with a side below `SMALLEST`, or an aspect ratio of at least `LONGEST`."""
    readable = [one for one in found if not one.fault]
    return [
        one
        for one in readable
        if min(one.size) < SMALLEST or max(one.size) >= LONGEST * min(one.size)
    ]


def of_one_color(found: Iterable[Found]) -> list[Found]:
    """Return images whose pixels all have the same color, such as black."""
    return [one for one in found if one.color]


def duplicates(found: Iterable[Found]) -> Iterator[list[Found]]:
    """Yield groups of identical files, first those that are in several domains, which leak."""
    groups = defaultdict(list)
    for one in found:
        if one.digest:
            groups[one.digest].append(one)
    twice = [group for group in groups.values() if len(group) > 1]
    yield from sorted(twice, key=lambda group: len({one.domain for one in group}) == 1)
