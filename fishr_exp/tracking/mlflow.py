"""MLflow as a mirror of the run folder: a SQLite file, another database, or a server."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from fishr_exp.core.errors import ConfigError
from fishr_exp.core.secrets import bare, remember
from fishr_exp.runs.identity import is_bookkeeping
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking import database
from fishr_exp.tracking.address import (
    SQLITE,
    check_address,
    check_place,
    sqlite_file,
    warn_of_password,
)
from fishr_exp.tracking.database import BUSY, BusyDatabaseError, UnusableDatabaseError
from fishr_exp.tracking.failures import is_away, is_refused
from fishr_exp.tracking.mirror import End, Mirror, Point
from fishr_exp.tracking.mlflow_objects import (
    MODEL,
    TAG_LENGTH,
    Tables,
    log_domains,
    log_model,
    metrics_of,
    milliseconds,
    saved_model,
    tags_of_origin,
    valid_name,
)

log = logging.getLogger(__name__)

# MLflow's own defaults block an unreachable server's user for minutes, report usage, and print.
_FOR_COMMANDS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
_PARAMETERS = 100  # MLflow's limit per call
_PARAMETER_LENGTH = 6000  # MLflow's limit, characters
_METRICS = 1000  # MLflow's limit per call
_ERROR = "error"  # the tag of a failed run
_IDENTITY = "mirror"  # the tag by which a folder's run is found again, on any server

_quiet = False  # set by `quiet_mlflow`


def quiet_mlflow() -> None:
    """Let MLflow give up early, say nothing, and report nothing, in all of this process.

    For commands, which own their process: it sets environment variables, where the user has not
    set them, and from the first connection on the levels of the loggers of MLflow and urllib3.
    """
    global _quiet
    _quiet = True
    for name, value in _FOR_COMMANDS.items():
        os.environ.setdefault(name, value)


class MlflowMirror(Mirror):
    """Send a run folder's configuration, records and result to MLflow.

    Nothing is sent twice: after a failure the server is asked what it has, the run has a tag by
    which it is found, and a record has the time at which it was written, by which MLflow
    recognizes it.

    Args:
        folder: The run folder.
        tracking_uri: Any tracking URI of MLflow, e.g. `sqlite:///outputs/mlflow.db`. A SQLite file
            may be busy with other runs, so the mirror's patience is longer there. A password in it
            is used, and not recorded.
        experiment: MLflow's name for a group of runs; it is made when missing.
        sweep: The value of the tag `sweep`, which the runs of a sweep share. Runs are not nested:
            MLflow's charts hide nested ones.
        log_model: Whether the network of the result is sent, too, as a model that MLflow can load
            where this package is not installed.
        system_metrics: Whether the use of processor, memory, disk, network and GPU is sent while
            the run lasts, every ten seconds.

    Raises:
        ConfigError: If the address cannot be MLflow's, or `system_metrics` lacks psutil.
    """

    name: ClassVar[str] = "MLflow"

    def __init__(
        self,
        folder: RunFolder,
        tracking_uri: str,
        experiment: str,
        sweep: str,
        log_model: bool = False,
        system_metrics: bool = False,
    ) -> None:
        check_address(tracking_uri)
        if system_metrics and find_spec("psutil") is None:
            hint = "pip install psutil"
            raise ConfigError("tracker.system_metrics", True, "needs the package psutil", hint)
        self._database = sqlite_file(tracking_uri)
        _, mark, query = tracking_uri.partition("?")
        self._uri = f"{SQLITE}{self._database}{mark}{query}" if self._database else tracking_uri
        uri = bare(self._uri)
        remember(self._uri)
        warn_of_password(self._uri)
        asked = {"log_model": log_model, "system_metrics": system_metrics}
        more = {key: True for key, value in asked.items() if value}
        super().__init__(folder, uri, tracking_uri=uri, experiment=experiment, sweep=sweep, **more)
        self.log_model, self.system_metrics = log_model, system_metrics
        self.experiment = experiment
        self.sweep = sweep
        # Where files of a database go, instead of the current folder; servers have their own.
        self._home = None if uri.startswith("http") else folder.path.parent.absolute()
        if self._database:
            self._home, self.patience = self._database.parent, BUSY
        self._client: Any = None
        self._experiment_id = ""
        self._deleted = False  # the experiment, which can be restored
        self._model: tempfile.TemporaryDirectory[str] | None = None  # the saved network
        self._monitor: Any = None  # MLflow's, of the system

    def holds_run(self, run_id: str) -> bool:
        """Whether a SQLite file has the run; of servers it is taken for granted."""
        return self._database is None or database.holds_run(self._database, run_id)

    def lacks(self, status: str) -> bool:
        """Whether MLflow lacks anything; the network, too, if it was not asked for before."""
        unasked = self.log_model and not self._known().tracker.get("log_model")
        return super().lacks(status) or (unasked and status == "FINISHED")

    def load(self) -> None:
        """Import MLflow, which takes 1.5 s."""
        import mlflow  # noqa: F401

    def before_end(self, status: str) -> None:
        """Save the network of the result, if it is to be sent; building it uses PyTorch's state."""
        build = type(self).model_of
        if self.log_model and status == "FINISHED" and build is not None:
            self._model = saved_model(self.folder, build)

    def connect(self) -> None:
        """Reach the server; find the experiment, or make it."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        if _quiet:  # not before: importing MLflow sets its level
            # They log every table and every retry, and a traceback of what is raised anyway.
            for library in ("mlflow", "urllib3"):
                logging.getLogger(library).setLevel(logging.CRITICAL)
        # The client makes the tables, and two processes that make them at once spoil them for good.
        with self._creation_lock():
            if self._database:
                database.prepare(self._database, Tables(str(self._artifact_location())))
            client = MlflowClient(tracking_uri=self._uri)
            found: Any = client.get_experiment_by_name(self.experiment)
            if found is None:
                try:
                    client.create_experiment(self.experiment, self._artifact_location())
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another was faster
                        raise
                found = client.get_experiment_by_name(self.experiment)
            if found is None or not found.experiment_id:
                raise ValueError("what answers there is not a server of MLflow")
            self._client, self._experiment_id = client, found.experiment_id
            self._deleted = found.lifecycle_stage == "deleted"

    def open_run(self) -> str:
        """Find MLflow's run of this folder, or make it."""
        if self._deleted:
            raise DeletedExperimentError(self.experiment, self._experiment_id)
        self._find_run(self._client)
        if self.run_id:
            self._client.update_run(self.run_id, status="RUNNING")
            return self.run_id
        tags = {"sweep": self.sweep, "folder": str(self.folder.path), **self.labels}
        tags |= tags_of_origin(self.folder.path)
        made = self._client.create_run(
            self._experiment_id,
            start_time=milliseconds(self.started),
            run_name=self.folder.path.name,
            tags={**tags, _IDENTITY: self.identity},
        )
        return str(made.info.run_id)

    def send_settings(self, settings: Mapping[str, Any]) -> None:
        """Send the settings as parameters, bookkeeping ones as tags.

        The mark of an earlier failure is removed.
        """
        from mlflow.entities import Param, RunTag

        there = self._client.get_run(self.run_id).data
        if _ERROR in there.tags:
            self._client.delete_tag(self.run_id, _ERROR)
        kept = {key: value for key, value in settings.items() if is_bookkeeping(key)}
        kept["tags"] = ", ".join(map(str, kept.get("tags") or ())) or None
        known = {valid_name(k): str(v)[:TAG_LENGTH] for k, v in kept.items() if v is not None}
        tags = [RunTag(key, value) for key, value in known.items()]
        self._client.log_batch(self.run_id, tags=tags)
        named = {valid_name(key): str(settings[key]) for key in settings if key not in kept}
        missing = [
            Param(key, value[:_PARAMETER_LENGTH])
            for key, value in named.items()
            if key not in there.params
        ]
        for first in range(0, len(missing), _PARAMETERS):
            self._client.log_batch(self.run_id, params=missing[first : first + _PARAMETERS])
        dataset = self.labels.get("dataset", "dataset")
        log_domains(self._client, self.run_id, self.folder, dataset)
        self._watch_system(on=not self._status)

    def last_step(self) -> int:
        """Return the last step of the metric `epoch`, which every record has."""
        history = self._client.get_metric_history(self.run_id, "epoch")
        return max((metric.step for metric in history), default=-1)

    def send_records(self, points: Sequence[Point]) -> None:
        """Send records as metrics, many in a call, each record in one."""
        waiting: list[Any] = []
        for point in points:
            own = metrics_of(point)
            if len(waiting) + len(own) > _METRICS:
                self._client.log_batch(self.run_id, metrics=waiting)
                waiting = []
            waiting += own
        self._client.log_batch(self.run_id, metrics=waiting)

    def send_end(self, end: End) -> None:
        """Send the result as metrics of their own, or the error as a tag; files as artifacts."""
        from mlflow.entities import RunTag

        self._find_run(self._client)
        if end.error is not None:
            self._client.log_batch(self.run_id, tags=[RunTag(_ERROR, end.error[:5000])])
        run, model = self._client.get_run(self.run_id), None
        check_place(self.address, run.info.artifact_uri)
        if end.result and self._model is not None:
            path = Path(self._model.name) / MODEL
            model = log_model(self._client, run, path, end.result.step)
        if end.result:
            self._client.log_batch(self.run_id, metrics=metrics_of(end.result, model))
        for path in end.files:
            self._client.log_artifact(self.run_id, str(path))
        self._watch_system(on=False)
        self._client.set_terminated(self.run_id, end.status, milliseconds(end.time))

    def is_busy(self, error: Exception) -> bool:
        """Whether a SQLite file is locked by others, who will be done in a while."""
        if self._database is None:
            return False
        return isinstance(error, BusyDatabaseError | Timeout) or "is locked" in str(error)

    def advice(self, error: Exception) -> str:
        """Say how to restore a deleted experiment; and that a server may come back."""
        if isinstance(error, UnusableDatabaseError):
            return error.advice
        if isinstance(error, DeletedExperimentError):
            return (
                f"MLFLOW_TRACKING_URI={self.address} mlflow experiments restore --experiment-id "
                f"{error.id} restores it, tracker.experiment=NAME names another one (fishr-sync "
                "--experiment NAME); then fishr-sync sends them"
            )
        if is_refused(error):
            return (
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN; then fishr-sync sends them"
            )
        if is_away(error):
            return super().advice(error)
        return "once this is fixed, fishr-sync, or the same command given again, sends them"

    def announcement(self) -> str:
        """Say where the experiment is shown; MLflow opens on another page by itself."""
        page = f"#/experiments/{self._experiment_id}?workflowType=machine_learning"
        if self.address.startswith("http"):
            return f"MLflow shows the runs at {self.address.rstrip('/')}/{page}"
        command = f"mlflow ui --backend-store-uri {self.address}"
        return f"MLflow shows the runs: {command}, then http://127.0.0.1:5000/{page}"

    def wait(self) -> None:
        """Wait as `finish` does; where that ends too early, nothing watches the system further."""
        super().wait()
        if self._given_up:
            threading.Thread(target=self._watch_system, kwargs={"on": False}, daemon=True).start()

    def _watch_system(self, *, on: bool) -> None:
        """Begin to send the use of the system, if that is asked for, or end it."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.finish()
        if on and self.system_metrics:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(
                self.run_id, resume_logging=True, tracking_uri=self._uri
            )
            self._monitor.start()

    def _find_run(self, client: Any) -> None:
        """Find MLflow's run of this folder, and remove others.

        A slow server may have been asked several times to make one.
        """
        wanted = f"tags.{_IDENTITY} = '{self.identity}'"
        found = [run.info.run_id for run in client.search_runs([self._experiment_id], wanted)]
        if self.run_id not in found:  # as where the server was reset
            self.run_id = found[-1] if found else ""  # the oldest
        for double in found:
            if double != self.run_id:
                client.delete_run(double)

    def _creation_lock(self) -> contextlib.AbstractContextManager[Any]:
        if self._home is None:
            return contextlib.nullcontext()
        self._home.mkdir(parents=True, exist_ok=True)
        place = f"{self._database}.lock" if self._database else self._home / ".mlflow.lock"
        return FileLock(place, timeout=BUSY)

    def _artifact_location(self) -> str | None:
        return (self._home / "mlflow_artifacts").as_uri() if self._home else None


class DeletedExperimentError(Exception):
    """The experiment was deleted, and can be restored."""

    def __init__(self, experiment: str, number: str) -> None:
        super().__init__(f"the experiment {experiment} was deleted")
        self.id = number
