"""Whether the runs of a table were on the same data, by the digests that they recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fishr_exp.reports.tables.table import Row
from fishr_exp.runs.reading import Run

MARK = "†"
MISSING_CLASSES, ALLOWED = "dataset.missing_classes", "allow"


def on_other_data(rows: Sequence[Row]) -> dict[int, list[str]]:
    """Return, by the place of a row, the domains whose data differ from those of the first row.

    Data that depend on a seed of their own are compared at that seed. Runs without digests, of
    earlier versions, count as equal.
    """
    first: dict[tuple[str, str, object], str] = {}
    found: dict[int, list[str]] = {}
    for place, row in enumerate(rows):
        for run in row.runs:
            seed = _of_dataset(run, "seed")
            for domain, digest in run.data.items():
                if first.setdefault((run.dataset, domain, seed), digest) != digest:
                    found.setdefault(place, []).append(domain)
    return {place: list(dict.fromkeys(domains)) for place, domains in found.items()}


def about_data(rows: Sequence[Row]) -> list[str]:
    """Return the notes below a table about the data of its runs."""
    notes = []
    domains = dict.fromkeys(d for of in on_other_data(rows).values() for d in of)
    if domains:
        notes.append(
            f"{MARK}: some runs were on other images or labels of {', '.join(domains)} than the"
            " rows before, so the difference may come from the data."
        )
    name = MISSING_CLASSES.partition(".")[2]
    if any(_of_dataset(run, name) == ALLOWED for row in rows for run in row.runs):
        notes.append(
            f"With {MISSING_CLASSES}={ALLOWED} a domain may lack classes; its accuracy is over the"
            " classes that it has."
        )
    return notes


def _of_dataset(run: Run, name: str) -> Any:
    """Return a setting of a run's dataset, a plain value; None if it has no such setting."""
    part = run.config.get("dataset")
    value = part.get(name) if isinstance(part, Mapping) else None
    return None if isinstance(value, Mapping) else value
