"""MLflow as a mirror of the run folder: it is sent what the folder holds and it lacks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from fishr_exp.results.run_folder import TRACKING, RunFolder, write_atomically
from fishr_exp.runs.identity import flatten

log = logging.getLogger(__name__)

# MLflow's own defaults block an unreachable server's user for minutes, report usage, and print.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

_PARAMETER_LENGTH = 6000  # MLflow's limit, characters
_METRICS = 1000  # MLflow's limit, metrics a call
_LOCKED = 120.0  # seconds to wait for others who make the database
_PAUSE = 30.0  # seconds between two tries at a server that is away
_BRIEFLY = 1.0  # seconds to wait at the end, after a run that found nobody
_SQLITE = "sqlite:///"
_ERROR = "error"  # the tag of a failed run
_OF_EPOCHS = ("epoch", "learning_rate", "seconds_per_step", "seconds_waiting_per_step")
_IDENTITY = "mirror"  # the tag by which a folder's run is found again, on any server

unreachable: set[str] = set()  # tracking URIs where a run of this process ended unheard


class MlflowMirror:
    """Send a run folder's configuration, records and result to MLflow, in a thread of its own.

    The folder is the truth, and training does not wait. When MLflow fails, one warning is logged,
    and the thread tries again from time to time; what is missing at the end of the run is left to
    `fishr-sync`, or to the same command, given again.

    Nothing is sent twice: after a failure the server is asked what it has, the run bears a tag by
    which it is found, and a record the time at which it was written, so that MLflow knows it again.

    Args:
        folder: The run folder.
        tracking_uri: Any tracking URI of MLflow, e.g. `sqlite:///outputs/mlflow.db`.
        experiment: MLflow's name for a group of runs; it is made when missing.
        sweep: The value of the tag `sweep`, which the runs of a sweep share. Runs are not nested:
            MLflow's charts hide nested ones.

    Attributes:
        error: Why the last try failed; empty after a good one.
        patience: Seconds to wait for a server at the end of a run; None: until it is done or fails,
            as for a SQLite file, which others may be busy with, but which does not go away.
    """

    patience: float | None = 30.0

    def __init__(self, folder: RunFolder, tracking_uri: str, experiment: str, sweep: str) -> None:
        self.folder = folder
        self._database = _sqlite_file(tracking_uri)
        self.tracking_uri = f"{_SQLITE}{self._database}" if self._database else tracking_uri
        self.experiment = experiment
        self.sweep = sweep
        self.error = ""
        # Where files of a database go, instead of the current folder; servers have their own.
        self._home = None if tracking_uri.startswith("http") else folder.path.parent.absolute()
        if self._database:
            self._home, self.patience = self._database.parent, None
        self._state_file = folder.path / TRACKING
        self._client: Any = None
        self._identity = self._run_id = ""
        self._experiment_id = ""  # empty while nobody answers
        self._sent_step = -1  # MLflow has the records up to this one
        self._warned = False
        self._status = ""  # how the run ended; empty while it goes on
        self._news = threading.Event()
        self._given_up = False  # what stands in the folder is no longer ours to write
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        """Make MLflow's run, or take up the one of an earlier start, and send what it lacks."""
        import mlflow  # noqa: F401 - 1.5 s, here: a loader that forks meanwhile could hang

        self._config, self._labels = config, labels
        self._identity = self._state().get(_IDENTITY) or uuid.uuid4().hex
        self._run_id = self._known().get("run_id", "")
        with contextlib.suppress(OSError):  # a full disk stops the run elsewhere, or not at all
            self._save("RUNNING")
        self._thread = threading.Thread(target=self._keep_sending, name="mlflow", daemon=True)
        self._thread.start()

    def catch_up(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        """Send what MLflow lacks of a run that is done; does not import MLflow if it has all."""
        if self.lacks("FINISHED"):
            self.start(config, labels)
            self.finish("FINISHED")

    def lacks(self, status: str) -> bool:
        """Whether MLflow has not heard of all that a run has to tell that ended with `status`."""
        return self._known().get("ended") != status

    def sync(self) -> None:
        """Let the records be sent that MLflow lacks; returns at once."""
        self._news.set()

    def finish(self, status: str) -> None:
        """Let all that is missing be sent, the artifacts, and how the run ended.

        It waits while that is under way, and no longer than its patience; briefly, where nobody
        has answered since the run before it in this process.

        Args:
            status: `FINISHED`, `FAILED` or `KILLED`.
        """
        assert self._thread is not None, "start comes first"
        self._status = status
        self._news.set()
        patience = _BRIEFLY if self.tracking_uri in unreachable else self.patience
        try:
            self._thread.join(patience)
        finally:
            with self._writing:
                self._given_up = self._thread.is_alive()
        if self._given_up:
            self.error = f"not done in {patience:g} s"
            self._warn()
        if self.error and not self._experiment_id:
            unreachable.add(self.tracking_uri)

    def _keep_sending(self) -> None:
        """Send whenever there is news; after a failure, not before a while, or at the end."""
        while True:
            status, attempted = self._status, time.monotonic()
            self._send(status)
            if status or self._given_up:
                return
            self._news.wait()
            self._news.clear()
            while self.error and not self._status and time.monotonic() < attempted + _PAUSE:
                self._news.wait(1.0)
                self._news.clear()

    def _send(self, status: str) -> None:
        try:
            if status:
                self._send_end(status)
            else:
                self._send_records()
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises, the run goes on
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
            self.error = f"{type(error).__name__}: {first_line:.200s}"
            self._client = None  # so that the server is asked anew what it has
            self._warn()
        else:
            if self.error:
                log.info("MLflow at %s is back, and has all records", self.tracking_uri)
            self.error, self._warned = "", False

    def _warn(self) -> None:
        if not self._warned:
            log.warning(
                "MLflow at %s failed (%s); the run does without: its records are in %s, and "
                "fishr-sync, or the same command given again, sends them",
                self.tracking_uri,
                self.error,
                self.folder.path,
            )
        self._warned = True

    def _connect(self) -> Any:
        """Return the client; the first call opens MLflow's run."""
        if self._client is None:
            self._experiment_id = ""
            client, self._experiment_id = self._open_experiment()
            unreachable.discard(self.tracking_uri)
            self._find_run(client)
            if self._run_id:
                client.update_run(self._run_id, status="RUNNING")
            else:
                tags = {"sweep": self.sweep, "folder": str(self.folder.path), **self._labels}
                self._run_id = client.create_run(
                    self._experiment_id,
                    run_name=self.folder.path.name,
                    tags={**tags, _IDENTITY: self._identity},
                ).info.run_id
            self._save("RUNNING")
            run = client.get_run(self._run_id)
            if _ERROR in run.data.tags:
                client.delete_tag(self._run_id, _ERROR)
            self._send_parameters(client, run.data.params)
            history = client.get_metric_history(self._run_id, "epoch")
            self._sent_step = max((metric.step for metric in history), default=-1)
            self._client = client
        return self._client

    def _open_experiment(self) -> tuple[Any, str]:
        """Return a client and the identity of the experiment, which is made where missing."""
        from mlflow import MlflowClient  # 1.5 s; only a run that tracks pays
        from mlflow.exceptions import MlflowException

        # They tell of every table, every try, and with a traceback of what is raised anyway.
        for library in ("mlflow", "urllib3"):
            logging.getLogger(library).setLevel(logging.CRITICAL)
        # The client makes the database, and two processes that make one at once break it for good.
        with self._creation_lock():
            client = MlflowClient(tracking_uri=self.tracking_uri)
            found: Any = client.get_experiment_by_name(self.experiment)
            if found is None:
                try:
                    client.create_experiment(self.experiment, self._artifact_location())
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another was faster
                        raise
                found = client.get_experiment_by_name(self.experiment)
            return client, found.experiment_id

    def _find_run(self, client: Any) -> None:
        """Find MLflow's run of this folder, and remove others.

        A slow server may have heard several times that it shall make one.
        """
        wanted = f"tags.{_IDENTITY} = '{self._identity}'"
        found = [run.info.run_id for run in client.search_runs([self._experiment_id], wanted)]
        if self._run_id not in found:  # nor is it, where the server was reset
            self._run_id = found[-1] if found else ""  # the oldest
        for double in found:
            if double != self._run_id:
                client.delete_run(double)

    def _state(self) -> dict[str, Any]:
        """Return what the last mirror of this folder wrote; empty if there was none."""
        if not self._state_file.exists():
            return {}
        try:
            state: dict[str, Any] = json.loads(self._state_file.read_text())
        except ValueError:  # spoilt: MLflow is asked by the folder's tag, or told anew
            return {}
        return state

    def _known(self) -> dict[str, Any]:
        """Return which MLflow run mirrors this folder, and how far it is; empty if none does."""
        state = self._state()
        if state.get("tracking_uri") != self.tracking_uri or not state.get("run_id"):
            return {}
        if self._database and not _holds_run(self._database, state["run_id"]):
            return {}  # the database was lost, or made anew
        return state

    def _save(self, ended: str) -> None:
        state = {
            "tracking_uri": self.tracking_uri,
            "experiment": self.experiment,
            "sweep": self.sweep,
            "labels": dict(self._labels),
            _IDENTITY: self._identity,
            "run_id": self._run_id,
            "ended": ended,
        }
        with self._writing:
            if self._given_up:
                raise TimeoutError("too late")  # the folder may be another process's by now
            write_atomically(self._state_file, json.dumps(state))

    def _creation_lock(self) -> contextlib.AbstractContextManager[Any]:
        if self._home is None:
            return contextlib.nullcontext()
        self._home.mkdir(parents=True, exist_ok=True)
        place = f"{self._database}.lock" if self._database else self._home / ".mlflow.lock"
        return FileLock(place, timeout=_LOCKED)

    def _artifact_location(self) -> str | None:
        return (self._home / "mlflow_artifacts").as_uri() if self._home else None

    def _send_parameters(self, client: Any, there: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        flat = {_name(k): str(v) for k, v in {**self._labels, **flatten(self._config)}.items()}
        missing = [Param(k, v[:_PARAMETER_LENGTH]) for k, v in flat.items() if k not in there]
        for first in range(0, len(missing), 100):  # MLflow takes 100 a call
            client.log_batch(self._run_id, params=missing[first : first + 100])

    def _send_records(self) -> None:
        client = self._connect()
        waiting: list[Any] = []
        missing = [r for r in self.folder.records() if r["step"] > self._sent_step]
        for record in missing:
            own = _metrics(record)
            if len(waiting) + len(own) > _METRICS:
                client.log_batch(self._run_id, metrics=waiting)
                waiting = []
            waiting += own
        if waiting:
            client.log_batch(self._run_id, metrics=waiting)
            self._sent_step = missing[-1]["step"]

    def _send_end(self, status: str) -> None:
        self._send_records()
        self._find_run(self._client)
        result = self.folder.result()
        if result:
            records = self.folder.records()
            written = _written(records[-1]) if records else 0
            _log_result(self._client, self._run_id, result, written)
        for name in ("config.json", "environment.json", "result.json"):
            if (self.folder.path / name).exists():
                self._client.log_artifact(self._run_id, str(self.folder.path / name))
        self._client.set_terminated(self._run_id, status)
        self._save(status)


def _sqlite_file(tracking_uri: str) -> Path | None:
    if not tracking_uri.startswith(_SQLITE):
        return None
    return Path(tracking_uri.removeprefix(_SQLITE)).absolute()


def _holds_run(database: Path, run_id: str) -> bool:
    """Whether MLflow's SQLite file knows the run; asked without importing MLflow."""
    if not database.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as there:
            found = there.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
    except sqlite3.Error as error:  # no such table yet, or a scheme of another day
        return "locked" in str(error)  # busy with others; what it holds, it holds
    return found is not None


def _name(name: str) -> str:
    """Replace what MLflow's names must not hold."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _metrics(record: Mapping[str, Any]) -> list[Any]:
    """The numbers of one evaluation record as MLflow's metrics at that step."""
    from mlflow.entities import Metric

    numbers = {
        **record["losses"],
        **{key: record[key] for key in _OF_EPOCHS if key in record},
        **{key: record[key] for key in ("train_accuracy", "validation_accuracy")},
    }
    numbers |= {f"diagnostics/{k}": v for k, v in record.get("diagnostics", {}).items()}
    for domain, parts in record["accuracy"].items():
        for part, value in parts.items():
            numbers[f"accuracy/{domain}/{part}"] = value
    return [
        Metric(_name(name), float(value), _written(record), record["step"])
        for name, value in numbers.items()
        if value is not None
    ]


def _written(record: Mapping[str, Any]) -> int:
    """When a record was written, in milliseconds, the same whenever it is sent."""
    return int(1000 * record.get("time", record["seconds"]))


def _log_result(client: Any, run_id: str, result: Mapping[str, Any], written: int) -> None:
    """The figures of the selected checkpoint, under names of their own."""
    from mlflow.entities import Metric, RunTag

    if result["status"] == "failed":
        client.log_batch(run_id, tags=[RunTag(_ERROR, str(result.get("error", ""))[:5000])])
        return
    step = result["selected"]["step"]
    numbers = {f"test_accuracy/{name}": value for name, value in result["test_accuracy"].items()}
    numbers |= {f"selected/{key}": result[key] for key in ("train_accuracy", "validation_accuracy")}
    sent = {_name(k): float(v) for k, v in numbers.items() if v is not None}
    metrics = [Metric(name, value, written, step) for name, value in sent.items()]
    client.log_batch(run_id, metrics=metrics)
