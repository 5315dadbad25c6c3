"""Lists the files under the folders of a dataset; each folder is visited once, links included."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fishr_exp.core.errors import ConfigError
from fishr_exp.core.files import expanded

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def root_folder(root: str) -> Path:
    """Return the folder that `dataset.root` names.

    Raises:
        ConfigError: If it names none; an empty path would be the current folder.
    """
    if not root.strip():
        raise ConfigError("dataset.root", root, "must name a folder", "pass dataset.root=DIR")
    return expanded(root)


class Folders:
    """The folders under the root of a dataset.

    A link to a folder is followed. Two links to one folder, or a folder and a link to it, count
    once within a class; in two classes they are refused, and so is a link to a folder that
    contains it, which would never end or mix the classes.

    Args:
        root: The root, as `dataset.root` gives it.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = root
        self._owners: dict[str, str] = {}  # real path -> the folder for which it was listed

    def files(self, folder: Path) -> list[str]:
        """Return the files at any depth under a folder, in order, except in hidden folders.

        Raises:
            ConfigError: If a link leads to a folder that contains it, or a folder was listed for
                another one before.
            OSError: If a folder cannot be listed.
        """
        found: list[str] = []
        visited: set[str] = set()
        tops = [str(folder)]  # and the links under it, which come after all that is not a link
        for top in tops:
            self.check_link(top)
            # Paths and real paths; a list, since folders may be deeper than Python recurses.
            to_visit = [(top, os.path.realpath(top))]
            while to_visit:
                inner, real = to_visit.pop()
                if real in visited:
                    continue
                visited.add(real)
                self._take(real, str(folder))
                with os.scandir(inner) as listed:
                    entries = sorted(listed, key=lambda entry: entry.name)
                found += [entry.path for entry in entries if not os.path.isdir(entry)]
                inside = [e for e in entries if os.path.isdir(e) and not _is_hidden(e.name)]
                tops += [entry.path for entry in inside if entry.is_symlink()]
                own = [entry for entry in inside[::-1] if not entry.is_symlink()]
                to_visit += [(entry.path, os.path.join(real, entry.name)) for entry in own]
        return sorted(found)

    def check_link(self, path: str | Path) -> None:
        """Refuse a link that leads to a folder that contains it."""
        if not os.path.islink(path):
            return
        real = os.path.realpath(path)
        if os.path.commonpath([real, os.path.realpath(os.path.dirname(path))]) == real:
            raise ConfigError(
                "dataset.root",
                self.root,
                f"the link {self._name(path)} leads to a folder that contains it, {real}",
                "remove the link",
            )

    def _take(self, real: str, folder: str) -> None:
        owner = self._owners.setdefault(real, folder)
        if owner != folder:
            raise ConfigError(
                "dataset.root",
                self.root,
                f"{self._name(owner)} and {self._name(folder)} contain the same folder, {real}",
                "remove the link in one of them, or choose the folders with dataset.domains",
            )

    def _name(self, path: str | Path) -> str:
        return os.path.relpath(path, expanded(self.root))


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def images_of(paths: Iterable[str]) -> list[str]:
    """Return the paths that are images by name, and not hidden."""
    return [path for path in paths if _is_image(os.path.basename(path))]


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
