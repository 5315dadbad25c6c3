"""Rows of published figures for DomainBed's tables, never of another selection than ours.

A row of a source named by `--published` stands in a table of ours only if its backbone is that of
our runs, and its figures on DomainNet, and averages with it, only if they are of as many steps.
What does not fit, or is of a selection that the source does not name, stands in a table of its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.published import (
    AVERAGES,
    AVG,
    DEFAULT,
    DOMAIN_NET,
    UNKNOWN,
    PublishedTable,
    Reference,
    Source,
    method_key,
    same_steps,
    sources,
)
from fishr_exp.reports.tables.comparison import Cell, Comparison, ComparisonRow
from fishr_exp.runs.history import DOMAINBED, History

PROTOCOL = "domainbed"
RESNET50 = "ResNet-50"


def known_sources() -> dict[str, Source]:
    """Return the sources whose rows DomainBed's tables can show, by name."""
    return {name: source for name, source in sources().items() if source.protocol == PROTOCOL}


def describe(source: Source) -> Iterable[str]:
    """Say what a source has, in lines: what it is, of what its figures are, and its notes."""
    yield source.name
    yield f"  {source.about}."
    conditions: dict[str, list[str]] = {}
    for table in source.tables:
        conditions.setdefault(table.conditions, []).append(table.selection or "")
    for condition, selections in conditions.items():
        if any(other.startswith(f"{condition};") for other in conditions):
            continue  # of tables without DomainNet
        yield f"  {condition}; selection: {', '.join(dict.fromkeys(selections))}"
    yield from (f"  {note}" for note in source.notes)


def check_sources(names: Sequence[str], selection: str) -> None:
    """Refuse a source that is not known, or has figures of other selections only.

    Raises:
        ConfigError: If there is one.
    """
    known = known_sources()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see fishr-table --published list"
            reason = f"there is no such source; there are {', '.join(known)}"
            raise ConfigError("--published", name, reason, hint)
        there = dict.fromkeys(table.selection or "" for table in known[name].tables)
        if selection not in there and UNKNOWN not in there:
            raise ConfigError(
                "--published",
                name,
                f"its figures are of the selection {' and '.join(there)}, and this table is of"
                f" {selection}: they are not shown together",
                f"pass --selection {next(iter(there))}, or leave {name} out",
            )


def backbone_of(runs: Iterable[History]) -> str | None:
    """Return the backbone of runs on images as published tables name it; None if there are two."""
    found = {_backbone(run) for run in runs}
    return found.pop() if len(found) == 1 else None


def _backbone(run: History) -> str:
    if run.source == DOMAINBED:
        return "ResNet-18" if run.settings.get("hparams.resnet18") else RESNET50
    target = str(run.settings.get("model._target_", "")).rpartition(".")[2]
    return RESNET50 if target == "domainbed" else str(run.settings.get("model.name", target))


class PublishedRows:
    """The rows that `--published` asks for."""

    def __init__(self, names: Sequence[str] | None, selection: str) -> None:
        """Choose them.

        Args:
            names: Of the sources; empty: those that verdicts compare with; None: no rows.
            selection: Of the tables of ours.
        """
        self.names, self.selection = names, selection

    def rows(
        self, name: str, columns: Sequence[str], steps: int | None, backbone: str | None
    ) -> list[ComparisonRow]:
        """Make the rows of all methods that have a figure in one of our columns.

        Args:
            name: Of the table: a dataset, or `AVERAGES`.
            columns: Ours, without the average.
            steps: Of our runs on DomainNet; None: not known.
            backbone: Of our runs.
        """
        if self.names is None:
            return []
        if not self.names:
            reference = Reference(PROTOCOL, self.selection, steps=steps)
            return [*_rows(reference, name, columns, "published")]
        return [
            row
            for origin in self.names
            for row in _rows(self._of(origin, steps, backbone), name, columns, origin)
        ]

    def references(self, steps: int | None, backbone: str | None) -> list[Reference]:
        """Return the figures that ours are compared with: the first one found counts."""
        more = [self._of(origin, steps, backbone) for origin in self.names or ()]
        return [Reference(PROTOCOL, self.selection, steps=steps), *more]

    def notes(self, rows: Sequence[ComparisonRow], steps: int | None) -> Iterable[str]:
        """Say what the rows are of, and which figures are not shown."""
        origins = dict.fromkeys(row.origin for row in rows)
        for origin in origins:
            names = DEFAULT if origin == "published" else (origin,)
            found = [known_sources()[name] for name in names if name in known_sources()]
            if origin != "published":
                yield f"({origin}): {found[0].about}."
            yield from (note for source in found for note in source.notes)
        if withheld := [name for name in origins if name and self._withholds(name, steps)]:
            yield (
                f"Not shown beside {steps:,} steps on {DOMAIN_NET}: figures on it, and averages"
                f" with them, of other or unnamed numbers of steps, from {', '.join(withheld)}."
            )

    def apart(self, names: Iterable[str], backbone: str | None) -> list[Comparison]:
        """Make tables of what the chosen sources have of `names` and our tables cannot show."""
        found = []
        for origin in self.names or ():
            source = known_sources()[origin]
            parts: dict[tuple[str, str | None], list[PublishedTable]] = {}
            for name in names:
                for table in source.tables:
                    unknown = table.selection == UNKNOWN
                    other = table.selection == self.selection and not _same(table, backbone)
                    if table.name == name and (unknown or other):
                        parts.setdefault((name, table.backbone), []).append(table)
            found += [_apart(source, part) for part in parts.values()]
        return found

    def _of(self, origin: str, steps: int | None, backbone: str | None) -> Reference:
        return Reference(
            PROTOCOL, self.selection, [origin], steps=steps, backbone=backbone or "not known"
        )

    def _withholds(self, origin: str, steps: int | None) -> bool:
        if steps is None or origin == "published":
            return False
        return any(
            table.selection == self.selection
            and DOMAIN_NET in (table.name, *table.columns)
            and not same_steps(table.domain_net_steps, steps)
            for table in known_sources()[origin].tables
        )


def _rows(
    reference: Reference, name: str, columns: Sequence[str], origin: str
) -> Iterable[ComparisonRow]:
    methods = dict.fromkeys([*reference.methods(name), *reference.methods(AVERAGES)])
    if name == AVERAGES:
        whole = {*columns, AVG} == {*reference.columns(name)}
    else:  # the average of a dataset is over all of its domains
        whole = (*columns, AVG) == Reference(PROTOCOL, reference.selection).columns(name)
    for method in methods:
        figures = {column: reference.figure(name, method, column) for column in (*columns, AVG)}
        if not whole:
            figures[AVG] = None  # an average over other columns
        if any(figures.values()):
            cells = {column: Cell(None, figure) for column, figure in figures.items()}
            yield ComparisonRow(method, cells, 0, published_only=True, origin=origin)


def _apart(source: Source, tables: Sequence[PublishedTable]) -> Comparison:
    """Make a table of figures of one source, selection and backbone."""
    first = tables[0]
    columns = dict.fromkeys(column for table in tables for column in table.columns)
    rows = [
        ComparisonRow(
            method,
            {
                column: Cell(None, dict(zip(table.columns, figures, strict=True)).get(column))
                for column in columns
            },
            0,
            published_only=True,
        )
        for table in tables
        for method, figures in table.rows.items()
    ]
    selected = (
        "selection not named" if first.selection == UNKNOWN else f"selection: {first.selection}"
    )
    conditions = dict.fromkeys(table.conditions for table in tables)
    return Comparison(
        protocol=PROTOCOL,
        selection=first.selection,
        name=first.name,
        title=f"{first.name}; published only, {source.name}; {first.backbone}; {selected}",
        columns=tuple(columns),
        rows=tuple(rows),
        repeated="trials",
        separate_columns=False,
        notes=(
            f"({source.name}): {source.about}.",
            "Apart from the tables of the runs, since these figures are of another backbone, or of"
            f" a selection that is not named: {' / '.join(conditions)}.",
            *source.notes,
        ),
    )


def _same(table: PublishedTable, backbone: str | None) -> bool:
    return backbone is not None and method_key(table.backbone or "") == method_key(backbone)
