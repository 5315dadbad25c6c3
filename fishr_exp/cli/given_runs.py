"""The runs that a command is given: run folders, or folders of runs, of which all are done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.methods import AVERAGE_OF
from fishr_exp.runs.reading import Run, read_runs
from fishr_exp.runs.run_folder import RunFolder


def read_done(folders: Sequence[Path], *, averages: bool) -> list[Run]:
    """Read runs, each once, in the order of their folders.

    Args:
        folders: Run folders, and folders of runs.
        averages: Whether averages of runs are among those wanted; otherwise they are passed over.

    Raises:
        ConfigError: If there is none, or one is not done or cannot be read.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        try:
            runs = read_runs(folder)
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            hint = "pass run folders, or the folder that they are in"
            raise ConfigError("RUN", folder, reason, hint) from error
        if not len(runs):
            raise ConfigError("RUN", folder, "is not a run folder, and holds none", "pass one")
        for path, problem in runs.broken.items():
            raise ConfigError("RUN", path, problem)
        for path in (*runs.failed, *runs.unfinished):
            if AVERAGE_OF in RunFolder(path).config():  # stopped while it was written
                continue
            reason = "failed" if path in runs.failed else "is not done"
            hint = "finish it with the command that started it, or pass the others"
            raise ConfigError("RUN", path, reason, hint)
        found |= {
            run.path.resolve(): run for run in runs.done if averages or AVERAGE_OF not in run.config
        }
    if not found:
        raise ConfigError("RUN", folders[0], "holds averages only", "pass the runs")
    return list(found.values())
