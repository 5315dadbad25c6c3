"""A new database is written without waiting for the disk at each change, and no other one."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from fishr_exp.tracking.database import waiting_for_the_disk_once

OFF, FULL = 0, 2  # SQLite's numbers


def waits(file: Path) -> int:
    """Make a table in a file by a new engine; return how its connection waits for the disk."""
    engine = create_engine(f"sqlite:///{file}")
    with engine.begin() as there:
        there.execute(text(f"CREATE TABLE t{len(list(file.parent.iterdir()))} (x)"))
        found = there.execute(text("PRAGMA synchronous")).scalar()
    engine.dispose()
    assert isinstance(found, int)
    return found


def test_only_the_new_file_and_only_in_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    new, other = tmp_path / ".new", tmp_path / "other"
    with waiting_for_the_disk_once(new):
        assert (waits(new), waits(other)) == (OFF, FULL)
        assert not synced
    assert len(synced) == 1
    new.unlink()
    assert waits(new) == FULL


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyError), waiting_for_the_disk_once(tmp_path / "new"):
        raise KeyError
    assert waits(tmp_path / "new") == FULL
