"""A password that is typed, or in a file or a variable, stands nowhere afterwards."""

from __future__ import annotations

import base64
import http.server
import json
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fishr_exp.cli import sync as sync_cli
from fishr_exp.core import secrets
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking import address, mirror
from fishr_exp.tracking.mirror import Mirror
from fishr_exp.tracking.mlflow import MlflowMirror, quiet_mlflow
from tests.e2e.conftest import Command, Outcome, process
from tests.unit.tracking.conftest import CONFIG, LABELS, RESULT, record

SECRET = "xyzzy-4711"
NOBODY = "127.0.0.1:9"
TRACKED = ("model.hidden=8", "epochs=1", "steps_per_epoch=1", "evaluate_train=false")
CONNECTIONS: list[str] = []  # what the real addresses were


def mostly_slow(cases: Iterable[tuple[str, ...]], *fast: int) -> list[Any]:
    """Mark cases that train as slow, but for some."""
    return [
        pytest.param(*case, marks=() if place in fast else pytest.mark.slow, id=" ".join(case))
        for place, case in enumerate(cases)
    ]


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    quiet_mlflow()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(secrets, "_remembered", set())
    monkeypatch.setattr(address, "_warned_of", set())
    mirror.unreachable.clear()
    CONNECTIONS.clear()
    yield
    mirror.unreachable.clear()


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that fails as MLflow's does, with the address in its error."""

    def connect(self: MlflowMirror) -> None:
        CONNECTIONS.append(self._uri)
        raise ConnectionError(f"cannot reach {self._uri}: bad password {SECRET}")

    monkeypatch.setattr(MlflowMirror, "connect", connect)


def assert_nowhere(folder: Path, outcome: Outcome, *secret: str) -> None:
    for text in secret or (SECRET,):
        assert text not in outcome.out
        assert text not in outcome.err + outcome.announced
        for path in folder.rglob("*"):
            assert text not in path.name
            assert not path.is_file() or text.encode() not in path.read_bytes(), path
    assert "Traceback" not in outcome.err


ADDRESSES = {
    "of a user": f"http://me:{SECRET}@{NOBODY}",
    "without a user": f"http://{SECRET}@{NOBODY}",
    "without a password": f"https://{SECRET}:@{NOBODY}",
    "with a slash": f"http://me:a/{SECRET}@{NOBODY}",
    "with an at": f"http://me:a@{SECRET}@{NOBODY}",
    "quoted for an address": f"http://me:a%40{SECRET}@{NOBODY}",
    "of a database": f"postgresql+psycopg2://me:{SECRET}@{NOBODY}/mlflow",
    "of a database, with all signs": f"mysql+pymysql://me:a/b@{SECRET}@{NOBODY}/mlflow",
    "in a query": f"http://{NOBODY}/?password={SECRET}",
    "in a query, with others": f"http://{NOBODY}/?a=1&access_token={SECRET}&b=2",
    "in capitals": f"HTTP://ME:{SECRET}@{NOBODY}",
}


@pytest.mark.parametrize("name", mostly_slow([(name,) for name in ADDRESSES], 0, 6, 8))
def test_a_password(name: str, fishr_exp: Command, refusing: None, tmp_path: Path) -> None:
    given = ADDRESSES[name]
    outcome = fishr_exp(f'tracker.tracking_uri="{given}"', tiny=TRACKED)
    assert outcome.status == 0
    assert CONNECTIONS[0] == given  # the real one is used
    assert_nowhere(tmp_path, outcome)
    warned = [line for line in outcome.err.splitlines() if "holds a password" in line]
    assert len(warned) == 1
    assert "MLFLOW_TRACKING_PASSWORD" in warned[0] or "~/.pgpass" in warned[0]
    assert "***" in (outcome.folder / ".hydra" / "overrides.yaml").read_text()


@pytest.mark.parametrize(
    "words",
    [
        "trainer.gamma=oops", "nonsense=1", "test_domains=[nowhere]", "epochs=",
        "tracker.nonsense=1", "tracker._target_=os.system", "--cfg job", "--cfg all", "--info",
        pytest.param("hydra.verbose=true", marks=pytest.mark.slow),
        pytest.param(f"tracker={{tracking_uri:'http://me:{SECRET}@h'}}", marks=pytest.mark.slow),
        pytest.param(f"+tracker.tracking_uri=http://me:{SECRET}@h", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_password_beside(words: str, fishr_exp: Command, refusing: None, tmp_path: Path) -> None:
    """Another mistake, or a question about the configuration, does not show it either."""
    typed = f"tracker.tracking_uri=http://me:{SECRET}@{NOBODY}"
    outcome = fishr_exp(typed, *words.split(), tiny=TRACKED)
    assert_nowhere(tmp_path, outcome)


@pytest.mark.parametrize(
    "word",
    [
        "tracker.tracking_uri={}", "tracker.tracking_url=http://me:{}@h",
        "tracker.tracking_uri=[http://me:{}@h", "output_dir=http://me:{}@h/\0",
        "tracker.password={}", "+tracker.api_key={}", "+tracker.token='{}'",
    ],
)  # fmt: skip
def test_a_password_that_is_typed_wrongly(
    word: str, fishr_exp: Command, refusing: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)  # by which a bare one is known
    outcome = fishr_exp(word.format(SECRET), tiny=TRACKED)
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1
    assert_nowhere(tmp_path, outcome)


VARIABLES = [
    ("TOKEN", "http://${oc.env:TOKEN}@h"), ("WHATEVER", "http://me:${oc.env:WHATEVER}@h"),
    ("TOKEN", "http://h?x=${oc.env:TOKEN}"), ("ADDRESS", "${oc.env:ADDRESS}"),
]  # fmt: skip


@pytest.mark.parametrize(("variable", "written"), mostly_slow(VARIABLES, 1))
def test_a_variable_is_recorded_by_its_name(
    variable: str, written: str, fishr_exp: Command, refusing: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    value = f"http://me:{SECRET}@h" if variable == "ADDRESS" else SECRET
    monkeypatch.setenv(variable, value)
    outcome = fishr_exp(f'tracker.tracking_uri="{written}"', tiny=TRACKED)
    assert outcome.status == 0
    assert CONNECTIONS[0] == written.replace(f"${{oc.env:{variable}}}", value)
    recorded = json.loads((outcome.folder / "config.json").read_text())["tracker"]
    assert recorded["tracking_uri"] == written
    assert_nowhere(tmp_path, outcome)


@pytest.mark.slow
def test_mlflows_variable_may_hold_one(
    fishr_exp: Command, refusing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@{NOBODY}")
    outcome = fishr_exp(tiny=TRACKED)
    assert (outcome.status, len(CONNECTIONS) > 0) == (0, True)
    assert "holds a password" not in outcome.err  # it was not typed
    assert_nowhere(tmp_path, outcome)


@pytest.mark.slow
def test_a_file_of_the_configuration_may_hold_one(
    fishr_exp: Command, refusing: None, tmp_path: Path
) -> None:
    own = tmp_path / "own" / "tracker"
    own.mkdir(parents=True)
    (own / "ours.yaml").write_text(
        f"defaults: [mlflow]\ntracking_uri: http://me:{SECRET}@{NOBODY}\n"
    )
    runs = tmp_path / "made"
    words = ("tracker=ours", f"hydra.searchpath=[file://{own.parent}]", f"output_dir={runs}")
    for more in ((), ("-m", "seed=1")):
        outcome = fishr_exp(*more, *words, tiny=TRACKED)
        assert outcome.status == 0
        assert_nowhere(runs, outcome)
    assert (runs / "multirun.yaml").exists()
    assert len(CONNECTIONS) >= 2


def test_a_sweep(fishr_exp: Command, refusing: None, tmp_path: Path) -> None:
    typed = f"tracker.tracking_uri=http://me:{SECRET}@{NOBODY}"
    outcome = fishr_exp("-m", "seed=0,1", typed, tiny=TRACKED)
    assert outcome.status == 0
    assert "http://***@" in (tmp_path / "runs" / "multirun.yaml").read_text()
    assert_nowhere(tmp_path, outcome)


@pytest.mark.slow
def test_a_run_goes_on_and_is_found_with_another_password(
    fishr_exp: Command, refusing: None, tmp_path: Path
) -> None:
    """The run and its address do not depend on it."""
    word = "tracker.tracking_uri=http://me:{}@h"
    first = fishr_exp(word.format(SECRET), tiny=TRACKED)
    note = json.loads((first.folder / "tracking.json").read_text())
    assert note["address"] == note["tracker"]["tracking_uri"] == "http://h"
    again = fishr_exp(word.format("another-4712"), tiny=TRACKED)
    assert again.folder == first.folder
    assert "done already" in again.err
    assert json.loads((first.folder / "tracking.json").read_text())["mirror"] == note["mirror"]
    assert_nowhere(tmp_path, again, SECRET, "another-4712")


@pytest.fixture
def of_yesterday(tmp_path: Path) -> RunFolder:
    """A folder in which an earlier version has recorded a password, in all files."""
    uri = f"http://me:{SECRET}@h"
    tracker = {"tracking_uri": uri, "api_key": SECRET, "experiment": "e", "sweep": "s"}
    with RunFolder(tmp_path / "runs" / "fishr-seed0") as folder:
        folder.open(CONFIG)
        for step in (2, 4):
            folder.append(record(step, losses={"risk": 1 / step}))
        folder.finish(RESULT)
    files = {
        "config.json": {**CONFIG, "tracker": tracker},
        "environment.json": {"command": ["fishr-exp", f"tracker.tracking_uri={uri}"]},
    }
    for name, content in files.items():
        (folder.path / name).write_text(json.dumps(content))
    return folder


class Seen(Mirror):
    """A tracker that keeps what it is sent."""

    sent: list[Any]

    def connect(self) -> None:
        self.sent = []

    def open_run(self) -> str:
        return "run"

    def send_settings(self, settings: Any) -> None:
        self.sent.append(dict(settings))

    def last_step(self) -> int:
        return -1

    def send_records(self, points: Any) -> None:
        self.sent.append(list(points))

    def send_end(self, end: Any) -> None:
        self.sent += [end, *(path.read_text() for path in end.files)]
        assert [path.name for path in end.files] == [
            "config.json",
            "environment.json",
            "result.json",
        ]


def test_what_an_earlier_version_recorded_is_not_sent(of_yesterday: RunFolder) -> None:
    before = (of_yesterday.path / "config.json").read_bytes()
    seen = Seen(of_yesterday, "memory://here")
    seen.start(json.loads(before), LABELS)
    seen.finish("FINISHED")
    assert seen.error == ""
    assert SECRET not in repr(seen.sent)
    assert "http://***@h" in repr(seen.sent)
    assert (of_yesterday.path / "config.json").read_bytes() == before  # a run of yesterday stays


@pytest.mark.slow
def test_what_an_earlier_version_recorded_is_not_in_the_database(
    of_yesterday: RunFolder, tmp_path: Path
) -> None:
    database = tmp_path / "mlflow.db"
    assert sync_cli.main([str(of_yesterday.path), "--tracking-uri", f"sqlite:///{database}"]) == 0
    assert SECRET.encode() not in database.read_bytes()
    with sqlite3.connect(database) as there:
        tags = dict(there.execute("SELECT key, value FROM tags"))
    assert "http://***@h" in tags["mlflow.note.content"]
    for path in (tmp_path / "mlflow_artifacts").rglob("*.json"):
        assert SECRET not in path.read_text()


class _Guarded(http.server.BaseHTTPRequestHandler):
    """Lets in who has the password, and answers like an MLflow without experiments."""

    seen: list[str | None]

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
        self.seen.append(self.headers.get("Authorization"))
        self.send_response(404 if self.headers.get("Authorization") == wanted else 401)
        body = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}'
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("way", ["address", "variables"])
def test_the_server_gets_the_password(
    way: str, of_yesterday: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Guarded.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Guarded)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    user = f"me:{SECRET}@" if way == "address" else ""
    if way == "variables":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    uri = f"http://{user}127.0.0.1:{server.server_address[1]}"
    assert sync_cli.main([str(of_yesterday.path), "--tracking-uri", uri]) == 1
    server.shutdown()
    server.server_close()
    assert _Guarded.seen[0] == "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()


def test_a_log_of_somebody_elses_format(tmp_path: Path) -> None:
    """Whatever formats a line: errors with their tracebacks, too."""
    import fishr_exp.configuration.callbacks  # noqa: F401 - as in the processes of a launcher

    class Own(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return f"own: {super().format(record)}"

    handler = logging.FileHandler(tmp_path / "log")
    handler.setFormatter(Own())
    logger = logging.Logger("of a test")
    logger.addHandler(handler)
    try:
        raise ValueError(f"http://me:{SECRET}@h")
    except ValueError:
        logger.exception("at %s", f"http://me:{SECRET}@h")
    handler.close()
    text = (tmp_path / "log").read_text()
    assert text.count("http://***@h") == 3  # the source line in the traceback, too
    assert SECRET not in text


@pytest.mark.slow
def test_jobs_in_processes_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    typed = f"tracker.tracking_uri=http://me:{SECRET}@{NOBODY}"
    runs = tmp_path / "runs"
    words = ("-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", typed)
    command = process(*TRACKED, *words, f"output_dir={runs}")
    out, err = command.communicate(timeout=120)
    assert command.returncode == 0, err
    assert len(list(runs.glob("*/done"))) == 2
    assert_nowhere(tmp_path, Outcome(0, out, err, runs))


@pytest.mark.slow
def test_a_full_error_is_masked_too(tmp_path: Path) -> None:
    typed = f"tracker.tracking_uri=http://me:{SECRET}@{NOBODY}"
    full = {"HYDRA_FULL_ERROR": "1"}
    command = process(*TRACKED, "trainer.gamma=oops", typed, f"output_dir={tmp_path}", env=full)
    out, err = command.communicate(timeout=120)
    assert command.returncode != 0
    assert "Traceback" in err
    assert_nowhere(tmp_path, Outcome(1, out, "", tmp_path))
    assert SECRET not in err
