"""The SQLite file of MLflow: checked before MLflow opens it, and made so that a kill spoils none.

MLflow makes its tables in place, in some seconds, and cannot open a file in which they are
incomplete. It also changes the tables of an earlier version without asking, where a kill would
spoil the runs in them. Therefore a new file is made under another name, and a file with other
tables than those of the installed MLflow is left alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fishr_exp.tracking.address import KEY, SQLITE

log = logging.getLogger(__name__)

BUSY = 120.0  # seconds to wait for others who write to a file, or make it
_BESIDE = ("", "-journal", "-wal", "-shm")  # the file, and what SQLite writes beside it
_STILL = 3.0  # seconds without a change after which nobody is making the file
_FIRST = "experiments"  # the table that MLflow makes first
_ALWAYS = ("alembic_version", "workspaces")  # tables with rows before anything is logged

_opened: dict[Path, tuple[int, int]] = {}  # the files that MLflow has open, by their numbers


class Tables(Protocol):
    """What the installed MLflow knows of its tables."""

    def head(self) -> str | None:
        """Return the number of its tables."""

    def knows(self, revision: str) -> bool:
        """Whether a number is that of its tables, or of an earlier version's."""

    def make(self, file: Path) -> None:
        """Make all tables in a new file, and close it."""

    def close(self, file: Path) -> None:
        """Close the file, which may have been replaced by another one."""


class UnusableDatabaseError(Exception):
    """MLflow cannot use a file; nothing in it was changed.

    Args:
        reason: Why.
        advice: What helps.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.advice = advice


class BusyDatabaseError(Exception):
    """Another program makes the file, or writes to it."""


def holds_run(database: Path, run_id: str) -> bool:
    """Whether the file has the run; asked without importing MLflow, and without waiting."""
    if not database.exists():
        return False
    try:
        with _reading(database, timeout=0.1) as there:
            found = there.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
    except sqlite3.Error as error:  # no such table yet, or the tables of another version
        return "locked" in str(error)  # busy with others; it holds what it held before
    return found is not None


def prepare(database: Path, tables: Tables) -> None:
    """Make the file, unless it is there and complete; the caller has the lock for it.

    An unfinished one without runs is kept under another name, and made again.

    Args:
        database: The file.
        tables: Those of the installed MLflow.

    Raises:
        UnusableDatabaseError: If the file is damaged, or of another version of MLflow.
        BusyDatabaseError: If another program is making it, or has locked it.
    """
    database = database.resolve()  # of a link, its target is made
    _remove(_temporary(database))  # of a kill
    if database.exists() and _is_unfinished(database, tables):
        _move_aside(database)
    if not database.exists():
        _make(database, tables)
    stat = database.stat()
    number = (stat.st_dev, stat.st_ino)
    if _opened.setdefault(database, number) != number:  # MLflow has a deleted one open
        tables.close(database)
        _opened[database] = number


def _make(database: Path, tables: Tables) -> None:
    """Make the file under another name, and give it its own when it is complete."""
    temporary = _temporary(database)
    try:
        with waiting_for_the_disk_once(temporary):
            tables.make(temporary)
        try:
            os.link(temporary, database)  # does not replace one that somebody else made meanwhile
        except FileExistsError:
            return
        except OSError:  # a file system without links
            temporary.rename(database)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def waiting_for_the_disk_once(file: Path) -> Iterator[None]:
    """In the block, SQLAlchemy does not wait for the disk at each change of a new file.

    MLflow's tables come in hundreds of changes, and waiting takes most of the time. The file is
    on the disk when the block ends; a kill within it leaves an incomplete one.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def hurry(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            ((_, _, opened), *_) = connection.execute("PRAGMA database_list")
            if opened and Path(opened).resolve() == file.resolve():
                connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hurry)
    try:
        yield
    finally:
        event.remove(Engine, "connect", hurry)
    with file.open("rb+") as written:
        os.fsync(written.fileno())


def _is_unfinished(database: Path, tables: Tables) -> bool:
    """Whether the tables are incomplete and empty, and nobody is making them.

    Raises:
        UnusableDatabaseError: If the file holds something, and MLflow cannot use it.
        BusyDatabaseError: If another program is making the file, or has locked it.
    """
    try:
        with _reading(database, timeout=5.0) as there:
            there_are = [name for (name,) in there.execute(_TABLES)]
            version = "alembic_version" in there_are
            found = there.execute("SELECT version_num FROM alembic_version") if version else None
            revision = next((str(number) for (number,) in found or ()), "")
            if revision == tables.head():
                return False
            others = there_are and _FIRST not in there_are  # those of another program
            logged = [name for name in there_are if name not in _ALWAYS]
            holds = others or any(_has_rows(there, name) for name in logged)
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise BusyDatabaseError(f"{database.name} is locked by another program") from error
        raise UnusableDatabaseError(f"it cannot be opened ({error})", _elsewhere()) from error
    except sqlite3.DatabaseError as error:
        raise UnusableDatabaseError(f"the file is damaged ({error})", _elsewhere()) from error
    if not holds:
        _wait_until_still(database)
        return True
    if revision and not tables.knows(revision):
        reason = f"it is of another version of MLflow, with tables {revision}"
        raise UnusableDatabaseError(reason, f"use the MLflow that made it, or {_elsewhere()}")
    if revision:
        reason = f"it is of an earlier version of MLflow, with tables {revision}"
        upgrade = f"mlflow db upgrade {SQLITE}{database} (copy the file first) brings it up to date"
        raise UnusableDatabaseError(reason, f"{upgrade}; then fishr-sync sends them")
    reason = "its tables are not those of MLflow, or incomplete, and they are not empty"
    raise UnusableDatabaseError(reason, _elsewhere())


_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"


def _has_rows(there: sqlite3.Connection, table: str) -> bool:
    name = table.replace('"', '""')
    return there.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone() is not None


def _elsewhere() -> str:
    return (
        f"restore it, or move it away, or name another file ({KEY}={SQLITE}FILE, fishr-sync "
        f"--tracking-uri {SQLITE}FILE); fishr-sync then sends them"
    )


def _wait_until_still(database: Path) -> None:
    """Return once the file has not changed for a while.

    Raises:
        BusyDatabaseError: If it changes: a server, which does not use our lock, is making it.
    """

    def now() -> list[tuple[int, int]]:
        files = [Path(f"{database}{end}") for end in _BESIDE]
        found = [path.stat() for path in files if path.exists()]
        return [(stat.st_mtime_ns, stat.st_size) for stat in found]

    before, ends = now(), time.monotonic() + _STILL
    while time.monotonic() < ends:
        time.sleep(0.1)
        if now() != before:
            raise BusyDatabaseError(f"another program is making {database.name}")


def _move_aside(database: Path) -> None:
    number = 1
    while (kept := database.with_name(f"{database.name}.unfinished-{number}")).exists():
        number += 1
    for end in _BESIDE[1:]:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{database}{end}", f"{kept}{end}")
    database.rename(kept)
    log.warning(
        "%s was left unfinished, without a run in it, as by a kill while it was made; it is kept "
        "as %s, and made again",
        database,
        kept.name,
    )


@contextlib.contextmanager
def _reading(database: Path, timeout: float) -> Iterator[sqlite3.Connection]:
    # Not read-only: what a kill left to be undone is undone first.
    address = f"{database.as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=timeout)) as there:
        yield there


def _temporary(database: Path) -> Path:
    return database.with_name(f".{database.name}.new")


def _remove(file: Path) -> None:
    for end in _BESIDE:
        Path(f"{file}{end}").unlink(missing_ok=True)
