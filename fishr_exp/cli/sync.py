"""The command `fishr-sync`: send what their trackers lack of the runs under a folder."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fishr_exp.cli.output import Parser, as_folder, command
from fishr_exp.configuration.binding import part
from fishr_exp.configuration.permissions import allowed_targets, permissions_of
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.secrets import remember
from fishr_exp.runs.content import START_AGAIN, UnreadableError
from fishr_exp.runs.identity import TARGET, id_of
from fishr_exp.runs.reading import run_folders
from fishr_exp.runs.run_folder import TRACKING, RunFolder
from fishr_exp.tracking.address import KEY, check_address
from fishr_exp.tracking.mirror import Mirror, unreachable
from fishr_exp.tracking.mlflow import quiet_mlflow
from fishr_exp.tracking.state import State
from fishr_exp.tracking.wandb import quiet_wandb

log = logging.getLogger(__name__)

STATUS = {"done": "FINISHED", "failed": "FAILED", "running": "KILLED"}
PATIENCE = 600.0  # seconds for one run; a slow server takes a while for a long one
MLFLOW = "fishr_exp.tracking.mlflow.MlflowMirror"  # what --tracking-uri is an address of


@dataclass(frozen=True)
class To:
    """Where to send, instead of each run's own tracker; None: there.

    Attributes:
        tracking_uri: An address of MLflow.
        experiment: The experiment there.
        allowed: Packages, modules or names besides ours that may be built.
    """

    tracking_uri: str | None = None
    experiment: str | None = None
    allowed: tuple[str, ...] = ()


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 where something could not be sent, 2 for a mistake."""
    parser = Parser(
        prog="fishr-sync",
        description="Send to their trackers what they lack of the runs under DIR, each record once"
        " and in order. A run that is still training sends its own.",
    )
    add = parser.add_argument
    add("dir", type=as_folder, metavar="DIR", help="a folder of runs, or one run")
    add("--tracking-uri", help="of MLflow, instead of each run's own; also for tracker=none")
    add("--experiment", help="instead of each run's own")
    parser.add_allow_targets("of trackers ")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_mlflow()
    quiet_wandb()
    if not options.dir.is_dir():
        sys.stderr.write(f"fishr-sync: {options.dir} is not a folder; pass a folder of runs\n")
        return 2
    try:
        if options.tracking_uri is not None:
            remember(options.tracking_uri)
            check_address(options.tracking_uri)
    except ConfigError as error:
        text = str(error).replace(f"{KEY}=", "--tracking-uri ")
        sys.stderr.write(f"fishr-sync: {text}\n")
        return 2
    folders = run_folders(options.dir)
    with permissions_of(names=options.allow_targets):
        to = To(options.tracking_uri, options.experiment, tuple(allowed_targets()))
        counts = Counter(send(RunFolder(path), to) for path in folders)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "none"
    sys.stdout.write(f"{len(folders)} runs under {options.dir}: {outcomes}\n")
    return int(counts["not sent"] > 0)


def send(folder: RunFolder, to: To) -> str:
    """Send what its trackers lack of one run; return the outcome in a few words."""
    try:
        with folder:
            folder.acquire()
            return _send(folder, to)
    except ValueError as error:  # as are ConfigError and a file that is not JSON
        if "another process" in str(error):
            return "running"
        return _not_sent(folder, error)


def _not_sent(folder: RunFolder, error: Exception) -> str:
    if isinstance(error, UnreadableError):
        hint = error.hint if TRACKING in error.allowed else START_AGAIN
        log.error("fishr-sync: %s: %s; %s", folder.path, error.allowed, hint)
    else:
        log.error("fishr-sync: %s: %s", folder.path, error)
    return "not sent"


def _send(folder: RunFolder, to: To) -> str:
    states = State.read_all(folder.path)
    trackers = _trackers(states, folder, to)
    if not trackers:
        return "without a tracker (pass --tracking-uri)"
    result = folder.result_of_done() if folder.state == "done" else folder.result() or {}
    labels = next((state.labels for state in states if state.labels), result.get("labels", {}))
    is_own = to.tracking_uri is None
    kept = [s for s in states if s.tracker and (is_own or not _is_mlflow(s.tracker))]
    outcomes = set()
    addresses = [state.address for state in kept]
    for number, tracker in enumerate(trackers):
        try:
            mirror = _mirror(tracker, folder, to.allowed)
        except (ValueError, ImportError) as error:  # a tracker may need a library
            outcomes.add(_not_sent(folder, error))
            continue
        addresses[number : number + is_own] = [mirror.address]  # it may have moved with the folder
        mirror.among = addresses if len(addresses) > 1 else ()
        outcomes.add(_brought_up_to_date(mirror, folder, labels, is_own=is_own))
    return next(known for known in ("not sent", "sent", "complete already") if known in outcomes)


def _brought_up_to_date(
    mirror: Mirror, folder: RunFolder, labels: Mapping[str, str], *, is_own: bool
) -> str:
    """Send what one tracker lacks of a run; return the outcome."""
    status = STATUS[folder.state]
    if not mirror.lacks(status):
        return "complete already"
    if mirror.address in unreachable:
        return "not sent"
    mirror.patience, mirror.is_own = PATIENCE, is_own
    mirror.start(folder.config(), labels)
    mirror.finish(status)
    return "not sent" if mirror.error else "sent"


def _trackers(states: Sequence[State], folder: RunFolder, to: To) -> list[Mapping[str, Any]]:
    """Return the configurations of the trackers to send to; none if there are none."""
    trackers = [dict(state.tracker) for state in states if state.tracker]
    if to.tracking_uri is not None:
        before = next(filter(_is_mlflow, trackers), {})
        mlflow = {
            TARGET: MLFLOW,
            "tracking_uri": to.tracking_uri,
            "experiment": before.get("experiment", "fishr-exp"),
            "sweep": before.get("sweep", folder.path.parent.name),
        }
        trackers = [mlflow]
    for tracker in trackers if to.experiment else ():
        if _is_mlflow(tracker) or "experiment" in tracker:
            tracker["experiment"] = to.experiment
    return trackers  # type: ignore[return-value]


def _is_mlflow(tracker: Mapping[str, Any]) -> bool:
    return id_of(str(tracker.get(TARGET))) == id_of(MLFLOW)


def _mirror(tracker: Mapping[str, Any], folder: RunFolder, allowed: Sequence[str]) -> Mirror:
    """Build a mirror; the folder may come from somebody else, so nothing else is built.

    Raises:
        ConfigError: If the tracker is unknown, is not a `Mirror`, or has other keywords.
    """
    key = f"tracker.{TARGET}"
    try:
        build = part(tracker, "tracker", allowed)
    except ConfigError as error:
        if error.key != key:
            error.hint = error.hint or "remove tracking.json, and pass --tracking-uri URI"
            raise
        hint = error.hint
        if "allow_targets=" in hint:
            hint = "pass --allow-targets PACKAGE if you trust it"
        if error.__cause__ is not None:  # it could not be imported
            hint = "install it, or put its folder on PYTHONPATH"
        reason = f"the tracker of this run cannot be synced: {error.allowed}"
        raise ConfigError(key, error.value, reason, hint) from error
    made_by = build.func if isinstance(build, functools.partial) else None
    if build is None or not (inspect.isclass(made_by) and issubclass(made_by, Mirror)):
        reason = "the tracker of this run cannot be synced: it is not a Mirror"
        hint = "derive it from fishr_exp.tracking.mirror.Mirror"
        raise ConfigError(key, tracker[TARGET], reason, hint)
    mirror: Mirror = build(folder)
    return mirror


if __name__ == "__main__":
    sys.exit(main())
