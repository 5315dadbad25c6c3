"""A server that is MLflow's at first, and answers one of the calls with something odd."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fishr_exp.cli import sync as sync_cli
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking import mirror
from fishr_exp.tracking.mlflow import quiet_mlflow
from tests.hostile.test_tracker_states import Said, contents, done

__all__ = ["done"]  # the fixture
RUN = "0123456789abcdef0123456789abcdef"


def run(artifacts: str, **info: Any) -> dict[str, Any]:
    known = {"run_id": RUN, "run_uuid": RUN, "experiment_id": "1", "status": "RUNNING"}
    return {"info": {**known, "artifact_uri": artifacts, "lifecycle_stage": "active", **info},
            "data": {"metrics": [], "params": [], "tags": []}}  # fmt: skip


class Fake(http.server.ThreadingHTTPServer):
    """As much of MLflow's server as a run asks for; some answers are replaced."""

    daemon_threads = True

    def __init__(self, artifacts: str, answers: Mapping[str, Any]) -> None:
        experiment = {"experiment_id": "1", "name": "fishr-exp", "lifecycle_stage": "active"}
        self.answers = {
            "experiments/get-by-name": {"experiment": experiment},
            "runs/search": {"runs": []},
            "runs/create": {"run": run(artifacts)},
            "runs/get": {"run": run(artifacts)},
            "runs/log-batch": {},
            "runs/update": {"run_info": run(artifacts)["info"]},
            "metrics/get-history": {"metrics": []},
            **answers,
        }
        self.made = {"runs": [run(artifacts)]} if {*CALLS[:2]}.isdisjoint(answers) else None
        super().__init__(("127.0.0.1", 0), _Answering)
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Answering(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Fake)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0].removeprefix("/api/2.0/mlflow/")
        answer = self.server.answers.get(path, 404)
        if path == "runs/create" and self.server.made:  # from now on it is found
            self.server.answers["runs/search"] = self.server.made
        status = answer if isinstance(answer, int) else 200
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_PATCH = do_POST  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    quiet_mlflow()
    for name, value in (("MAX_RETRIES", "0"), ("BACKOFF_FACTOR", "0"), ("TIMEOUT", "1")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    monkeypatch.setattr(sync_cli, "PATIENCE", 5.0)
    mirror.unreachable.clear()
    yield
    mirror.unreachable.clear()


def synced(done: RunFolder, artifacts: str, answers: Mapping[str, Any]) -> tuple[Said, str]:
    server = Fake(artifacts, answers)
    try:
        return Said(done.path, "--tracking-uri", server.uri), server.uri
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_answers_as_it_should(done: RunFolder, tmp_path: Path) -> None:
    """Also one that keeps its files on this machine."""
    place = tmp_path / "mlruns" / "1" / RUN / "artifacts"
    said, uri = synced(done, place.as_uri(), {})
    assert (said.status, said.out) == (0, f"1 runs under {done.path}: 1 sent\n")
    assert {path.name for path in place.iterdir()} == {
        "config.json", "environment.json", "result.json"
    }  # fmt: skip
    assert json.loads((done.path / "tracking.json").read_text())["address"] == uri


@pytest.mark.parametrize("form", ["{}", "file://{}", "file:{}", "{}/artifacts/.."])
def test_a_server_that_names_a_folder_of_the_user(
    form: str, done: RunFolder, tmp_path: Path
) -> None:
    """Where a config.json would replace another one."""
    home = tmp_path / "home" / ".docker"
    (home / "artifacts").mkdir(parents=True)
    (home / "config.json").write_text("mine")
    said, _ = synced(done, form.format(home), {})
    assert said.status == 1
    said.one_line("for the files of a run", "fishr-sync")
    assert {path.name for path in home.iterdir()} == {"artifacts", "config.json"}
    assert (home / "config.json").read_text() == "mine"


ODD: dict[str, Any] = {
    "nothing": b"", "a page": b"<html>", "null": None, "a list": [], "text": "x", "a number": b"7",
    "an error": 500, "no such page": 404, "levels": b"[" * 50_000,
}  # fmt: skip
CALLS = ("runs/search", "runs/create", "runs/get", "runs/log-batch", "metrics/get-history",
         "runs/update")  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer(name: str, call: str, done: RunFolder, tmp_path: Path) -> None:
    place = tmp_path / "mlruns" / "artifacts"
    before = contents(done.path)
    said, uri = synced(done, place.as_uri(), {call: ODD[name]})
    after = contents(done.path)
    note = json.loads(after.pop("tracking.json"))
    assert after == before
    if said.status == 0:  # what the call answers does not matter
        assert call in ("runs/log-batch", "runs/update", "metrics/get-history", "runs/search")
        assert note["ended"] == "FINISHED"
        return
    said.one_line(f"MLflow at {uri} failed (", str(done.path), "sends them")
    assert note["ended"] != "FINISHED"


RUNS: dict[str, Any] = {
    "without a number": {"run": run("x", run_id="", run_uuid="")},
    "that is text": {"run": "x"}, "that is null": {"run": None}, "without anything": {"run": {}},
    "with a status of its own": {"run": run("x", status="GONE")},
    "with a number that is a path": {"run": run("x", run_id="../../x", run_uuid="../../x")},
    "with a time that is text": {"run": run("x", start_time="yesterday")},
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run(name: str, done: RunFolder, tmp_path: Path) -> None:
    before = contents(tmp_path)
    answers = {"runs/create": RUNS[name], "runs/get": RUNS[name]}
    said, uri = synced(done, "x", answers)
    assert said.status == 1
    said.one_line(f"MLflow at {uri} failed (", "sends them")
    after = contents(tmp_path)
    assert {*after} - {*before} == {str((done.path / "tracking.json").relative_to(tmp_path))}
