from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from fishr_exp.cli.table import _parser, main
from fishr_exp.cli.watch import Watched, _counts, _is_running, _text
from fishr_exp.runs import reading
from fishr_exp.runs.files import write_atomically
from fishr_exp.runs.names import DONE, RECORDS, RESULT
from fishr_exp.runs.reading import read_runs
from fishr_exp.runs.run_folder import RunFolder

# A shell starts what runs in its background, as these tests may, with Ctrl-C ignored.
CODE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from fishr_exp.cli.table import main
sys.exit(main())
"""


@contextlib.contextmanager
def watching(folder, stdout, **environment):
    """Start the command; at the end it is interrupted, and must leave with status 0."""
    known = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(folder), "--watch"],
        stdout=stdout,
        stderr=subprocess.STDOUT,
        env=known | environment,
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def until(stream: int, word: str, seconds: float = 60) -> str:
    """Read until a word comes."""
    text, end = "", time.monotonic() + seconds
    while word not in text and time.monotonic() < end:
        if select.select([stream], [], [], 0.2)[0]:
            text += os.read(stream, 65536).decode()
    assert word in text
    return text


def lines_on_screen(text: str) -> list[str]:
    """Return the lines of what was drawn last."""
    last = text.rpartition("\x1b[H")[2].split("\r\n")
    return [line.replace("\x1b[K", "").replace("\x1b[J", "") for line in last]


def test_a_terminal_shows_runs_as_they_come_in(factory):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 8, 50, 0, 0))
    with watching(factory.root, slave):
        until(master, "Waiting for a run")  # there is no such folder yet
        factory.done("erm", None, 0, 0.1)
        lines = lines_on_screen(until(master, "1 run: 1 done; Ctrl-C ends"))
        assert any("ERM" in line for line in lines)
        assert any("more lines: the window is too short" in line for line in lines)
        assert len(lines) == 8
        assert max(map(len, lines)) == 49
        assert any(line.endswith(">") for line in lines)  # was cut
        for height in (2, 1):
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, 20, 0, 0))
            time.sleep(2.5)
            until(master, "\x1b[J")
            assert len(lines_on_screen(until(master, "\x1b[J"))) == height
    os.close(slave)
    os.close(master)
    assert not (factory.root / "table").exists()


def test_a_log_has_each_table_once_and_each_run_that_fails(factory):
    reader, writer = os.pipe()
    with watching(factory.root, writer, PYTHONUNBUFFERED="1"):
        assert until(reader, "0 done\n\n").startswith("Waiting for a run")
        factory.done("erm", None, 0, 0.1)
        assert "ERM" in until(reader, "1 run: 1 done\n\n")
        factory.start({"seed": 8}).fail("loss is NaN")
        text = until(reader, "\n\n")
        assert "2 runs: 1 done, 1 failed\nfailed: " in text
        assert "ERM" not in text
        factory.start({"seed": 9})  # changes neither
        assert not select.select([reader], [], [], 5)[0]
    os.close(reader)
    os.close(writer)


def test_a_run_is_running_while_a_process_has_its_folder(factory):
    run = factory.start({"seed": 8})
    other = factory.start({"seed": 9})
    other.close()
    watched = Watched(factory.root)
    watched.look()
    run.lock()
    assert [path for path in watched.runs.unfinished if _is_running(path)] == [run.path]
    assert _counts(watched.runs).endswith("2 runs: 0 done, 1 running, 1 stopped")
    run.close()
    assert _counts(watched.runs).endswith("2 runs: 0 done, 2 stopped")
    with RunFolder(run.path) as again:
        again.lock()  # who asked has given the lock back


def test_only_what_changed_is_read_again(factory, monkeypatch):
    factory.sweep([1.0], seeds=2)
    unfinished = factory.start({"seed": 8})
    watched = Watched(factory.root)
    assert watched.look()
    assert watched.runs == read_runs(factory.root)
    read = []
    real = reading.read_into
    monkeypatch.setattr("fishr_exp.cli.watch.read_into", lambda *a: (read.append(a[1]), real(*a)))
    assert not watched.look()
    assert read == []
    unfinished.fail("loss is NaN")
    factory.done("erm", None, 7, 0.1)
    assert watched.look()
    assert watched.runs == read_runs(factory.root)
    assert len(read) == 2


def change(path, state):
    """Bring a run folder into a state, whatever it was before."""
    if state == "done again":
        result = json.loads((path / RESULT).read_text())
        result["test_accuracy"] = dict.fromkeys(result["test_accuracy"], 0.25)
        write_atomically(path / RESULT, json.dumps(result))
    elif state == "removed":
        shutil.rmtree(path)
    elif state == "cleared":
        RunFolder(path).clear()
    elif state == "failed":
        (path / DONE).unlink()
        RunFolder(path).fail("loss is NaN")
    elif state == "damaged":
        write_atomically(path / RECORDS, "{\n{\n")
    else:
        path.rename(path.with_name("elsewhere"))


STATES = ("done again", "removed", "cleared", "failed", "damaged", "moved")


@pytest.mark.parametrize("state", STATES)
def test_it_holds_what_a_new_reader_finds(factory, state, monkeypatch):
    """A second look, by the times of change, against reading everything again."""
    monkeypatch.setattr("fishr_exp.cli.watch._COARSE", 0)
    factory.sweep([1.0], seeds=2)
    watched = Watched(factory.root)
    watched.look()
    before = watched.runs
    time.sleep(0.05)  # more than the clock's tick of the file system
    change(watched.runs.done[0].path, state)
    assert watched.look()
    assert watched.runs == read_runs(factory.root) != before
    assert not watched.look()


def test_a_file_that_is_corrected_in_place_is_read_again(factory):
    factory.sweep([1.0], seeds=2)
    path = read_runs(factory.root).done[0].path / RESULT
    content = path.read_bytes()
    path.write_bytes(b"{")
    watched = Watched(factory.root)
    watched.look()
    assert len(watched.runs.broken) == 1
    path.write_bytes(content)
    assert watched.look()
    assert not watched.runs.broken


def test_a_row_that_is_still_to_come_ends_nothing(factory):
    factory.done("erm", None, 0, 0.1)
    options = _parser().parse_args([str(factory.root), "--watch", "--rows", "ERM,Fishr"])
    watched = Watched(options.folder)
    watched.look()
    assert "No table yet: --rows" in _text(options, watched.runs)
    factory.done("fishr", 1.0, 0, 0.1)
    watched.look()
    assert "\nFishr " in _text(options, watched.runs)


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "csv"],
        ["--protocol", "domainbed"],
        ["--rename", "x"],
        ["--where", "x"],
        ["--all-figures"],
    ],
)
def test_options_that_do_not_go_with_it(factory, capsys, words):
    assert main([str(factory.root), "--watch", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words[0] in line
