"""Real servers that go away, are slow or come back, and databases that many log to at once."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.mirror import unreachable
from fishr_exp.tracking.mlflow import MlflowMirror

from .conftest import caller, process
from .test_mlflow import sync

pytestmark = pytest.mark.slow
TRACKED = ("model.hidden=8", "epochs=8", "steps_per_epoch=2")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """`mlflow server` on loopback, which can be killed and started again on its data."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
                 "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
                 "--artifacts-destination", f"{self.folder}/artifacts"]  # fmt: skip
        alone = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words],
                env={**os.environ, **alone}, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health"):
                return
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)  # its worker, too
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def running(server: Server) -> Server:
    if not server._process:
        server.start()
    unreachable.clear()  # as in a process of its own
    return server


class Moments:
    """Do something after the record of an epoch, and tell how long training took in between."""

    def __init__(self, patch: pytest.MonkeyPatch, **at: Any) -> None:
        self.calls = {int(epoch.removeprefix("epoch")): call for epoch, call in at.items()}
        self.waits: list[float] = []
        self._last = 0.0
        append = RunFolder.append

        def appended(folder: RunFolder, record: dict[str, Any]) -> None:
            if self._last:
                self.waits.append(time.monotonic() - self._last)
            append(folder, record)
            self.calls.get(record["epoch"], lambda: None)()
            self._last = time.monotonic()

        patch.setattr(RunFolder, "append", appended)


def runs_at(uri: str, experiment: str) -> list[Any]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def flat(record: dict[str, Any]) -> dict[str, float]:
    """What MLflow shall hold of a record."""
    names = (
        "epoch", "learning_rate", "seconds_per_step", "seconds_waiting_per_step", "train_accuracy",
        "validation_accuracy", "train_loss", "validation_loss",
    )  # fmt: skip
    by_domain = {
        f"{metric}/{domain}/{part}": value
        for metric in ("accuracy", "loss")
        for domain, parts in record[metric].items()
        for part, value in parts.items()
    }
    return {**{name: record[name] for name in names}, **record["losses"], **by_domain}


def assert_complete(uri: str, run: Any, folder: Path) -> None:
    """Every metric's history equals the records: each step once, in order, at its time."""
    client, there = MlflowClient(uri), RunFolder(folder)
    expected: dict[str, list[tuple[int, int, float]]] = {}
    for record in there.records():
        for name, value in flat(record).items():
            line = (record["step"], int(1000 * record["time"]), value)
            expected.setdefault(name, []).append(line)
    assert len(expected["risk"]) == len(there.records()) > 0
    of_result = {name for name in run.data.metrics if name.startswith(("test_", "selected/"))}
    assert set(run.data.metrics) == {*expected, *of_result}
    for name, lines in expected.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert [(m.step, m.timestamp, m.value) for m in history] == lines, name
    result = there.result()
    assert result
    assert run.info.status == "FINISHED"
    assert len(of_result) == 2 * (3 + len(result["test_accuracy"]))
    for domain, value in result["test_accuracy"].items():
        history = client.get_metric_history(run.info.run_id, f"test_accuracy/{domain}")
        assert [m.value for m in history] == [value]
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"config.json", "environment.json", "result.json"}


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_dies_in_a_run_gets_the_rest_by_hand(
    running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        until(lambda: [run for run in runs_at(running.uri, "dies") if "risk" in run.data.metrics])
        running.kill()

    moments = Moments(monkeypatch, epoch3=die)
    to = (f"tracker.tracking_uri={running.uri}", "tracker.experiment=dies")
    outcome = caller(tmp_path / "runs")(*to, tiny=TRACKED)
    assert outcome.status == 0, outcome.err
    assert [record["step"] for record in outcome.records()] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert max(moments.waits) < 1  # a call to nobody alone takes two
    assert outcome.err.count("MLflow at") == 1
    away = sync(tmp_path)
    assert (away.status, away.out) == (1, f"1 runs under {tmp_path}: 1 not sent\n")

    running.start()
    unreachable.clear()
    (run,) = runs_at(running.uri, "dies")
    assert run.info.status == "RUNNING"
    assert run.data.metrics["epoch"] < 8
    assert sync(tmp_path).out == f"1 runs under {tmp_path}: 1 sent\n"
    (run,) = runs_at(running.uri, "dies")
    assert_complete(running.uri, run, outcome.folder)
    assert sync(tmp_path).out == f"1 runs under {tmp_path}: 1 complete already\n"


def test_a_server_that_comes_back_in_a_run_gets_all(
    running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = []
    start = MlflowMirror.start

    def started(mirror: MlflowMirror, *rest: Any) -> None:
        mirrors.append(mirror)
        start(mirror, *rest)

    monkeypatch.setattr(MlflowMirror, "start", started)
    monkeypatch.setattr(MlflowMirror, "pause", 0.5)
    Moments(
        monkeypatch,
        epoch2=running.kill,
        epoch3=lambda: until(lambda: mirrors[0].error),
        epoch5=running.start,
        epoch6=lambda: until(lambda: not mirrors[0].error),  # long before the end
    )
    to = (f"tracker.tracking_uri={running.uri}", "tracker.experiment=back")
    outcome = caller(tmp_path / "runs")(*to, tiny=TRACKED)
    assert outcome.status == 0
    said = [line for line in outcome.err.splitlines() if "MLflow at" in line]
    assert len(said) == 2, outcome.err
    assert "fishr-sync" in said[0]
    assert said[1].endswith(f"MLflow at {running.uri} is back, and has all records")
    (run,) = runs_at(running.uri, "back")
    assert_complete(running.uri, run, outcome.folder)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of somebody who listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_never_answers_costs_the_patience_once(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    finish = MlflowMirror.finish

    def timed(mirror: MlflowMirror, status: str) -> None:
        started = time.monotonic()
        finish(mirror, status)
        ends.append(time.monotonic() - started)

    monkeypatch.setattr(MlflowMirror, "finish", timed)
    monkeypatch.setattr(MlflowMirror, "patience", 3.0)
    moments = Moments(monkeypatch)
    to = (f"tracker.tracking_uri={silent}", "-m", "seed=0,1,2")
    outcome = caller(tmp_path / "runs")(*to, tiny=TRACKED)
    assert outcome.status == 0
    assert len(list((tmp_path / "runs").glob("*/done"))) == 3
    assert outcome.err.count("MLflow at") == 3  # one a run
    assert "not done in 3 s" in outcome.err
    assert 2.9 < ends[0] < 4
    assert max(ends[1:]) < 2
    between_runs = sorted(moments.waits)[-2:]
    assert max(w for w in moments.waits if w not in between_runs) < 1


class Between(http.server.ThreadingHTTPServer):
    """A slow line to a server, on which some answers are lost."""

    daemon_threads = True

    def __init__(self, port: int, delay: float, lost: dict[str, int]) -> None:
        self.port, self.delay, self.lost = port, delay, lost  # how often, by the end of a path
        super().__init__(("127.0.0.1", 0), _Passing)
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def loses(self, path: str) -> bool:
        for end in self.lost:
            if path.endswith(end) and self.lost[end]:
                self.lost[end] -= 1
                return True
        return False


class _Passing(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Between)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        there = http.client.HTTPConnection("127.0.0.1", self.server.port)
        headers = {k: v for k, v in self.headers.items() if k not in ("Host", "Connection")}
        there.request(self.command, self.path, body, headers)
        answer = there.getresponse()
        content = answer.read()
        time.sleep(self.server.delay)
        if self.server.loses(self.path.partition("?")[0]):
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_PATCH = do_POST  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_slow_line_that_loses_answers_doubles_nothing(
    running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done and not heard of is done again: runs, batches and the end."""
    lost = {"/runs/create": 2, "/runs/log-batch": 4, "/runs/update": 3}
    line = Between(running.port, 0.2, lost)
    moments = Moments(monkeypatch)
    to = (f"tracker.tracking_uri={line.uri}", "tracker.experiment=line")
    outcome = caller(tmp_path / "runs")(*to, tiny=TRACKED)
    assert outcome.status == 0
    assert max(moments.waits) < 1
    if "MLflow at" in outcome.err:
        assert sync(tmp_path).status == 0
    assert set(lost.values()) == {0}
    (run,) = runs_at(running.uri, "line")
    assert_complete(running.uri, run, outcome.folder)
    line.shutdown()


def log_at_once(uri: str, tmp_path: Path, *words: str) -> None:
    """Let four processes, one of them with loader workers, log to `uri`; nothing may be lost."""
    all_four = [
        process(*TRACKED, "epochs=40", "steps_per_epoch=1", "observer=last_step", f"seed={seed}",
                f"num_workers={seed // 3}", f"tracker.tracking_uri={uri}",
                f"output_dir={tmp_path}/runs", *words, cwd=tmp_path, stderr=subprocess.STDOUT)
        for seed in range(4)
    ]  # fmt: skip
    said = [run.communicate()[0] for run in all_four]
    assert [run.returncode for run in all_four] == [0, 0, 0, 0], said
    assert "MLflow at" not in "".join(said)
    runs = {run.data.tags["folder"]: run for run in runs_at(uri, "fishr-exp")}
    folders = [path.parent for path in tmp_path.glob("runs/*/done")]
    assert len(runs) == len(folders) == 4
    for folder in folders:
        assert len(RunFolder(folder).records()) == 40
        assert_complete(uri, runs[str(folder)], folder)
        assert json.loads((folder / "tracking.json").read_text())["ended"] == "FINISHED"


def test_four_processes_log_to_one_sqlite_file_at_once(tmp_path: Path) -> None:
    log_at_once(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)


@pytest.fixture
def postgres() -> Iterator[str]:
    """The URI of a database in a PostgreSQL of its own, on loopback."""
    pytest.importorskip("psycopg2", reason="pip install 'fishr-exp[postgresql]'")
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb") or (homes and shutil.which("initdb", path=str(homes[-1])))
    if not found:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    programs, port = Path(found).resolve().parent, free_port()
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # it refuses root

    def call(program: str, *words: object) -> None:
        line = [*user, programs / program, *words]
        subprocess.run([str(w) for w in line], check=True, cwd="/", stdout=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, "postgres")
        data = Path(folder) / "data"
        call("initdb", "-D", data, "-U", "postgres", "--auth", "trust", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -k {folder}"
        call("pg_ctl", "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            call("createdb", "-h", "127.0.0.1", "-p", port, "-U", "postgres", "mlflow")
            yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/mlflow"
        finally:
            call("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def test_four_processes_log_to_postgresql_at_once(postgres: str, tmp_path: Path) -> None:
    log_at_once(postgres, tmp_path)
    # What PostgreSQL does not hold lies beside the runs, and nothing in the current folder.
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert len(list((tmp_path / "runs" / "mlflow_artifacts").iterdir())) == 4
