"""Published tables: the JSON files in this folder, each table with its source.

A table's rows give, for each column, the mean and its error in percent; the error is null if
none is published.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

AVERAGES, AVG = "Averages", "Avg"


class Published(NamedTuple):
    """A published figure, in percent."""

    mean: float
    error: float | None
    source: str


@dataclass(frozen=True)
class PublishedTable:
    """One table of one source."""

    protocol: str
    selection: str | None  # training, oracle or leave_one_out; None without selection
    name: str  # a dataset, or `AVERAGES`
    source: str
    error: str  # the kind of its errors
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Published, ...]]  # method -> a figure for each column


@functools.cache
def published_tables() -> tuple[PublishedTable, ...]:
    """Read all published tables."""
    files = importlib.resources.files(__name__).iterdir()
    found: list[PublishedTable] = []
    for file in sorted(files, key=lambda file: file.name):
        if file.name.endswith(".json"):
            content = json.loads(file.read_text(encoding="utf-8"))
            found += [_table(content["protocol"], table) for table in content["tables"]]
    return tuple(found)


class Reference:
    """The published figures of one protocol and selection."""

    def __init__(self, protocol: str, selection: str | None) -> None:
        self.tables = [
            table
            for table in published_tables()
            if (table.protocol, table.selection) == (protocol, selection)
        ]

    def columns(self, name: str) -> tuple[str, ...]:
        """Return the columns of the table `name`; empty if it is not published."""
        return next((table.columns for table in self.tables if table.name == name), ())

    def methods(self, name: str) -> list[str]:
        """Return the methods with a row in the table `name`, in the published order."""
        rows = (method for table in self.tables if table.name == name for method in table.rows)
        return list(dict.fromkeys(rows))

    def figure(self, name: str, method: str, column: str) -> Published | None:
        """Return a published figure; `method` is in any spelling, see `method_key`.

        The error of a dataset's average is in the table of averages.
        """
        if column == AVG and name != AVERAGES:
            return self.figure(AVERAGES, method, name)
        wanted = method_key(method)
        for table in self.tables:
            if table.name == name and column in table.columns:
                for published, figures in table.rows.items():
                    if method_key(published) == wanted:
                        return figures[table.columns.index(column)]
        return None


def method_key(label: str) -> str:
    """Return the same key for all spellings of a name: `V-REx`, `VREx`, `V-REx (DomainBed)`."""
    return "".join(c for c in label.partition(" (")[0].lower() if c.isalnum())


def _table(protocol: str, content: Mapping[str, Any]) -> PublishedTable:
    source = content["source"]
    return PublishedTable(
        protocol=protocol,
        selection=content["selection"],
        name=content["name"],
        source=source,
        error=content["error"],
        columns=tuple(content["columns"]),
        rows={
            method: tuple(Published(mean, error, source) for mean, error in figures)
            for method, figures in content["rows"].items()
        },
    )
