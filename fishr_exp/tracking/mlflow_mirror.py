"""MLflow as a mirror of the run folder: it is sent what the folder holds and it lacks."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from fishr_exp.results.run_folder import TRACKING, RunFolder, write_atomically

log = logging.getLogger(__name__)

# MLflow's own defaults block an unreachable server's user for minutes, and report usage.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

_PARAMETER_LENGTH = 6000  # MLflow's limit, characters


class MlflowMirror:
    """Send a run folder's configuration, records and result to MLflow.

    The folder is the truth. When MLflow fails, one warning is logged, the run goes on, and the
    next call of `finish` sends all that is missing.

    Args:
        folder: The run folder.
        tracking_uri: Any tracking URI of MLflow, e.g. `sqlite:///outputs/mlflow.db`.
        experiment: MLflow's name for a group of runs; it is made when missing.
        sweep: The value of the tag `sweep`, which the runs of a sweep share. Runs are not nested:
            MLflow's charts hide nested ones.
    """

    def __init__(self, folder: RunFolder, tracking_uri: str, experiment: str, sweep: str) -> None:
        self.folder = folder
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.sweep = sweep
        self._state_file = folder.path / TRACKING  # which run, how many records it has
        self._down = False

    def start(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        """Make MLflow's run, or find the one of an earlier start, and send what is there."""
        self._config, self._labels = config, labels
        self._guarded(self._send_records)

    def sync(self) -> None:
        """Send the records that MLflow lacks; does nothing after a failure."""
        if not self._down:
            self._guarded(self._send_records)

    def finish(self, status: str) -> None:
        """Send all that is missing, the artifacts, and how the run ended.

        Args:
            status: `FINISHED`, `FAILED` or `KILLED`.
        """
        self._guarded(lambda: self._send_end(status))

    def _guarded(self, send: Callable[[], None]) -> None:
        try:
            send()
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises, the run goes on
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
            if not self._down:
                log.warning(
                    "MLflow at %s failed (%s: %.200s); the run goes on, its records are in %s",
                    self.tracking_uri,
                    type(error).__name__,
                    first_line,
                    self.folder.path,
                )
            self._down = True

    def _client(self) -> Any:
        from mlflow import MlflowClient  # 1.5 s; only a run that tracks pays

        return MlflowClient(tracking_uri=self.tracking_uri)

    def _state(self, client: Any) -> dict[str, Any]:
        """Return which MLflow run mirrors this folder and how many records it has."""
        if self._state_file.exists():
            state = json.loads(self._state_file.read_text())
            if state["tracking_uri"] == self.tracking_uri:
                return state
        with self._creation_lock():
            found = client.get_experiment_by_name(self.experiment)
            experiment_id = (
                found.experiment_id
                if found
                else client.create_experiment(self.experiment, self._artifact_location())
            )
        run = client.create_run(
            experiment_id,
            run_name=self.folder.path.name,
            tags={"sweep": self.sweep, "folder": str(self.folder.path), **self._labels},
        )
        self._send_parameters(client, run.info.run_id)
        state = {"tracking_uri": self.tracking_uri, "run_id": run.info.run_id, "sent": 0}
        self._save(state)
        return state

    def _save(self, state: dict[str, Any]) -> None:
        write_atomically(self._state_file, json.dumps(state))

    def _sqlite_file(self) -> Path | None:
        prefix = "sqlite:///"
        if not self.tracking_uri.startswith(prefix):
            return None
        return Path(self.tracking_uri.removeprefix(prefix)).absolute()

    def _creation_lock(self) -> Any:
        """Two processes that create the same SQLite database at once would break it for good."""
        database = self._sqlite_file()
        if database is None:
            return FileLock(str(self.folder.path / ".mlflow.lock"))
        database.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{database}.lock")

    def _artifact_location(self) -> str | None:
        database = self._sqlite_file()  # beside it, instead of in the current folder
        return None if database is None else (database.parent / "mlflow_artifacts").as_uri()

    def _send_parameters(self, client: Any, run_id: str) -> None:
        from mlflow.entities import Param

        flat = {**self._labels, **dict(flatten(self._config))}
        parameters = [Param(_name(k), str(v)[:_PARAMETER_LENGTH]) for k, v in flat.items()]
        for first in range(0, len(parameters), 100):  # MLflow takes 100 a call
            client.log_batch(run_id, params=parameters[first : first + 100])

    def _send_records(self) -> None:
        client = self._client()
        state = self._state(client)
        records = self.folder.records()
        for record in records[state["sent"] :]:
            client.log_batch(state["run_id"], metrics=_metrics(record))
            state["sent"] += 1
            self._save(state)

    def _send_end(self, status: str) -> None:
        self._send_records()
        client = self._client()
        state = self._state(client)
        run_id = state["run_id"]
        result = self.folder.result()
        if result:
            _log_result(client, run_id, result)
        for name in ("config.json", "environment.json", "records.jsonl", "result.json"):
            if (self.folder.path / name).exists():
                client.log_artifact(run_id, str(self.folder.path / name))
        client.set_terminated(run_id, status)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested mappings into dotted names: `trainer.gamma`."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
    for domain, parts in record["accuracy"].items():
        for part, value in parts.items():
            numbers[f"accuracy/{domain}/{part}"] = value
    now = int(time.time() * 1000)
    return [
        Metric(_name(name), float(value), now, record["step"])
        for name, value in numbers.items()
        if value is not None
    ]


def _log_result(client: Any, run_id: str, result: Mapping[str, Any]) -> None:
    """The figures of the selected checkpoint, under names of their own."""
    from mlflow.entities import Metric, RunTag

    if result["status"] == "failed":
        client.log_batch(run_id, tags=[RunTag("error", str(result.get("error", ""))[:5000])])
        return
    step = result["selected"]["step"]
    numbers = {f"test_accuracy/{name}": value for name, value in result["test_accuracy"].items()}
    numbers |= {f"selected/{key}": result[key] for key in ("train_accuracy", "validation_accuracy")}
    now = int(time.time() * 1000)
    metrics = [Metric(_name(k), float(v), now, step) for k, v in numbers.items() if v is not None]
    client.log_batch(run_id, metrics=metrics)
