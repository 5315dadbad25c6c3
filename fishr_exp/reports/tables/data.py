"""Whether the runs of a table were on the same data, by the digests that they recorded."""

from __future__ import annotations

from collections.abc import Sequence

from fishr_exp.reports.tables.table import Row
from fishr_exp.runs.identity import flatten

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
            seed = flatten(run.config).get("dataset.seed")
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
    values = [flatten(run.config).get(MISSING_CLASSES) for row in rows for run in row.runs]
    if ALLOWED in values:
        notes.append(
            f"With {MISSING_CLASSES}={ALLOWED} a domain may lack classes; its accuracy is over the"
            " classes that it has."
        )
    return notes
