"""Weights & Biases as a mirror of the run folder: a server, or files to be sent later."""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from fishr_exp.core.errors import ConfigError
from fishr_exp.core.files import expanded
from fishr_exp.core.secrets import bare
from fishr_exp.runs.content import integer, read_object, take
from fishr_exp.runs.files import to_json, write_atomically
from fishr_exp.runs.identity import is_bookkeeping
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.failures import is_away, is_refused
from fishr_exp.tracking.mirror import End, Mirror, Point

_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_NOTE = "fishr-exp.json"  # beside the file of a process: the last step in it
_TAG = 64  # the limit of a tag, characters
_ENDS = {"FINISHED": 0, "FAILED": 1, "KILLED": 130}  # the exit status by which a run is marked
_PATIENCE = 20.0  # seconds to wait for an answer
_RETRIES = 2
# Nothing is printed; nothing is told of the machine, its use, or the code beside the command.
_QUIET: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "init_timeout": _PATIENCE,
    "finish_timeout": 3 * _PATIENCE,
    "finish_timeout_raises": True,
    "x_graphql_retry_max": _RETRIES,
    "x_graphql_timeout_seconds": _PATIENCE,
    "x_file_stream_retry_max": _RETRIES,
    "x_file_stream_timeout_seconds": _PATIENCE,
    "x_file_transfer_retry_max": _RETRIES,
    "x_file_transfer_timeout_seconds": _PATIENCE,
}


def quiet_wandb() -> None:
    """Let Weights & Biases print nothing and report no errors of its own, in all of this process.

    For commands, which own their process: it sets environment variables, unless they are set.
    """
    for name, value in (("WANDB_ERROR_REPORTING", "false"), ("WANDB_SILENT", "true")):
        os.environ.setdefault(name, value)


class NoKeyError(Exception):
    """No key of the server is known."""


class WandbMirror(Mirror):
    """Send a run folder's settings, records and result to Weights & Biases.

    A run has the same id wherever and whenever it is sent, so it is taken up again. Offline, each
    process that resumes a run begins a folder `wandb/offline-run-TIME-ID`, with the steps
    that the others lack; `wandb sync` sends them all to one run.

    Args:
        folder: The run folder.
        project: Its name for a group of runs.
        entity: The user or team; None: that of the key.
        mode: `online`, or `offline`, which only writes files.
        directory: The folder in which it makes its folder `wandb`.
        sweep: What the runs of a sweep share: their group.

    Raises:
        ConfigError: If its package is not installed, or `directory` is a file.
    """

    name: ClassVar[str] = "Weights & Biases"

    def __init__(
        self,
        folder: RunFolder,
        project: str,
        entity: str | None,
        mode: Literal["online", "offline"],
        directory: str,
        sweep: str,
    ) -> None:
        if find_spec("wandb") is None:
            raise ConfigError("tracker", "wandb", "is not installed", "pip install wandb")
        place = expanded(directory).absolute()
        if place.exists() and not place.is_dir():
            hint = "name a folder for its files"
            raise ConfigError("tracker.directory", directory, "is not a folder", hint)
        self.server = os.environ.get("WANDB_BASE_URL") or ""  # else its package's own
        base = str(place / "wandb") if mode == "offline" else bare(self.server).rstrip("/")
        super().__init__(
            folder, "/".join(filter(None, (base or "wandb:/", entity, project))),
            project=project, entity=entity, mode=mode, directory=str(place), sweep=sweep,
        )  # fmt: skip
        self.project, self.entity, self.mode = project, entity, mode
        self.directory, self.sweep = place, sweep
        self._run: Any = None
        self._last = -1

    def load(self) -> None:
        """Import its package."""
        import wandb  # noqa: F401

    def connect(self) -> None:
        """Take up the run of this identity, or make it: its package does this in one step.

        Raises:
            NoKeyError: Instead of asking for a key, which would stop the run.
        """
        import wandb

        known = wandb.setup().settings
        server = self.server or known.base_url
        if self.mode == "online" and not known.api_key and not _knows_key(server):
            raise NoKeyError(f"no key of {server} is known")
        self._close(_ENDS["KILLED"])
        logging.getLogger("wandb").setLevel(logging.CRITICAL)
        self.directory.mkdir(parents=True, exist_ok=True)
        tags = [f"{k}:{value}"[:_TAG] for k, value in self.labels.items()]
        settings = wandb.Settings(mode=self.mode, base_url=server, **_QUIET)
        try:
            self._run = wandb.init(
                project=self.project, entity=self.entity, id=self.identity, resume="allow",
                name=self.folder.path.name, group=self.sweep, tags=tags, dir=str(self.directory),
                reinit="create_new", settings=settings,
            )  # fmt: skip
        except Exception:
            if wandb.run is None:  # else it takes the id for one in use, in all of this process
                wandb.teardown()
            raise
        self._last = int(self._run.starting_step) - 1

    def open_run(self) -> str:
        """Return the id of the run, which `connect` has opened."""
        return self.identity

    def send_settings(self, settings: Mapping[str, Any]) -> None:
        """Send the settings as its config, bookkeeping ones under `bookkeeping`."""
        asked = [str(tag)[:_TAG] for tag in settings.get("tags") or ()]
        self._run.tags = (*dict.fromkeys([*(self._run.tags or ()), *asked]),)
        own = {key: value for key, value in settings.items() if not is_bookkeeping(key)}
        bookkeeping = {key: value for key, value in settings.items() if is_bookkeeping(key)}
        about = {"sweep": self.sweep, "folder": str(self.folder.path), "started": self.started}
        self._run.config.update({**own, **about, "bookkeeping": bookkeeping}, allow_val_change=True)

    def last_step(self) -> int:
        """Return the last step that the server has, or that is in a file."""
        notes = (self.directory / "wandb").glob(f"offline-run-*-{self.identity}/{_NOTE}")
        for note in notes if self.mode == "offline" else ():
            with contextlib.suppress(ValueError):
                self._last = max(self._last, take(read_object(note), "step", integer))
        return self._last

    def send_records(self, points: Sequence[Point]) -> None:
        """Send records as its history, each at its step and time."""
        for point in points:
            self._run.log({**point.numbers, "_timestamp": point.time}, step=point.step)
            self._last = point.step
        if self.mode == "offline":
            note = Path(self._run.dir).parent / _NOTE
            write_atomically(note, to_json({"step": self._last, "run": str(self.folder.path)}))

    def send_end(self, end: End) -> None:
        """Send the result as its summary, and the files; mark how the run ended."""
        about: dict[str, Any] = {"status": end.status}
        about |= {"error": end.error} if end.error is not None else {}
        if end.result:
            about |= {**end.result.numbers, "selected/step": end.result.step}
        self._run.summary.update(about)
        for path in end.files:
            (Path(self._run.dir) / path.name).write_bytes(path.read_bytes())
            self._run.save(str(Path(self._run.dir) / path.name), base_path=self._run.dir)
        self._close(_ENDS[end.status])

    def advice(self, error: Exception) -> str:
        """Say how to give it a key, and that a server may come back."""
        if isinstance(error, NoKeyError) or is_refused(error):
            return (
                "set WANDB_API_KEY or call `wandb login`, then fishr-sync sends them; or pass "
                "tracker.mode=offline"
            )
        if is_away(error):
            return super().advice(error)
        return "once this is fixed, fishr-sync, or the same command given again, sends them"

    def announcement(self) -> str:
        """Say where people find the runs."""
        if self.mode == "offline":
            return f"for Weights & Biases: wandb sync {self.directory / 'wandb'}/offline-run-*"
        return f"Weights & Biases shows the runs at {self.address}"

    def _close(self, status: int) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=status)


def _knows_key(server: str) -> bool:
    """Whether there is a key in the environment, or in the file that `wandb login` writes."""
    if any(os.environ.get(name) for name in _KEYS):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(urlsplit(server).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
