"""When a run began and ended: as its folder says, so that it is the same whenever it is sent.

All in seconds since 1970. Records have the time at which they were written, and the seconds that
the run took until then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def written(record: Record) -> float:
    """Return when a record was written; the first version had its seconds only."""
    return float(record.get("time", record["seconds"]))


def begun(records: Sequence[Record]) -> float:
    """Return when a run began: as its first record says, or now if there is none."""
    if not records or "time" not in records[0]:
        return time.time()
    return float(records[0]["time"]) - float(records[0].get("seconds", 0.0))


def ended_at(records: Sequence[Record], result: Record, started: float) -> float:
    """Return when a run ended: after its last record, as long as its result took."""
    if not records or "time" not in records[-1]:
        return max(started, time.time())
    seconds = float(records[-1].get("seconds", 0.0))
    shared = float((result.get("shared") or {}).get("seconds", 0.0))
    took = float(result.get("seconds", seconds)) + shared
    return float(records[-1]["time"]) + max(0.0, took - seconds)
