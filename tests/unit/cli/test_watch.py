from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from fishr_exp.cli.table import main
from fishr_exp.cli.watch import Watched
from fishr_exp.runs import reading
from fishr_exp.runs.reading import read_runs

CODE = "import sys; from fishr_exp.cli.table import main; sys.exit(main())"


def until(master: int, word: str, seconds: float = 60) -> str:
    """Read a terminal until a word comes."""
    text, end = "", time.monotonic() + seconds
    while word not in text and time.monotonic() < end:
        if select.select([master], [], [], 0.2)[0]:
            text += os.read(master, 65536).decode()
    assert word in text
    return text


def test_a_terminal_shows_runs_as_they_come_in(factory):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 8, 50, 0, 0))
    command = [sys.executable, "-c", CODE, str(factory.root), "--watch"]
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(command, stdout=slave, stderr=slave, env=environment)
    try:
        until(master, "Waiting for a run")  # there is no such folder yet
        factory.done("erm", None, 0, 0.1)
        screen = until(master, "1 run: 1 done")
        assert "ERM" in screen
        assert "more lines: the terminal is too short" in screen
        last = screen.rpartition("\x1b[H")[2].split("\r\n")
        assert len(last) == 8
        assert all(len(line.replace("\x1b[K", "").replace("\x1b[J", "")) < 50 for line in last)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)
    assert not (factory.root / "table").exists()


def test_only_what_changed_is_read_again(factory, monkeypatch):
    factory.sweep([1.0], seeds=2)
    unfinished = factory.start({"seed": 8})
    watched = Watched(factory.root)
    assert watched.runs() == read_runs(factory.root)
    read = []
    real = reading.read_into
    monkeypatch.setattr("fishr_exp.cli.watch.read_into", lambda *a: (read.append(a[1]), real(*a)))
    watched.runs()
    assert read == []
    unfinished.fail("loss is NaN")
    factory.done("erm", None, 7, 0.1)
    assert watched.runs() == read_runs(factory.root)
    assert len(read) == 2


@pytest.mark.parametrize("words", [["--format", "csv"], ["--protocol", "domainbed"]])
def test_options_that_do_not_go_with_it(factory, capsys, words):
    assert main([str(factory.root), "--watch", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words[0] in line
