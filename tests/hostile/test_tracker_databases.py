"""SQLite files of MLflow in any state, and kills while one is made: no run is lost, none waits."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking import database as database_module
from fishr_exp.tracking import mirror
from fishr_exp.tracking.mlflow import MlflowMirror, quiet_mlflow
from tests.e2e.conftest import ROOT, process
from tests.hostile.test_tracker_states import Said
from tests.unit.tracking.conftest import CONFIG, LABELS, RESULT, record

pytestmark = pytest.mark.slow
HALF_MADE = ROOT.parent / "shared" / "cases" / "hostile" / "half_made_mlflow.db"
TRACKED = ("model.hidden=8", "epochs=2", "steps_per_epoch=2")


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    quiet_mlflow()
    monkeypatch.setattr(database_module, "_STILL", 0.3)
    monkeypatch.setattr(MlflowMirror, "longest_busy", 3.0)
    mirror.unreachable.clear()
    yield
    mirror.unreachable.clear()


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one run in it; making one takes seconds."""
    folder = tmp_path_factory.mktemp("complete")
    with done_run(folder / "runs" / "before") as run:
        MlflowMirror(run, f"sqlite:///{folder}/mlflow.db", "e", "s").catch_up(CONFIG, LABELS)
    assert runs_in(folder / "mlflow.db") == 1
    return folder / "mlflow.db"


@contextlib.contextmanager
def done_run(path: Path) -> Iterator[RunFolder]:
    with RunFolder(path) as folder:
        folder.open(CONFIG)
        for step in (2, 4):
            folder.append(record(step, losses={"risk": 1 / step}))
        folder.write_environment({"command": ["fishr-exp"]})
        folder.finish(RESULT)
        yield folder


@pytest.fixture
def done(tmp_path: Path) -> RunFolder:
    with done_run(tmp_path / "runs" / "fishr-seed0") as folder:
        return folder


def runs_in(database: Path) -> int:
    with contextlib.closing(sqlite3.connect(database)) as there:
        return int(there.execute("SELECT count(*) FROM runs").fetchone()[0])


def change(database: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(database)) as there:
        for statement in statements:
            there.execute(statement)
        there.commit()


# --- states that are made good -----------------------------------------------------------------

INITIAL = "CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name VARCHAR(256))"


def _tables(*statements: str) -> Callable[[Path, Path], None]:
    return lambda database, _: change(database, *statements)


def _of_the_case(database: Path, _: Path) -> None:
    if not HALF_MADE.exists():
        pytest.skip("needs ../shared/cases/hostile")
    shutil.copyfile(HALF_MADE, database)


def _halfway(database: Path, complete: Path) -> None:
    shutil.copyfile(complete, database)
    tables = ["metrics", "latest_metrics", "params", "tags", "runs", "experiments", "inputs"]
    change(database, *(f"DELETE FROM {name}" for name in tables),
           "UPDATE alembic_version SET version_num = '451aebb31d03'")  # fmt: skip


UNFINISHED: dict[str, Callable[[Path, Path], None]] = {
    "the one of the case": _of_the_case,
    "an empty file": lambda database, _: database.touch(),
    "the first table": _tables(INITIAL),
    "an empty table of numbers": _tables(INITIAL, "CREATE TABLE alembic_version (version_num)"),
    "all tables, and an earlier number": _halfway,
}


@pytest.mark.parametrize("name", UNFINISHED)
def test_unfinished_and_without_runs_is(
    name: str, done: RunFolder, complete: Path, tmp_path: Path
) -> None:
    database = tmp_path / "mlflow.db"
    UNFINISHED[name](database, complete)
    before = database.read_bytes()
    said = Said(done.path, "--tracking-uri", f"sqlite:///{database}")
    assert (said.status, runs_in(database)) == (0, 1)
    assert (tmp_path / "mlflow.db.unfinished-1").read_bytes() == before
    told = [line for line in said.lines if "was left unfinished" in line]
    assert len(told) == 1
    assert "mlflow.db.unfinished-1" in told[0]


def _leftovers(database: Path, complete: Path) -> None:
    for end in ("", "-journal", "-wal", "-shm"):
        database.with_name(f".{database.name}.new{end}").write_bytes(complete.read_bytes()[:5000])


def _wal(database: Path, complete: Path) -> None:
    shutil.copyfile(complete, database)
    change(database, "PRAGMA journal_mode = WAL")


def _own_table(database: Path, complete: Path) -> None:
    shutil.copyfile(complete, database)
    change(database, "CREATE TABLE notes (text TEXT)", "INSERT INTO notes VALUES ('mine')")


def _dangling(database: Path, _: Path) -> None:
    (database.parent / "disk").mkdir()
    database.symlink_to(database.parent / "disk" / "other.db")


def _linked(database: Path, complete: Path) -> None:
    shutil.copyfile(complete, database.with_name("other.db"))
    database.symlink_to("other.db")


GOOD: dict[str, Callable[[Path, Path], None]] = {
    "complete": lambda database, complete: shutil.copyfile(complete, database) and None,
    "absent, with leftovers of a kill": _leftovers,
    "complete, with the lock of a kill": lambda database, complete: (
        shutil.copyfile(complete, database), Path(f"{database}.lock").touch(), None
    )[-1],
    "in another mode": _wal,
    "complete, with a table of the user": _own_table,
    "a link to nothing yet": _dangling,
    "a link": _linked,
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_used_as_it_is(name: str, done: RunFolder, complete: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    GOOD[name](database, complete)
    is_link, there = database.is_symlink(), runs_in(database) if database.exists() else 0
    said = Said(done.path, "--tracking-uri", f"sqlite:///{database}")
    assert said.status == 0
    assert runs_in(database) == there + 1
    assert database.is_symlink() == is_link
    assert not list(tmp_path.glob("*.unfinished-*")) + list(tmp_path.glob(".mlflow.db.new*"))


# --- states that are left alone ----------------------------------------------------------------


def _changed(*statements: str) -> Callable[[Path, Path], None]:
    def make(database: Path, complete: Path) -> None:
        shutil.copyfile(complete, database)
        change(database, *statements)

    return make


def _cut(database: Path, complete: Path) -> None:
    database.write_bytes(complete.read_bytes()[:10_000])


def _overwritten(database: Path, complete: Path) -> None:
    content = bytearray(complete.read_bytes())
    content[100:4096] = b"\xff" * 3996
    database.write_bytes(content)


def _pages_lost(database: Path, complete: Path) -> None:
    content = bytearray(complete.read_bytes())
    content[8192:] = b"\x00" * (len(content) - 8192)
    database.write_bytes(content)


KEPT: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "of an earlier version": (
        _changed("UPDATE alembic_version SET version_num = '451aebb31d03'"), "mlflow db upgrade",
    ),
    "of an earlier version, with fewer tables": (
        _changed("UPDATE alembic_version SET version_num = '451aebb31d03'", "DROP TABLE inputs"),
        "mlflow db upgrade",
    ),
    "of an earlier version, without runs": (
        _changed("UPDATE alembic_version SET version_num = '451aebb31d03'", "DELETE FROM tags",
                 "DELETE FROM metrics", "DELETE FROM latest_metrics", "DELETE FROM params",
                 "DELETE FROM runs"), "mlflow db upgrade",
    ),
    "of a later version": (
        _changed("UPDATE alembic_version SET version_num = 'ffffffffffff'"),
        "use the MLflow that made it",
    ),
    "without a number": (_changed("DELETE FROM alembic_version"), "name another file"),
    "without the table of numbers": (_changed("DROP TABLE alembic_version"), "name another file"),
    "of another program": (
        _tables("CREATE TABLE cookies (host TEXT)", "INSERT INTO cookies VALUES ('a')"),
        "name another file",
    ),
    "of another program, without rows": (
        _tables("CREATE TABLE cookies (host TEXT)"), "name another file",
    ),
    "of another program that numbers its tables": (
        _tables("CREATE TABLE alembic_version (version_num TEXT)",
                "INSERT INTO alembic_version VALUES ('0a1b')", "CREATE TABLE users (name TEXT)"),
        "name another file",
    ),
    "cut off": (_cut, "fishr-sync"),
    "overwritten": (_overwritten, "fishr-sync"),
    "with pages lost": (_pages_lost, "fishr-sync"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_left_alone(name: str, done: RunFolder, complete: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    make, way_out = KEPT[name]
    make(database, complete)
    before = database.read_bytes()
    said = Said(done.path, "--tracking-uri", f"sqlite:///{database}")
    assert said.status == 1
    said.one_line(f"MLflow at sqlite:///{database} failed (", way_out)
    assert database.read_bytes() == before
    assert not list(tmp_path.glob("mlflow.db.unfinished-*"))


# --- others who use it -------------------------------------------------------------------------


@contextlib.contextmanager
def locked(database: Path, kind: str = "EXCLUSIVE") -> Iterator[sqlite3.Connection]:
    with contextlib.closing(
        sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    ) as there:
        there.execute(f"BEGIN {kind}")
        yield there


@pytest.mark.parametrize("kind", ["EXCLUSIVE", "IMMEDIATE"])
def test_a_lock_is_waited_for(kind: str, done: RunFolder, complete: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    shutil.copyfile(complete, database)
    with locked(database, kind) as there:
        threading.Timer(1.5, lambda: there.execute("ROLLBACK")).start()
        said = Said(done.path, "--tracking-uri", f"sqlite:///{database}")
    assert (said.status, runs_in(database)) == (0, 2)
    assert not [line for line in said.lines if "failed" in line]


def test_a_lock_that_stays_is_one_line(done: RunFolder, complete: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    shutil.copyfile(complete, database)
    with locked(database):
        said = Said(done.path, "--tracking-uri", f"sqlite:///{database}")
        assert said.status == 1
        said.one_line("is locked by another program", "fishr-sync")
    mirror.unreachable.clear()  # as in a process of its own
    assert Said(done.path, "--tracking-uri", f"sqlite:///{database}").status == 0


def test_a_run_does_not_wait_for_a_lock(complete: Path, tmp_path: Path) -> None:
    """Neither at its start nor between its steps; at its end as long as its patience."""
    database = tmp_path / "mlflow.db"
    shutil.copyfile(complete, database)
    folder = RunFolder(tmp_path / "runs" / "a")
    with folder, locked(database):
        folder.open(CONFIG)
        sent = MlflowMirror(folder, f"sqlite:///{database}", "e", "s")
        sent.patience = 1.0
        sent.load()
        calls: list[float] = []
        for call in (lambda: sent.start(CONFIG, LABELS), sent.sync, sent.sync):
            began = time.monotonic()
            call()
            calls.append(time.monotonic() - began)
        folder.append(record(2, losses={}))
        folder.finish(RESULT)
        sent.finish("FINISHED")
    assert max(calls) < 5.0  # SQLite's own wait
    assert sent.error.startswith("not done in 1 s")


def test_a_lock_file_that_is_a_folder(done: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db.lock").mkdir()
    said = Said(done.path, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert said.status == 1
    said.one_line("mlflow.db.lock")


def test_a_file_that_somebody_is_making_is_not_moved(
    done: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `mlflow server` does, without our lock."""
    monkeypatch.setattr(database_module, "_STILL", 2.0)
    database = tmp_path / "mlflow.db"
    change(database, INITIAL)
    ended = threading.Event()

    def go_on() -> None:
        number = 0
        while not ended.wait(0.3):
            number += 1
            change(database, f"CREATE TABLE t{number} (x)")

    maker = threading.Thread(target=go_on)
    maker.start()
    said = Said(done.path, "--tracking-uri", f"sqlite:///{database}")
    ended.set()
    maker.join()
    assert said.status == 1
    said.one_line("another program is making mlflow.db")
    assert not list(tmp_path.glob("*.unfinished-*"))


def test_a_file_that_is_deleted_between_two_runs_of_a_process(
    done: RunFolder, complete: Path, tmp_path: Path
) -> None:
    """MLflow keeps the deleted one open, and would write to it."""
    database = tmp_path / "mlflow.db"
    shutil.copyfile(complete, database)
    assert Said(done.path, "--tracking-uri", f"sqlite:///{database}").status == 0
    database.unlink()
    shutil.copyfile(complete, database)
    assert Said(done.path, "--tracking-uri", f"sqlite:///{database}").status == 0
    assert runs_in(database) == 2


# --- kills -------------------------------------------------------------------------------------

MAKER = """
import json, os, sys
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.mlflow import MlflowMirror, quiet_mlflow

quiet_mlflow()
import mlflow.store.tracking.sqlalchemy_store

for line in sys.stdin:  # each line a folder: a process makes the database there
    pid = os.fork()
    if not pid:
        os.setsid()
        folder = line.strip()
        uri = f"sqlite:///{folder}/mlflow.db"
        mirror = MlflowMirror(RunFolder(folder + "/run"), uri, "e", "s")
        mirror.connect()
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Maker:
    """Starts processes that make a database; MLflow is imported once."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def make(self, folder: Path, kill_after: float | None = None, number: int = 9) -> int:
        """Make one; return how the process ended, which may have been killed."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def maker() -> Iterator[Maker]:
    made = Maker()
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture(scope="module")
def seconds(maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long making one takes on this machine, now."""
    began = time.monotonic()
    assert maker.make(tmp_path_factory.mktemp("timed")) == 0
    return time.monotonic() - began


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all kills, so that each also meets what those before it left."""
    return tmp_path_factory.mktemp("killed")


@pytest.mark.parametrize("moment", range(20))
def test_a_kill_while_it_is_made(moment: int, maker: Maker, seconds: float, killed: Path) -> None:
    number = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)[moment % 4]
    maker.make(killed, kill_after=seconds * (moment + 0.5) / 20, number=number)
    database = killed / "mlflow.db"
    if database.exists():  # then it is complete, and the next kill begins from nothing
        assert runs_in(database) == 0
        with contextlib.closing(sqlite3.connect(database)) as there:
            assert there.execute("SELECT name FROM experiments").fetchall()
        database.unlink()
    if moment == 19:
        assert maker.make(killed) == 0
        assert not list(killed.glob(".mlflow.db.new*")) + list(killed.glob("*.unfinished-*"))


def test_three_processes_make_it_at_once(tmp_path: Path) -> None:
    """And one of them is killed."""
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    all_three = [
        process(*TRACKED, f"seed={seed}", f"tracker.tracking_uri={uri}", f"output_dir={tmp_path}/r",
                stderr=subprocess.STDOUT)
        for seed in range(3)
    ]  # fmt: skip
    while not (tmp_path / "new" / "mlflow.db.lock").exists():
        assert all(run.poll() is None for run in all_three)
        time.sleep(0.05)
    time.sleep(1.0)
    all_three[0].kill()
    said = [run.communicate(timeout=200)[0] for run in all_three]
    assert [run.returncode for run in all_three[1:]] == [0, 0], said
    assert "MLflow at" not in "".join(said[1:])
    assert runs_in(tmp_path / "new" / "mlflow.db") in (2, 3)
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("r/*/tracking.json")]
    assert [note["ended"] for note in notes].count("FINISHED") >= 2
