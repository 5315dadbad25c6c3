"""Recognizes folders of images that are arranged in another way than domain/class/image."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from fishr_exp.core.errors import ConfigError, some
from fishr_exp.data.images.listed import Images

# Names of folders that are parts of a split, in lower case.
_PARTS = {"train", "training", "val", "valid", "validation", "crossval", "dev", "test", "testing"}


def check_layout(root: str, images: Images) -> None:
    """Refuse domains whose folders are parts of a split, as in domain/train/class/image.

    Raises:
        ConfigError: If they are.
    """
    for domain, classes in images.items():
        if classes and {name.lower() for name in classes} <= _PARTS:
            raise ConfigError(
                "dataset.root",
                root,
                f"the folders of domain {domain} are parts of a split, not classes: "
                f"{', '.join(classes)}",
                "merge them into domain/class/image (holdout_fraction splits each domain), or "
                "keep the parts with dataset=path_lists; if they are classes, pass "
                f"dataset.class_map={{{', '.join(f'{name}: [{name}]' for name in classes)}}}",
            )


def refuse_one_class(root: str, images: Images) -> None:
    """Refuse a dataset of one class, which may be one folder too many: domain/images/class/image.

    Raises:
        ConfigError: If there is one class.
    """
    domain, classes = next(iter(images.items()))
    if len(classes) > 1:
        return
    (name,) = classes
    hint = "arrange the images as domain/class/image"
    folder = os.path.join(os.path.abspath(os.path.expanduser(root)), domain, name)
    inner = _folders_with_images(folder, classes[name])
    if len(inner) > 1:
        hint = (
            f"if {some(inner)} are the classes, move them one level up, to {domain}/{inner[0]}, or "
            f"pass a folder of links: ln -s {shlex.quote(folder)} LINKS/{domain}, and the same for "
            "the other domains"
        )
    raise ConfigError(
        "dataset.root", root, f"contains one class, {name}, and at least 2 are needed", hint
    )


def _folders_with_images(folder: str, paths: Sequence[str]) -> list[str]:
    """Return the names of the folders in `folder` that contain images, at any depth."""
    below = [os.path.relpath(os.path.abspath(path), folder).split(os.sep) for path in paths]
    return sorted({names[0] for names in below if len(names) > 1 and names[0] != os.pardir})
