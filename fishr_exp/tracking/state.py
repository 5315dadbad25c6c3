"""The file tracking.json of a run folder: where its run is mirrored, and how far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fishr_exp.runs.content import (
    UnreadableError,
    anything,
    mapping,
    parse_object,
    read_bytes,
    take,
    text,
)
from fishr_exp.runs.files import to_json, write_atomically
from fishr_exp.runs.identity import TARGET
from fishr_exp.runs.run_folder import TRACKING

# The first version knew one tracker, and wrote its settings without its name.
_FIRST_TRACKER = "fishr_exp.tracking.mlflow_mirror.MlflowMirror"
_WAY_OUT = "remove this file, and fishr-sync --tracking-uri URI sends the run again"
_FIRST_SETTINGS = ("tracking_uri", "experiment", "sweep")


@dataclass(frozen=True)
class State:
    """What tracking.json holds; all is empty where a run has no tracker yet.

    Attributes:
        tracker: What builds the mirror again: `_target_`, by its id, and its keywords.
        address: The address of that mirror, where it sends to.
        identity: By which the run is recognized wherever it is sent; it never changes.
        run_id: How the server calls the run; empty before it is made.
        ended: The status that the server knows: `RUNNING`, or how the run ended once it has all.
        labels: The options of dataset, model and trainer.
    """

    tracker: Mapping[str, Any] = field(default_factory=dict)
    address: str = ""
    identity: str = ""
    run_id: str = ""
    ended: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> State:
        """Read the state of the run in `folder`, also as the first version wrote it.

        Raises:
            UnreadableError: If the file does not hold what `write` has written.
        """
        path = folder / TRACKING
        if not path.exists():
            return cls()
        content = read_bytes(path)
        try:
            found = parse_object(content)
            empty: dict[str, Any] = {}
            tracker = take(found, "tracker", mapping(anything), empty)
            address = take(found, "address", text, "")
            if not tracker and "tracking_uri" in found:
                given = {key: found[key] for key in _FIRST_SETTINGS if key in found}
                tracker = {TARGET: _FIRST_TRACKER, **given}
                address = take(found, "tracking_uri", text)
            return cls(
                tracker=tracker,
                address=address,
                identity=take(found, "mirror", text, ""),
                run_id=take(found, "run_id", text, ""),
                ended=take(found, "ended", text, ""),
                labels=take(found, "labels", mapping(text), {}),
            )
        except ValueError as error:
            raise UnreadableError.of(path, f"is damaged: {error}", _WAY_OUT) from error

    def write(self, folder: Path) -> None:
        """Write the state of the run in `folder`.

        Raises:
            OSError: If the file cannot be written.
        """
        content = {
            "tracker": dict(self.tracker),
            "address": self.address,
            "mirror": self.identity,
            "run_id": self.run_id,
            "ended": self.ended,
            "labels": dict(self.labels),
        }
        write_atomically(folder / TRACKING, to_json(content))
