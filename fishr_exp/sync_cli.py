"""The command `fishr-sync`: send what MLflow lacks of the runs under a folder."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fishr_exp.results.run_folder import CONFIG, RECORDS, TRACKING, RunFolder
from fishr_exp.tracking.mlflow_mirror import MlflowMirror, unreachable

log = logging.getLogger(__name__)

STATUS = {"done": "FINISHED", "failed": "FAILED", "running": "KILLED"}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 where something could not be sent, 2 for a mistake."""
    parser = argparse.ArgumentParser(
        prog="fishr-sync",
        description="Send to MLflow what it lacks of the runs under DIR, each record once and in"
        " order. A run that is going on sends its own.",
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="a folder of runs, or one run")
    parser.add_argument("--tracking-uri", help="instead of each run's own; also for tracker=none")
    parser.add_argument("--experiment", help="instead of each run's own")
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not options.dir.is_dir():
        sys.stderr.write(f"fishr-sync: {options.dir} is no folder; pass a folder of runs\n")
        return 2
    tree = os.walk(options.dir)
    # A tracker keeps copies of what a run came to, without its records.
    folders = [Path(path) for path, _, files in tree if {CONFIG, RECORDS} <= {*files}]
    uri, experiment = options.tracking_uri, options.experiment
    counts = Counter(send(RunFolder(path), uri, experiment) for path in sorted(folders))
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "none"
    sys.stdout.write(f"{len(folders)} runs under {options.dir}: {said}\n")
    return int(counts["not sent"] > 0)


def send(folder: RunFolder, tracking_uri: str | None, experiment: str | None) -> str:
    """Send what MLflow lacks of one run; return in a few words what became of it."""
    try:
        with folder:
            folder.acquire()
            return _send(folder, tracking_uri, experiment)
    except ValueError as error:  # ConfigError is one; a file that is no JSON is another
        if "another process" in str(error):
            return "running"
        log.error("fishr-sync: %s: %s", folder.path, error)
        return "not sent"


def _send(folder: RunFolder, tracking_uri: str | None, experiment: str | None) -> str:
    known = _known(folder)
    uri = tracking_uri or known.get("tracking_uri")
    if uri is None:
        return "without a tracker (pass --tracking-uri)"
    result = folder.result() or {}
    mirror = MlflowMirror(
        folder,
        uri,
        experiment or known.get("experiment", "fishr-exp"),
        known.get("sweep", folder.path.parent.name),
    )
    status = STATUS[folder.state]
    if not mirror.lacks(status):
        return "complete already"
    if mirror.tracking_uri in unreachable:
        return "not sent"
    mirror.patience = None
    config = json.loads((folder.path / CONFIG).read_text())
    mirror.start(config, known.get("labels") or result.get("labels", {}))
    mirror.finish(status)
    return "not sent" if mirror.error else "sent"


def _known(folder: RunFolder) -> dict[str, Any]:
    path = folder.path / TRACKING
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
