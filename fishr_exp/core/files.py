"""Files that others made, or that a path was mistyped for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path in which `~` is home; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))


def require_file(path: str | os.PathLike[str]) -> None:
    """Refuse what is not a regular file, or a link to one, before it is opened.

    To open a pipe waits for a writer, perhaps forever, and a device may have no end.

    Raises:
        OSError: If it is something else, or cannot be found; `strerror` says what it is.
    """
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        reason = f"it is {_KINDS.get(kind, 'something else')}, not a file"
        raise OSError(errno.EINVAL, reason, os.fspath(path))
