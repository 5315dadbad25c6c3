"""Decoded images of a domain in one file, mapped into memory.

    magic, number of images N            16 bytes
    digest of the sources                32 bytes, SHA-256
    digest of the pixels                 32 bytes, SHA-256
    height, width, both of the original  4 N numbers of 4 bytes; height 0: an unreadable image
    pixels                               of the images, concatenated, [h, w, 3], uint8

The sources are the paths relative to the root, in order, with sizes and modification times. A file
with unexpected sources, size or layout is written again, under another name, and replaces the old
one when it is complete: data mapped by a process does not change. A lock makes one process write
while the others wait for it.
"""  # fmt: skip

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.core.files import expanded, require_file
from fishr_exp.data.images.decoding import MAX_PIXELS, Files, Picture

_log = logging.getLogger(__name__)
# Version 1 was shrunk by Pillow, whose newer versions differ by a level; version 2 has black images
# in place of floats, and of integers of 32 bits.
_MAGIC = b"fishr-3\n"
_HEAD = struct.Struct("<8sQ32s32s")
_AT_ONCE = 256  # images decoded ahead of the writer
_CHUNK = 1 << 24  # bytes to digest at a time


class Cached:
    """Images in a file of the cache.

    Args:
        path: The file.
        sources: Digest of the expected sources.
        places: Positions of the images to use, in order; None: all.

    Raises:
        ValueError: If the file is not as expected.
        OSError: If it cannot be read.
    """

    def __init__(self, path: Path, sources: bytes, places: Sequence[int] | None = None) -> None:
        self.path = path
        self._sources = sources
        self._places = places
        require_file(path)
        with path.open("rb") as file:
            magic, count, found, self._digest = _HEAD.unpack(file.read(_HEAD.size).ljust(80))
            if magic != _MAGIC or found != sources:
                raise ValueError("made from other images")
            sizes, ends = _layout(file, count)
            offset = file.tell()
            # An empty file cannot be mapped.
            self._map = np.memmap(file, np.uint8, "r", offset) if ends[-1:].any() else _EMPTY
        self._sizes, self._ends = sizes.tolist(), ends.tolist()

    def __reduce__(self) -> tuple[Callable[..., Cached], tuple[Path, bytes, Sequence[int] | None]]:
        return _reopen, (self.path, self._sources, self._places)  # a map would be pickled as a copy

    def __len__(self) -> int:
        return len(self._sizes if self._places is None else self._places)

    def __getitem__(self, i: int) -> Picture:
        place = i if self._places is None else self._places[i]
        h, w, height, width = self._sizes[place]
        end = self._ends[place]
        return Picture(self._map[end - h * w * 3 : end].reshape(h, w, 3), (height, width))

    def selected(self, places: Sequence[int]) -> Cached:
        """Return the images at these positions."""
        return Cached(self.path, self._sources, places)

    @property
    def unreadable(self) -> Sequence[int]:
        """The images that could not be read when the file was made."""
        return [i for i, size in enumerate(self._sizes) if not size[0]]

    def is_intact(self) -> bool:
        """Read all pixels, and return whether they are those that were written."""
        digest = hashlib.sha256()
        for start in range(0, len(self._map), _CHUNK):
            digest.update(self._map[start : start + _CHUNK].data)
        return digest.digest() == self._digest


_EMPTY = np.empty(0, np.uint8)


def _layout(file: BinaryIO, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the sizes [N, 4] of the images, and return them with the ends [N] of their pixels.

    Raises:
        ValueError: If they are not those of the pixels that follow.
    """
    length = os.fstat(file.fileno()).st_size - _HEAD.size
    if not 0 <= 16 * count <= length:
        raise ValueError("truncated")
    sizes = np.frombuffer(file.read(16 * count), "<i4").reshape(count, 4)
    areas = sizes[:, 0].astype(np.int64) * sizes[:, 1]  # [N]
    readable = sizes[:, 0] != 0
    if (sizes[readable] <= 0).any() or sizes[~readable].any():
        raise ValueError("sizes that no image has")
    if (areas > length).any():  # before the sum, which would overflow
        raise ValueError("truncated")
    ends = np.cumsum(3 * areas)
    if length - 16 * count != (ends[-1] if count else 0):
        raise ValueError("truncated")
    return sizes, ends


def _reopen(path: Path, sources: bytes, places: Sequence[int] | None) -> Cached:
    try:
        return Cached(path, sources, places)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: the cache was changed during the run") from error


def cached(files: Files, root: Path, name: str, folder: Path) -> Cached:
    """Open the cache of `files`, or create it.

    Args:
        files: The images.
        root: The folder that contains them.
        name: Part of the cache's file name, with a digest of the root and the size of the images.
        folder: The folder of the cache.

    Raises:
        ConfigError: If it cannot be written.
    """
    folder, root = expanded(folder), expanded(root)
    size = files.stored_size or "original"
    stem = re.sub(r"[^\w.-]", "_", name)
    location = _sha256(f"{name} {root.resolve()}")[:8]
    path = folder / f"{stem}-{size}-{location}.pixels"
    try:
        sources = _digest_of_sources(files, root)
        if found := _found(path, sources):
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if found := _found(path, sources):  # another process was first
                return found
            if path.exists():
                _log.info(
                    "%s: made from other images or by an earlier version, or truncated; it is "
                    "created again",
                    path,
                )
            _write(path, files, sources, f"decoding {name}")
        return Cached(path, sources)
    except OSError as error:
        raise ConfigError(
            "dataset.cache",
            str(folder),
            f"{error.filename or path} cannot be written ({error.strerror or error})",
            "choose a folder with enough space, or store smaller images: dataset.stored_size=224",
        ) from error


def _sha256(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()


def _found(path: Path, sources: bytes) -> Cached | None:
    try:
        return Cached(path, sources)
    except (FileNotFoundError, ValueError):
        return None


def _digest_of_sources(files: Files, root: Path) -> bytes:
    digest = hashlib.sha256(f"{files.stored_size}\n".encode())
    if files.max_pixels != MAX_PIXELS:  # a key that came later
        digest.update(f"{files.max_pixels} pixels\n".encode())
    given, resolved = os.path.join(os.path.abspath(root), ""), root.resolve()
    for path in map(os.path.abspath, files.paths):
        # Named from the root as it was given, so that a link to it has the cache of its target.
        name = os.path.relpath(path, given if path.startswith(given) else resolved)
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):  # a path of a list may be any text
            state = "gone"
        digest.update(f"{name}\0{state}\n".encode(errors="surrogateescape"))
    return digest.digest()


def _write(path: Path, files: Files, sources: bytes, title: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # of a killed process, or something that is not a file
    try:
        with part.open("xb") as file:
            _write_all(file, files, sources, title)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _write_all(file: BinaryIO, files: Files, sources: bytes, title: str) -> None:
    sizes = np.zeros((len(files), 4), "<i4")
    digest = hashlib.sha256()
    file.seek(_HEAD.size + sizes.nbytes)
    for i, picture in enumerate(
        tqdm(_decoded(files), title, len(files), leave=False, disable=None)
    ):
        if picture is not None:
            sizes[i] = *picture.pixels.shape[:2], *picture.size
            pixels = np.ascontiguousarray(picture.pixels).data
            digest.update(pixels)
            file.write(pixels)
    file.seek(0)
    file.write(_HEAD.pack(_MAGIC, len(files), sources, digest.digest()))
    file.write(sizes.tobytes())


def _decoded(files: Files) -> Iterator[Picture | None]:
    """Decode several at a time, but not far ahead of the writer."""

    def one(i: int) -> Picture | None:
        try:
            return files[i]
        except TrainingError:
            return None

    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter lock
        for start in range(0, len(files), _AT_ONCE):
            yield from pool.map(one, range(start, min(start + _AT_ONCE, len(files))))
