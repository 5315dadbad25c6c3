"""TensorBoard as a mirror of the run folder: event files in a folder of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from fishr_exp.core.errors import ConfigError
from fishr_exp.core.files import expanded
from fishr_exp.runs.content import read_object
from fishr_exp.runs.files import to_json, write_atomically
from fishr_exp.runs.identity import TARGET, is_bookkeeping
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.mirror import End, Mirror, Point
from fishr_exp.tracking.places import place_of_run

_MARKER = "run.json"  # which run has the folder, and how it ended; TensorBoard does not read it
_OF_ALL = "epoch"  # a number that every record has
# What that page knows of how a run ended; a killed one may resume, and its first word is kept.
_ENDS = {"FINISHED": "STATUS_SUCCESS", "FAILED": "STATUS_FAILURE"}


class TensorBoardMirror(Mirror):
    """Write a run's numbers to event files in DIRECTORY/RUN.

    The numbers are scalars, at the step and the time of their records. The settings that decide
    what the run computes are hyperparameters, and all settings are a table on the page TEXT. A
    process that resumes a run begins a file of its own, with the steps that the others lack.

    Args:
        folder: The run folder.
        directory: The folder of all runs, which is TensorBoard's `--logdir`.
        sweep: What the runs of a sweep share; a hyperparameter, to filter by.

    Raises:
        ConfigError: If TensorBoard is not installed, or `directory` is a file.
    """

    name: ClassVar[str] = "TensorBoard"

    def __init__(self, folder: RunFolder, directory: str, sweep: str) -> None:
        if find_spec("tensorboard") is None:
            hint = "pip install tensorboard"
            raise ConfigError("tracker", "tensorboard", "is not installed", hint)
        place = expanded(directory).absolute()
        if place.exists() and not place.is_dir():
            hint = "name a folder for the event files"
            raise ConfigError("tracker.directory", directory, "is not a folder", hint)
        super().__init__(folder, str(place), directory=str(place), sweep=sweep)
        self.directory = place
        self.sweep = sweep
        self._writer: Any = None
        self._there: set[tuple[str, int]] = set()  # the tags that have been written, by step

    def holds_run(self, run_id: str) -> bool:
        """Whether the folder of the run has event files."""
        return any((self.directory / run_id).glob("*tfevents*"))

    def load(self) -> None:
        """Import what writes event files."""
        import torch.utils.tensorboard  # noqa: F401

    def connect(self) -> None:
        """There is nothing to reach; close what was open."""
        if self._writer is not None:
            with contextlib.suppress(Exception):  # it may be why this begins again
                self._writer.close()
            self._writer = None

    def open_run(self) -> str:
        """Take the run's own folder; another run may have its name."""
        known = place_of_run(
            self.folder,
            self.identity,
            lambda name: self.directory / name / _MARKER,
            lambda name: any((self.directory / name).glob("*")),
            self.run_id,
        )
        self._there = {*_written(self.directory / known)}
        return known

    def send_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings as hyperparameters and as a table; once, of a run that resumes."""
        if any(tag.startswith("_hparams_") for tag, _ in self._there):
            return
        from torch.utils.tensorboard.summary import hparams

        # Without a description of them all, TensorBoard shows first those in which runs differ.
        shown = {k: value for k, value in settings.items() if not is_bookkeeping(k)}
        given = {
            key: value if isinstance(value, bool | int | float) else _as_text(value)
            for key, value in {**shown, "sweep": self.sweep}.items()
            if value is not None and key.rpartition(".")[2] != TARGET
        }
        _, begun, _ = hparams(given, {})
        self._files().add_summary(begun)
        named = {"folder": self.folder.path, "sweep": self.sweep, **settings}
        rows = [f"| {key} | {_as_text(v).replace('|', '&#124;')} |" for key, v in named.items()]
        text = "\n".join(["| setting | value |", "|---|---|", *rows])
        self._open().add_text("settings", text, 0, walltime=self.started)
        self._writer.flush()

    def last_step(self) -> int:
        """Return the last step of a number that every record has."""
        return max((step for tag, step in self._there if tag == _OF_ALL), default=-1)

    def send_records(self, points: Sequence[Point]) -> None:
        """Write records as scalars."""
        for point in points:
            self._write(point)
        self._open().flush()

    def send_end(self, end: End) -> None:
        """Write the result as scalars, or the error as text, and how the run ended."""
        if end.result:
            self._write(end.result)
        if end.error is not None:
            self._open().add_text("error", end.error, 0, walltime=end.time)
        if end.status in _ENDS:
            self._files().add_summary(_ended(_ENDS[end.status], end.time))
        self._open().close()
        self._writer = None
        marker = self.directory / self.run_id / _MARKER
        about = {**read_object(marker), "status": end.status, "sweep": self.sweep}
        write_atomically(marker, to_json(about) + "\n")

    def announcement(self) -> str:
        """Say how to look at them."""
        return f"TensorBoard shows the runs: tensorboard --logdir {self.address}"

    def _open(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory / self.run_id))
        return self._writer

    def _files(self) -> Any:
        return self._open().file_writer

    def _write(self, point: Point) -> None:
        missing = {k: v for k, v in point.numbers.items() if (k, point.step) not in self._there}
        for name, value in missing.items():  # a kill may have cut a record in two
            self._open().add_scalar(name, value, point.step, walltime=point.time)
            self._there.add((name, point.step))


def _as_text(value: object) -> str:
    """Write a setting for people: null, true, and lists without quotes."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_as_text, value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _written(folder: Path) -> Iterator[tuple[str, int]]:
    """Give what the event files of a run hold: tags, and their steps."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for path in sorted(folder.glob("*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                yield value.tag, event.step


def _ended(status: str, time: float) -> Any:
    """Return what says on the page of hyperparameters that a run ended.

    Args:
        status: A word of TensorBoard's.
        time: When, in seconds.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.metadata import PLUGIN_DATA_VERSION, PLUGIN_NAME
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    info = SessionEndInfo(status=Status.Value(status), end_time_secs=time)
    content = HParamsPluginData(session_end_info=info, version=PLUGIN_DATA_VERSION)
    plugin = SummaryMetadata.PluginData(
        plugin_name=PLUGIN_NAME, content=content.SerializeToString()
    )
    metadata = SummaryMetadata(plugin_data=plugin)
    return Summary(value=[Summary.Value(tag="_hparams_/session_end_info", metadata=metadata)])
