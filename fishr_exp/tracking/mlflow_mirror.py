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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from fishr_exp.results.run_folder import TRACKING, RunFolder, write_atomically
from fishr_exp.results.settings import flatten

log = logging.getLogger(__name__)

# MLflow's own defaults block an unreachable server's user for minutes, and report usage.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

_PARAMETER_LENGTH = 6000  # MLflow's limit, characters
_METRICS = 1000  # MLflow's limit, metrics a call
_PAUSE = 30.0  # seconds between two tries at a server that is away
_PATIENCE = 30.0  # seconds to wait for a server at the end of a run
_SQLITE = "sqlite:///"
_ERROR = "error"  # the tag of a failed run


class MlflowMirror:
    """Send a run folder's configuration, records and result to MLflow, in a thread of its own.

    The folder is the truth, and training does not wait. When MLflow fails, one warning is logged,
    and the thread tries again from time to time; what is missing at the end of the run is left to
    `fishr-sync`, or to the same command, given again.

    Nothing is sent twice: after a failure the server is asked what it has, and a record bears the
    time at which it was written, so that MLflow knows it again.

    Args:
        folder: The run folder.
        tracking_uri: Any tracking URI of MLflow, e.g. `sqlite:///outputs/mlflow.db`.
        experiment: MLflow's name for a group of runs; it is made when missing.
        sweep: The value of the tag `sweep`, which the runs of a sweep share. Runs are not nested:
            MLflow's charts hide nested ones.
    """

    def __init__(self, folder: RunFolder, tracking_uri: str, experiment: str, sweep: str) -> None:
        self.folder = folder
        self._database = _sqlite_file(tracking_uri)
        self.tracking_uri = f"{_SQLITE}{self._database}" if self._database else tracking_uri
        self.experiment = experiment
        self.sweep = sweep
        self.error = ""  # of the last try; empty after a good one
        self._state_file = folder.path / TRACKING
        self._client: Any = None
        self._run_id = ""
        self._sent_step = -1  # MLflow has the records up to this one
        self._warned = False
        self._status = ""  # how the run ended; empty while it goes on
        self._news = threading.Event()
        self._given_up = False
        self._thread: threading.Thread | None = None

    def start(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        """Make MLflow's run, or take up the one of an earlier start, and send what it lacks."""
        import mlflow  # noqa: F401 - 1.5 s, here: a loader that forks meanwhile could hang

        self._config, self._labels = config, labels
        self._run_id = self._known().get("run_id", "")
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

        It waits while that is under way, half a minute at most.

        Args:
            status: `FINISHED`, `FAILED` or `KILLED`.
        """
        assert self._thread is not None, "start comes first"
        self._status = status
        self._news.set()
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._given_up = True  # it ends after the call that it waits for
            self.error = f"no answer in {_PATIENCE:.0f} s"
            self._warn()

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
            client, experiment_id = self._open_experiment()
            if self._run_id and _has_run(client, self._run_id):
                client.update_run(self._run_id, status="RUNNING")
            else:
                run = client.create_run(
                    experiment_id,
                    run_name=self.folder.path.name,
                    tags={"sweep": self.sweep, "folder": str(self.folder.path), **self._labels},
                )
                self._run_id = run.info.run_id
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

        # They tell of every table, every try, and with a traceback of what is raised anyway.
        for library in ("mlflow", "urllib3"):
            logging.getLogger(library).setLevel(logging.CRITICAL)
        # The client makes the database, and two processes that make one at once break it for good.
        with self._creation_lock():
            client = MlflowClient(tracking_uri=self.tracking_uri)
            found = client.get_experiment_by_name(self.experiment)
            if found:
                return client, found.experiment_id
            return client, client.create_experiment(self.experiment, self._artifact_location())

    def _known(self) -> dict[str, Any]:
        """Return which MLflow run mirrors this folder, and how far it is; empty if none does."""
        if not self._state_file.exists():
            return {}
        state: dict[str, Any] = json.loads(self._state_file.read_text())
        if state["tracking_uri"] != self.tracking_uri or not state["run_id"]:
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
            "run_id": self._run_id,
            "ended": ended,
        }
        write_atomically(self._state_file, json.dumps(state))

    def _creation_lock(self) -> contextlib.AbstractContextManager[Any]:
        if self._database is None:
            return contextlib.nullcontext()
        self._database.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self._database}.lock")

    def _artifact_location(self) -> str | None:
        # Beside the database, instead of in the current folder.
        if self._database is None:
            return None
        return (self._database.parent / "mlflow_artifacts").as_uri()

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
        result = self.folder.result()
        if result:
            _log_result(self._client, self._run_id, result)
        for name in ("config.json", "environment.json", "records.jsonl", "result.json"):
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
    except sqlite3.Error:  # no such table yet, or a scheme of another day
        return False
    return found is not None


def _has_run(client: Any, run_id: str) -> bool:
    """Whether the server knows the run; one that was reset does not."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _name(name: str) -> str:
    """Replace what MLflow's names must not hold."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _metrics(record: Mapping[str, Any]) -> list[Any]:
    """The numbers of one evaluation record as MLflow's metrics at that step."""
    from mlflow.entities import Metric

    numbers = {
        **record["losses"],
        **{key: record[key] for key in ("epoch", "learning_rate", "seconds_per_step")},
        **{key: record[key] for key in ("train_accuracy", "validation_accuracy")},
    }
    numbers |= {f"diagnostics/{k}": v for k, v in record.get("diagnostics", {}).items()}
    for domain, parts in record["accuracy"].items():
        for part, value in parts.items():
            numbers[f"accuracy/{domain}/{part}"] = value
    written = int(1000 * record.get("time", time.time()))
    return [
        Metric(_name(name), float(value), written, record["step"])
        for name, value in numbers.items()
        if value is not None
    ]


def _log_result(client: Any, run_id: str, result: Mapping[str, Any]) -> None:
    """The figures of the selected checkpoint, under names of their own."""
    from mlflow.entities import Metric, RunTag

    if result["status"] == "failed":
        client.log_batch(run_id, tags=[RunTag(_ERROR, str(result.get("error", ""))[:5000])])
        return
    step = result["selected"]["step"]
    numbers = {f"test_accuracy/{name}": value for name, value in result["test_accuracy"].items()}
    numbers |= {f"selected/{key}": result[key] for key in ("train_accuracy", "validation_accuracy")}
    now = int(time.time() * 1000)
    metrics = [Metric(_name(k), float(v), now, step) for k, v in numbers.items() if v is not None]
    client.log_batch(run_id, metrics=metrics)
