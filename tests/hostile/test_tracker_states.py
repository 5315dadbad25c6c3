"""Odd addresses, servers and notes of trackers: the run is kept, and one line says what helps."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fishr_exp.cli import sync as sync_cli
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking import mirror
from fishr_exp.tracking.mlflow import MlflowMirror, quiet_mlflow
from tests.e2e.conftest import Command
from tests.unit.tracking.conftest import CONFIG, LABELS, RESULT, record

TRACKED = ("model.hidden=8", "epochs=1", "steps_per_epoch=1", "evaluate_train=false")
SECRET = "xyzzy-4711"
NOBODY = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow gives up at once, and nothing is known of other tests' servers."""
    quiet_mlflow()
    for name, value in (("MAX_RETRIES", "0"), ("BACKOFF_FACTOR", "0"), ("TIMEOUT", "1")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    monkeypatch.setattr(sync_cli, "PATIENCE", 3.0)
    mirror.unreachable.clear()
    yield
    mirror.unreachable.clear()


@pytest.fixture
def done(tmp_path: Path) -> RunFolder:
    """The folder of a done run without a tracker."""
    with RunFolder(tmp_path / "runs" / "fishr-seed0") as folder:
        folder.open(CONFIG)
        for step in (2, 4):
            folder.append(record(step, losses={"risk": 1 / step}))
        folder.write_environment({"command": ["fishr-exp"]})
        folder.finish(RESULT)
    return folder


class Said:
    """What `fishr-sync` answered."""

    def __init__(self, *words: object) -> None:
        out, err = io.StringIO(), io.StringIO()
        handler = logging.StreamHandler(err)
        logging.getLogger().addHandler(handler)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                self.status = sync_cli.main([str(word) for word in words])
        finally:
            logging.getLogger().removeHandler(handler)
        self.out = out.getvalue()
        self.lines = list(dict.fromkeys(err.getvalue().splitlines()))  # basicConfig may add one
        assert "Traceback" not in err.getvalue()

    def one_line(self, *parts: str) -> None:
        assert len(self.lines) == 1, self.lines
        (line,) = self.lines
        assert all(part in line for part in parts), line


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- addresses ---------------------------------------------------------------------------------

NO_ADDRESSES = {
    "nothing": "", "a path": "outputs/mlruns", "an absolute path": "/tmp/x", "a name": "some.db",
    "two slashes": "sqlite://some.db", "no slashes": "sqlite:some.db", "a host alone": "localhost",
    "a host and a port": "localhost:5000", "words": "my server",
    "in memory": "sqlite://", "in memory, three slashes": "sqlite:///",
    "in memory by name": "sqlite:///:memory:", "in memory, two slashes": "sqlite://:memory:",
    "in memory by an address": "sqlite:///file::memory:?uri=true",
    "in memory by a mode": "sqlite:///x.db?mode=memory&uri=true",
    "in memory by a driver": "sqlite+pysqlite://",
    "a folder": "sqlite:///{folder}", "the root": "sqlite:////", "the current folder": "sqlite:///.",
    "a text file": "sqlite:///{text}", "inside a file": "sqlite:///{text}/mlflow.db",
    "a device": "sqlite:////dev/null", "a pipe that nobody writes to": "sqlite:///{pipe}",
    "a name that is too long": "sqlite:///{long}", "a link to a folder": "sqlite:///{link}",
    "a folder with a driver": "sqlite+pysqlite:///{folder}",
    "a folder, with options": "sqlite:///{folder}?timeout=5",
}  # fmt: skip


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    folder, text, pipe, link = (tmp_path / name for name in ("folder", "text.db", "pipe", "link"))
    folder.mkdir()
    (folder / "kept").write_text("kept")
    text.write_text("a diary, and no database")
    os.mkfifo(pipe)
    link.symlink_to(folder)
    found = {"folder": folder, "text": text, "pipe": pipe, "link": link, "long": "x" * 300}
    return {name: str(place) for name, place in found.items()}


@pytest.mark.parametrize("name", NO_ADDRESSES)
def test_what_is_not_an_address_is_refused(
    name: str, places: dict[str, str], done: RunFolder, tmp_path: Path
) -> None:
    before = contents(tmp_path)
    given = NO_ADDRESSES[name].format(**places)
    said = Said(done.path, "--tracking-uri", given)
    assert (said.status, said.out) == (2, "")
    said.one_line("fishr-sync: ", f"--tracking-uri {given}: ", "; ")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["in memory", "a folder", "a text file", "a host and a port"])
def test_a_run_is_refused_before_its_first_step(
    name: str, places: dict[str, str], fishr_exp: Command, tmp_path: Path
) -> None:
    given = NO_ADDRESSES[name].format(**places)
    before = contents(tmp_path)
    outcome = fishr_exp(f"tracker.tracking_uri={given}", tiny=TRACKED)
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"fishr-exp: tracker.tracking_uri={given}: ")
    assert contents(tmp_path) == before


# --- servers -----------------------------------------------------------------------------------

JSON = (
    "HTTP/1.1 {} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n"
)


def answer(body: str = "", status: int = 200, *headers: str) -> bytes:
    head = JSON.format(status, len(body.encode())) + "".join(f"{line}\r\n" for line in headers)
    return f"{head}\r\n{body}".encode()


EXPERIMENT = '{"experiment": {"experiment_id": "1", "name": "e", "lifecycle_stage": "active"}}'
ANSWERS: dict[str, bytes] = {
    "closes at once": b"",
    "is no web server": b"220 mail ready\r\n",
    "talks TLS": b"\x15\x03\x01\x00\x02\x02\x16",
    "answers nothing": answer(),
    "answers a page": answer("<html>Welcome</html>"),
    "answers a page to log in": answer("<form>", 200, "Content-Type: text/html"),
    "answers null": answer("null"),
    "answers a list": answer("[]"),
    "answers a number": answer("5"),
    "answers an empty object": answer("{}"),
    "answers half an object": answer('{"experiment": {"experiment_id": "1"'),
    "answers bytes": answer("\x00\x01\x02"),
    "answers a hundred thousand levels": answer("[" * 100_000 + "]" * 100_000),
    "answers an experiment that is text": answer('{"experiment": "e"}'),
    "answers an experiment without a number": answer('{"experiment": {"name": "e"}}'),
    "answers an experiment that is a list": answer('{"experiment": [1]}'),
    "answers another number each time": answer('{"experiment": {"experiment_id": 1.5}}'),
    "answers the experiment to everything": answer(EXPERIMENT),
    "has no such page": answer("<h1>404</h1>", 404),
    "has moved in a circle": answer("", 302, "Location: /"),
    "has moved to nowhere": answer("", 301, "Location: http://[::1"),
    "has moved without saying where": answer("", 301),
    "wants a password": answer('{"error_code": "UNAUTHENTICATED"}', 401),
    "forbids it": answer("no", 403),
    "is too busy": answer("slow down", 429),
    "fails": answer("Internal Server Error", 500),
    "fails in JSON": answer('{"error_code": "INTERNAL_ERROR", "message": "a\\nb"}', 500),
    "fails with a code of its own": answer('{"error_code": 5, "message": [1]}', 400),
    "is a proxy without a server": answer("Bad Gateway", 502),
    "has a status of its own": answer("x", 999),
    "promises more than it sends": answer("{}").replace(b"Length: 2", b"Length: 2000"),
    "promises less than nothing": answer("{}").replace(b"Length: 2", b"Length: -2"),
    "promises what is no number": answer("{}").replace(b"Length: 2", b"Length: two"),
    "packs what is not packed": answer("{}", 200, "Content-Encoding: gzip"),
    "has a line without end": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
    "has a thousand lines": b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 1000 + b"\r\n",
}
WAYS_OUT = ("fishr-sync sends them", "the same command given again, sends them")


class Server(socketserver.ThreadingTCPServer):
    """Gives one answer to everything."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, reply: Callable[[socket.socket], None]) -> None:
        self.reply = reply
        super().__init__(("127.0.0.1", 0), _Replying)
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Replying(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Server)
        with contextlib.suppress(OSError):
            self.request.recv(65536)
            self.server.reply(self.request)


@pytest.fixture
def served() -> Iterator[Callable[..., str]]:
    servers: list[Server] = []

    def start(reply: Callable[[socket.socket], None]) -> str:
        servers.append(Server(reply))
        return servers[-1].uri

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", ANSWERS)
def test_a_server_that(name: str, served: Callable[..., str], done: RunFolder) -> None:
    uri = served(lambda there: there.sendall(ANSWERS[name]))
    before = contents(done.path)
    said = Said(done.path, "--tracking-uri", uri)
    assert said.status == 1
    assert said.out == f"1 runs under {done.path}: 1 not sent\n"
    said.one_line(f"MLflow at {uri} failed (", str(done.path))
    assert any(way in said.lines[0] for way in WAYS_OUT) or "sends them" in said.lines[0]
    if name in ("wants a password", "forbids it"):
        said.one_line("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    after = contents(done.path)
    assert uri.encode() not in after.pop("tracking.json")
    assert after == before


def _silent(there: socket.socket) -> None:
    there.recv(1)  # nothing comes


def _dripping(there: socket.socket) -> None:
    there.sendall(answer("x" * 1000)[:-1000])
    while True:
        there.sendall(b"x")
        threading.Event().wait(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("reply", [_silent, _dripping], ids=["is silent", "drips"])
def test_a_server_that_takes_its_time(
    reply: Callable[[socket.socket], None], served: Callable[..., str], done: RunFolder
) -> None:
    uri = served(reply)
    said = Said(done.path, "--tracking-uri", uri)
    assert (said.status, len(said.lines)) == (1, 1)
    assert uri not in (done.path / "tracking.json").read_text()


# --- notes ------------------------------------------------------------------------------------

NOTE = {
    "tracker": {
        "_target_": "fishr_exp.tracking.mlflow_mirror.MlflowMirror",
        "tracking_uri": f"http://{NOBODY}", "experiment": "e", "sweep": "s",
    },
    "address": f"http://{NOBODY}", "mirror": "0a", "run_id": "1", "ended": "RUNNING",
    "labels": LABELS,
}  # fmt: skip
NOTES: dict[str, Any] = {
    "empty": b"", "half of it": json.dumps(NOTE)[:40].encode(), "a list": [1], "null": None,
    "a number": 5, "text": "x", "bytes": b"\xff\xfe\x00", "levels": b"[" * 100_000,
    "levels of objects": b'{"tracker":' * 50_000,
    "a tracker that is text": {**NOTE, "tracker": "mlflow"},
    "a tracker without a part": {**NOTE, "tracker": {"tracking_uri": f"http://{NOBODY}"}},
    "a part that is a number": {**NOTE, "tracker": {**NOTE["tracker"], "_target_": 5}},  # type: ignore[dict-item]
    "a part of the system": {**NOTE, "tracker": {"_target_": "os.system", "command": "touch x"}},
    "another key": {**NOTE, "tracker": {**NOTE["tracker"], "shell": "x"}},  # type: ignore[dict-item]
    "an address that is a list": {**NOTE, "address": [1]},
    "a tracker's address that is a list": {
        **NOTE, "tracker": {**NOTE["tracker"], "tracking_uri": [1]},  # type: ignore[dict-item]
    },
    "an address in memory": {
        **NOTE, "tracker": {**NOTE["tracker"], "tracking_uri": "sqlite://"},  # type: ignore[dict-item]
    },
    "a number for a run": {**NOTE, "run_id": 7}, "labels that are a list": {**NOTE, "labels": [1]},
    "an identity that is an object": {**NOTE, "mirror": {}},
}  # fmt: skip


@pytest.mark.parametrize("name", NOTES)
def test_a_note_that_is(name: str, done: RunFolder, tmp_path: Path) -> None:
    note, path = NOTES[name], done.path / "tracking.json"
    path.write_bytes(note if isinstance(note, bytes) else json.dumps(note).encode())
    before = contents(tmp_path)
    said = Said(done.path)
    assert said.status == 1
    said.one_line(f"fishr-sync: {done.path}: ", "; ")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to itself"])
def test_in_place_of_a_note_there_is_a(kind: str, done: RunFolder) -> None:
    path = done.path / "tracking.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path)
    said = Said(done.path, "--tracking-uri", f"http://{NOBODY}")
    assert said.status == 1
    assert len(said.lines) == 1


def test_one_note_does_not_keep_others_from_being_sent(
    done: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    monkeypatch.setattr(MlflowMirror, "start", lambda self, *_: sent.append(self.folder.path.name))
    monkeypatch.setattr(MlflowMirror, "finish", lambda *_: None)
    (done.path / "tracking.json").write_text("[1]")
    other = tmp_path / "runs" / "other"
    with RunFolder(other) as folder:
        folder.open(CONFIG)
        folder.finish(RESULT)
    said = Said(tmp_path / "runs", "--tracking-uri", f"http://{NOBODY}")
    assert sent == ["other"]
    assert said.status == 1
    said.one_line(str(done.path), "remove this file")
