"""Puts the tables of single-source generalization on sheets: over the test domains, and by pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fishr_exp.reports.sheets.sheet import MISSING, Line, Sheet
from fishr_exp.reports.sheets.table_sheet import show_estimate, show_gammas
from fishr_exp.reports.statistics.estimates import Estimate
from fishr_exp.reports.tables.grouping import ABSENT
from fishr_exp.reports.tables.single_source import SingleSource, SourceRow


def single_source_sheets(table: SingleSource) -> list[Sheet]:
    """Put `table` on two sheets: a column for each source domain, and a row for each."""
    return [_means(table), _pairs(table)]


def _means(table: SingleSource) -> Sheet:
    gammas = _gammas(table)
    with_difference = any(row.difference for row in table.rows)
    headers = [
        *_first_headers(table),
        "seeds",
        *table.sources,
        "mean",
        *(["Δ ERM"] if with_difference else []),
    ]
    rows = []
    for row in table.rows:
        n = len(row.seeds)
        cells = []
        for domain in table.sources:
            of = row.sources.get(domain)
            cells.append(show_estimate(of.accuracy if of else None, n, absent=MISSING))
        mean = show_estimate(row.mean, n, absent=MISSING)
        delta = [show_estimate(row.difference, n, "+")] if with_difference else []
        rows.append([*_first_cells(table, row, gammas), str(n), *cells, mean, *delta])
    keys = [*headers]
    if with_difference:
        keys[-1] = "delta"
    start = len(_first_headers(table)) + 1
    return Sheet(
        title=table.title,
        headers=headers,
        rows=rows,
        left=start - 1,
        notes=[*_notes(table)],
        lines=[line for row in table.rows for line in _lines(table, row)],
        label=f"{table.dataset} single source",
        keys=keys,
        compared=frozenset(range(start, start + len(table.sources) + 1)),
    )


def _pairs(table: SingleSource) -> Sheet:
    gammas = _gammas(table)
    headers = [*_first_headers(table), "trained on", "seeds", *table.domains]
    rows = []
    for row in table.rows:
        for domain in table.sources:
            if (of := row.sources.get(domain)) is None:
                continue
            n = len(of.runs)
            cells = [
                ABSENT if target == domain else show_estimate(of.test.get(target), n)
                for target in table.domains
            ]
            rows.append([*_first_cells(table, row, gammas), domain, str(n), *cells])
    start = len(_first_headers(table)) + 2
    return Sheet(
        title=f"{table.title}; by pair",
        headers=headers,
        rows=rows,
        left=start - 1,
        notes=["Accuracy in % in each test domain (columns), mean ± standard error over seeds."],
        label=f"{table.dataset} single source pairs",
        keys=headers,
    )


def _gammas(table: SingleSource) -> dict[float, str]:
    return show_gammas([row.gamma for row in table.rows if row.gamma is not None])


def _first_headers(table: SingleSource) -> list[str]:
    return ["method", *(["gamma"] if _gammas(table) else []), *table.setting_names]


def _first_cells(table: SingleSource, row: SourceRow, gammas: Mapping[float, str]) -> list[str]:
    gamma = ABSENT if row.gamma is None else gammas[row.gamma]
    return [
        row.label + "*" * row.selected_by_test_domain,
        *([gamma] if gammas else []),
        *(row.settings[name] for name in table.setting_names),
    ]


def _notes(table: SingleSource) -> Iterator[str]:
    single = "; one seed has no error" if any(len(row.seeds) == 1 for row in table.rows) else ""
    yield (
        "Accuracy in %, of a model trained on the domain that heads the column, mean over all other"
        f" domains, ± standard error over seeds{single}."
    )
    yield "mean: over all source domains, of the seeds that all of them have."
    if any(row.difference for row in table.rows):
        yield "Δ ERM: difference of the mean to ERM, in points, paired by seed."
    elif any(row.mean and not row.is_baseline for row in table.rows):
        yield "No row of ERM has the same settings and seeds, so there is no Δ ERM."
    if any({*row.sources} != {*table.sources} or row.mean is None for row in table.rows):
        yield f"{MISSING}: missing, since a run is missing."
    if any(row.selected_by_test_domain for row in table.rows):
        yield "*: checkpoint selected by a test domain, so its accuracy is not a fair estimate."
    if table.repeats:
        folders = ", ".join(str(run.path) for run in table.repeats)
        yield f"Not counted, since their row already has the seed: {folders}."
    if table.partial:
        folders = ", ".join(str(run.path) for run in table.partial)
        yield f"Not counted, since they are not tested on all other domains: {folders}."


def _lines(table: SingleSource, row: SourceRow) -> Iterator[Line]:
    """Give a line for each source domain, its mean and its pairs, and one for the row's mean."""
    identity = {
        "dataset": table.dataset,
        "model": table.model or "",
        "label": row.label,
        "method": row.method,
        "gamma": "" if row.gamma is None else repr(row.gamma),
        **row.settings,
    }

    def line(source: str, target: str, found: Estimate | None) -> Line:
        error = None if found is None else found.standard_error
        return Line(
            {**identity, "trained_on": source, "tested_on": target},
            {
                "mean": "" if found is None else f"{found.mean:.4f}",
                "se": "" if error is None else f"{error:.4f}",
                "n": "0" if found is None else str(found.n),
            },
        )

    for domain, of in row.sources.items():
        yield line(domain, "others", of.accuracy)
        for target, found in of.test.items():
            yield line(domain, target, found)
    yield line("each", "others", row.mean)
    if row.difference is not None:
        yield line("each", "others, difference to ERM", row.difference)
