"""Published tables: the JSON files in this folder, one for each source.

A table's rows give, for each column, the mean and its error in percent; the error is null if none
is published, and so is a figure that the source lacks or that is of another selection than its
row. Each table says by what its figures were selected, of which backbone they are, from which
start, and after how many steps on DomainNet: null if the source does not name them.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

AVERAGES, AVG = "Averages", "Avg"
DOMAIN_NET = "DomainNet"
UNKNOWN = "unknown"  # the selection of a source that does not name it
# The sources that verdicts compare with; of a protocol's tables.
DEFAULT = ("domainbed", "fishr", "fishr_colored_mnist")


class Published(NamedTuple):
    """A published figure, in percent."""

    mean: float
    error: float | None
    source: str
    conditions: str = ""  # backbone, start, and steps on DomainNet


@dataclass(frozen=True)
class PublishedTable:
    """One table of one source."""

    origin: str  # the name of its source
    protocol: str
    selection: str | None  # training, oracle, leave_one_out or `UNKNOWN`; None without selection
    name: str  # a dataset, or `AVERAGES`
    source: str
    error: str  # the kind of its errors
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Published | None, ...]]  # method -> a figure for each column
    backbone: str | None = None
    start: str | None = None
    domain_net_steps: int | None = None

    @property
    def conditions(self) -> str:
        """What its figures are of, but for the selection."""
        parts = [self.backbone, f"start: {self.start}" if self.start else None]
        if DOMAIN_NET in (self.name, *self.columns):
            known = self.domain_net_steps is not None
            steps = f"{self.domain_net_steps:,} steps" if known else "steps not named"
            parts.append(f"{DOMAIN_NET}: {steps}")
        return "; ".join(part for part in parts if part)

    def fits(self, column: str, steps: int | None) -> bool:
        """Whether a column is of the number of steps on DomainNet; None fits every number."""
        here = {self.name, column} | ({*self.columns} if column == AVG else set())
        return DOMAIN_NET not in here or same_steps(self.domain_net_steps, steps)


@dataclass(frozen=True)
class Source:
    """A paper or a repository with its tables."""

    name: str  # what `--published` calls it
    protocol: str
    about: str
    notes: tuple[str, ...]  # what stands below a table with its rows
    tables: tuple[PublishedTable, ...]


@functools.cache
def sources() -> Mapping[str, Source]:
    """Read all sources, by name."""
    found = {}
    for file in importlib.resources.files(__name__).iterdir():
        if file.name.endswith(".json"):
            content = json.loads(file.read_text(encoding="utf-8"))
            name = content["name"]
            tables = tuple(_table(name, {**content, **table}) for table in content["tables"])
            notes = tuple(content["notes"])
            found[name] = Source(name, content["protocol"], content["about"], notes, tables)
    order = {name: place for place, name in enumerate(DEFAULT)}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


class Reference:
    """The published figures of one protocol and selection."""

    def __init__(
        self,
        protocol: str,
        selection: str | None,
        names: Sequence[str] = DEFAULT,
        *,
        steps: int | None = None,
        backbone: str | None = None,
    ) -> None:
        """Collect them.

        Args:
            protocol: `domainbed` or `colored_mnist`.
            selection: How they were selected.
            names: Of which sources, the first one first.
            steps: The number of steps on DomainNet; None: any.
            backbone: Of which backbone, in any spelling; None: any.
        """
        self.selection, self.steps = selection, steps
        self.tables = [
            table
            for name in names
            for table in (sources()[name].tables if name in sources() else ())
            if (table.protocol, table.selection) == (protocol, selection)
            and (backbone is None or method_key(table.backbone or "") == method_key(backbone))
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
            if table.name == name and column in table.columns and table.fits(column, self.steps):
                for published, figures in table.rows.items():
                    if method_key(published) == wanted:
                        return figures[table.columns.index(column)]
        return None


def method_key(label: str) -> str:
    """Return the same key for all spellings of a name: `V-REx`, `VREx`, `V-REx (DomainBed)`.

    An average of runs, `ERM (uniform average of 20)`, is not the method of its runs.
    """
    name = label if " average of " in label else label.partition(" (")[0]
    return "".join(c for c in name.lower() if c.isalnum())


def same_steps(published: int | None, ours: int | None) -> bool:
    """Whether two numbers of steps are the same: codes count the first one or not."""
    return ours is None or (published is not None and abs(published - ours) <= 1)


def _table(origin: str, content: Mapping[str, Any]) -> PublishedTable:
    empty = PublishedTable(
        origin=origin,
        protocol=content["protocol"],
        selection=content["selection"],
        name=content["name"],
        source=content["source"],
        error=content["error"],
        columns=tuple(content["columns"]),
        rows={},
        backbone=content.get("backbone"),
        start=content.get("start"),
        domain_net_steps=content.get("domain_net_steps"),
    )

    def figure(written: Sequence[float | None] | None) -> Published | None:
        if written is None:
            return None
        mean, error = written
        assert mean is not None
        return Published(mean, error, empty.source, empty.conditions)

    rows = {method: tuple(map(figure, row)) for method, row in content["rows"].items()}
    return replace(empty, rows=rows)
