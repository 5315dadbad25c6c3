"""Addresses of MLflow: what is refused, which name a SQLite file, which hold a password."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from fishr_exp.core.errors import ConfigError
from fishr_exp.core.files import expanded
from fishr_exp.core.secrets import bare

log = logging.getLogger(__name__)

KEY = "tracker.tracking_uri"
SQLITE = "sqlite:///"
_FOLDER = "is a folder"
_HEADER = b"SQLite format 3\0"
_WITHOUT_A_HOST = ("databricks", "databricks-uc", "uc", "file")

_warned_of: set[str] = set()  # addresses with a password, in this process


def check_address(tracking_uri: str) -> None:
    """Refuse what is not an address of MLflow, or names a file that cannot be a database.

    Raises:
        ConfigError: With the address to pass instead.
    """
    if tracking_uri.partition(":")[0] in _WITHOUT_A_HOST:
        return
    scheme, separator, rest = tracking_uri.partition("://")
    two_slashes = scheme == "sqlite" and rest[:1] not in ("", "/", ":")
    if not separator or two_slashes:
        path = rest if two_slashes else tracking_uri or "outputs"
        path = path if path.endswith(".db") else f"{path.rstrip('/')}/mlflow.db"
        raise ConfigError(
            KEY, tracking_uri, "is not an address of MLflow",
            f"for a file, pass {KEY}={SQLITE}{path}; for a server, http://HOST:PORT",
        )  # fmt: skip
    sqlite_file(tracking_uri)


def sqlite_file(address: str) -> Path | None:
    """Return the absolute path of the file of `sqlite:///PATH`; None of another address.

    Raises:
        ConfigError: If the address names no file, or one that cannot be MLflow's database.
    """
    if address.partition(":")[0].partition("+")[0] != "sqlite":
        return None
    path, _, query = address.partition(":")[2].removeprefix("///").partition("?")
    if (
        path in ("", "//")
        or "memory" in query
        or path.removeprefix("//").startswith((":", "file:"))
    ):
        reason = "is not a file: what is written to memory is lost when the run ends"
        raise ConfigError(KEY, address, reason, f"pass {KEY}={SQLITE}outputs/mlflow.db")
    file = expanded(path).absolute()
    if reason := _not_a_database(file):
        inside = f"pass {KEY}={SQLITE}{file}/mlflow.db"
        hint = inside if reason == _FOLDER else "name another file"
        raise ConfigError(KEY, address, reason, hint)
    return file


def _not_a_database(file: Path) -> str:
    """Say why a path cannot be a SQLite file; empty if it can, or is still to be made."""
    if "?" in str(file):
        return f"MLflow cannot open a path with a question mark ({file})"
    try:
        if file.is_dir():
            return _FOLDER
        if file.exists():
            if not file.is_file():  # a device or a pipe, which may not answer
                return "is not a file"
            with file.open("rb") as content:
                first = content.read(len(_HEADER))
            return "" if first in (b"", _HEADER) else "is a file, and not a SQLite database"
        there = next(parent for parent in file.parents if parent.exists() or parent.is_symlink())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if there.is_dir() else f"{there} is not a folder"


def warn_of_password(address: str) -> None:
    """Say once, of an address that was typed with a password, how to pass it unseen by others."""
    typed = address not in (bare(address), os.environ.get("MLFLOW_TRACKING_URI"))
    if not typed or address in _warned_of:
        return
    _warned_of.add(address)
    log.warning(
        "tracker.tracking_uri holds a password or token: it is not recorded, but it stands in the "
        "history of the shell and in the list of processes; %s",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        if address.lower().startswith("http")
        else "put it into the file of the database's client (PostgreSQL: ~/.pgpass)",
    )


def check_place(address: str, artifacts: str) -> None:
    """Refuse a folder on this machine, named by a server, that is not one of MLflow's.

    The files of a run would replace others of their names there.

    Args:
        address: The server's.
        artifacts: Where it says that a run's files go.

    Raises:
        ValueError: If it is another folder.
    """
    scheme, _, path = artifacts.rpartition("://")
    here = address.startswith("http") and scheme in ("", "file")
    if here and Path(path.removeprefix("file:")).name != "artifacts":
        raise ValueError(f"the server names {artifacts} for the files of a run")
