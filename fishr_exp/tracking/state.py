"""The file tracking.json of a run folder: where its run is mirrored, and how far.

Of several trackers, the first one stands where a single one does, and the rest under `others`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fishr_exp.runs.content import (
    UnreadableError,
    anything,
    mapping,
    parse_object,
    read_bytes,
    several,
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
        """Read the state of the run in `folder` at its first tracker.

        Raises:
            UnreadableError: If the file does not hold what `write` has written.
        """
        return next(iter(cls.read_all(folder)), cls())

    @classmethod
    def read_all(cls, folder: Path) -> list[State]:
        """Read the states of the run in `folder` at all its trackers; none where it has none yet.

        Raises:
            UnreadableError: If the file does not hold what `write` has written.
        """
        path = folder / TRACKING
        if not path.exists():
            return []
        content = read_bytes(path)
        try:
            found = parse_object(content)
            first = cls._of(found)
            none: list[dict[str, Any]] = []
            others = take(found, "others", several(mapping(anything)), none)
            return [
                first,
                *(
                    replace(cls._of(other), identity=first.identity, labels=first.labels)
                    for other in others
                ),
            ]
        except ValueError as error:
            raise UnreadableError.of(path, f"is damaged: {error}", _WAY_OUT) from error

    @classmethod
    def _of(cls, found: Mapping[str, Any]) -> State:
        """Return what is written of one tracker, also as the first version wrote it."""
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

    def write(self, folder: Path, among: Sequence[str] = ()) -> None:
        """Write the state of the run in `folder`.

        Args:
            folder: The run folder.
            among: The addresses of all its trackers, in order, where there are others, whose states
                are kept. States at other addresses are dropped.

        Raises:
            OSError: If the file cannot be written.
        """
        with _writing:
            there: list[State] = []
            with contextlib.suppress(ValueError):  # damaged
                there = State.read_all(folder) if among else []
            known = {state.address: state for state in (*there, self)}
            order = among if self.address in among else [self.address, *among]
            states = [known[address] for address in order if address in known]
            _write(folder, [replace(s, identity=self.identity) for s in states])

    @staticmethod
    def identify(folder: Path, identity: str) -> None:
        """Write the identity of the run in `folder`, and leave all else as it is.

        Raises:
            OSError: If the file cannot be written.
        """
        with _writing:
            there: list[State] = []
            with contextlib.suppress(ValueError):
                there = State.read_all(folder)
            _write(folder, [replace(s, identity=identity) for s in there or [State()]])


_writing = threading.Lock()  # each mirror has a thread, and writes its part of the file


def _write(folder: Path, states: Sequence[State]) -> None:
    first, *others = states
    content: dict[str, Any] = {
        "tracker": dict(first.tracker),
        "address": first.address,
        "mirror": first.identity,
        "run_id": first.run_id,
        "ended": first.ended,
        "labels": dict(first.labels),
    }
    if others:
        content["others"] = [
            {"tracker": dict(s.tracker), "address": s.address, "run_id": s.run_id, "ended": s.ended}
            for s in others
        ]
    write_atomically(folder / TRACKING, to_json(content))
