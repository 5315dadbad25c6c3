"""Several trackers of one run: each mirrors the folder, whatever happens to the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.mirror import Mirror


class Mirrors:
    """The mirrors of one run folder, called as one.

    Each has a thread, patience and failures of its own. They share `tracking.json`, and the
    identity by which they recognize the run. The patience of all begins at the same time.

    Args:
        folder: The run folder.
        build: What makes each of them from the folder, by the name of its option.

    Raises:
        ConfigError: If one of them is not a `Mirror`, or two of them send to the same place.
    """

    def __init__(self, folder: RunFolder, build: Mapping[str, Callable[[RunFolder], Any]]) -> None:
        self.mirrors: list[Mirror] = []
        names: dict[str, str] = {}  # by address
        for name, make in build.items():
            try:
                mirror = make(folder)
            except ConfigError as error:
                typed, error.key = error.key, error.key.replace("tracker.", f"tracker.{name}.", 1)
                error.hint = error.hint.replace(typed, error.key)
                raise
            if not isinstance(mirror, Mirror):
                hint = "derive it from fishr_exp.tracking.mirror.Mirror, or use it alone"
                raise ConfigError(f"tracker.{name}", type(mirror).__name__, "is not a Mirror", hint)
            if mirror.address in names:
                reason = f"sends to {mirror.address}, as {names[mirror.address]} does"
                raise ConfigError(
                    "tracker", name, reason, "give it another place, or leave one of them out"
                )
            names[mirror.address] = name
            self.mirrors.append(mirror)
        for mirror in self.mirrors:
            mirror.among = list(names)

    def start(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        """Open the run at all trackers, or take up those of an earlier start."""
        for mirror in self.mirrors:
            mirror.start(config, labels)

    def catch_up(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        """Send what each tracker lacks of a run that is done; loads nothing of those with all."""
        lacking = [mirror for mirror in self.mirrors if mirror.lacks("FINISHED")]
        for mirror in lacking:
            mirror.start(config, labels)
        _finish(lacking, "FINISHED")

    def lacks(self, status: str) -> bool:
        """Whether any tracker lacks anything of a run that ended with `status`."""
        return any(mirror.lacks(status) for mirror in self.mirrors)

    def sync(self) -> None:
        """Have the records sent that the trackers lack; returns at once."""
        for mirror in self.mirrors:
            mirror.sync()

    def finish(self, status: str) -> None:
        """Have all that is missing sent, and how the run ended; wait as each mirror does.

        Args:
            status: `FINISHED`, `FAILED` or `KILLED`.
        """
        _finish(self.mirrors, status)


def _finish(mirrors: list[Mirror], status: str) -> None:
    for mirror in mirrors:
        mirror.end(status)
    with contextlib.ExitStack() as waiting:  # for each, also if a signal stops waiting for another
        for mirror in reversed(mirrors):
            waiting.callback(mirror.wait)
