"""What `fishr-table` does once it knows its options: read, build, write, print."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fishr_exp.core.errors import ConfigError

if TYPE_CHECKING:
    from fishr_exp.reports.sheets.layout import Layout
    from fishr_exp.reports.sheets.sheet import Sheet
    from fishr_exp.reports.tables.comparison import Comparison
    from fishr_exp.reports.tables.table import Table
    from fishr_exp.runs.reading import Runs

SELECTIONS = ("training", "oracle", "leave_one_out")


def make_table(options: argparse.Namespace) -> None:
    """Make the tables of all runs, and their figures.

    Raises:
        ConfigError: If there is no run to show, or an option does not fit the runs.
    """
    from fishr_exp.reports.figures.curves import draw_curves
    from fishr_exp.reports.metric import measured_by
    from fishr_exp.reports.output import CURVES, draw_all, remove_stale, stem_of, write
    from fishr_exp.reports.sheets.layout import lay_out
    from fishr_exp.reports.sheets.table_sheet import table_sheet
    from fishr_exp.reports.tables.table import build_tables

    folder, out = options.folder, options.out or options.folder / "table"
    runs, layout = _read(options), read_layout(options)
    if not runs.done:
        raise ConfigError(
            "DIR",
            folder,
            f"it contains no completed run ({_count(runs)})",
            "start runs with fishr-exp, or pass the folder that contains them",
        )
    metric = options.metric
    counted, about_others = measured_by(runs.done, metric)
    tables = build_tables(counted, metric)
    sheets = lay_out([table_sheet(table) for table in tables], layout)
    everything = options.all_figures
    files = write(sheets, out, stem_of("table", metric))
    files += draw_all(tables, out, layout.renamed, everything)
    report = [*_report(runs), *about_others, *_about_figures(tables, everything)]
    try:
        files += draw_curves(tables, out / stem_of(CURVES, metric), layout.renamed, everything)
    except (OSError, ValueError) as error:  # a record that has changed since it was read
        report.append(f"No curves: {error}")
    stale = remove_stale(tables, out, files)
    report += [f"Removed {file}: it was of other runs, and is not drawn now." for file in stale]
    _say(sheets, options.format, report, files)


def make_comparison(options: argparse.Namespace) -> None:
    """Make the tables of a protocol.

    Raises:
        ConfigError: If no run is of the protocol, or an option does not fit the runs.
    """
    from fishr_exp.reports.output import write
    from fishr_exp.reports.sheets.comparison_sheet import cells_sheet, comparison_sheet
    from fishr_exp.reports.sheets.layout import lay_out

    runs = _read(options)
    tables, report = (
        _domainbed(options, runs)
        if options.protocol == "domainbed"
        else _colored_mnist(options, runs)
    )
    stem = "-".join(part for part in (options.protocol, tables[0].selection) if part)
    out = options.out or options.folder / "table"
    sheets = lay_out([comparison_sheet(table) for table in tables], read_layout(options))
    cells = [sheet for sheet in map(cells_sheet, tables) if sheet.rows]
    files = write(sheets, out, stem) + write(cells, out, f"{stem}-cells", formats=("csv",))
    _say(cells if options.cells else sheets, options.format, report, files)


def make_single_source(options: argparse.Namespace) -> None:
    """Make the tables of runs that were trained on one domain.

    Raises:
        ConfigError: If there is none, or an option does not fit the runs.
    """
    from fishr_exp.reports.output import write
    from fishr_exp.reports.sheets.layout import lay_out
    from fishr_exp.reports.sheets.single_source_sheet import single_source_sheets
    from fishr_exp.reports.tables.single_source import PROTOCOL, build_single_source_tables

    runs = _read(options)
    tables = build_single_source_tables(runs.done)
    others = sum(len(run.training_domains) != 1 for run in runs.done)
    report = _report(runs)
    if others:
        report.append(f"Not counted: {others} trained on several domains.")
    sheets = [sheet for table in tables for sheet in single_source_sheets(table)]
    sheets = lay_out(sheets, read_layout(options))
    files = write(sheets, options.out or options.folder / "table", PROTOCOL)
    _say(sheets, options.format, report, files)


def _domainbed(options: argparse.Namespace, runs: Runs) -> tuple[list[Comparison], list[str]]:
    from fishr_exp.reports.conditions import histories_where, none_left, parse_conditions
    from fishr_exp.reports.tables.domainbed import build_domainbed_tables, why_empty
    from fishr_exp.reports.tables.published_rows import check_sources
    from fishr_exp.runs.history import read_histories

    selection = options.selection or SELECTIONS[0]
    check_sources(options.published or (), selection)
    conditions = parse_conditions(options.where)
    everything = read_histories(options.folder, runs.done)
    found = histories_where(everything, conditions)
    if everything.runs and not found.runs:
        raise none_left(everything.runs, conditions)
    imported = len(found.runs) + len(found.broken) - len(runs.done)
    report = [*_report(runs), f"Imported {imported} results.jsonl."] if imported else _report(runs)
    report += [f"  unreadable: {path}: {problem}" for path, problem in found.broken.items()]
    if not found.runs:
        first = "".join(f"; {path}: {problem}" for path, problem in [*found.broken.items()][:1])
        raise ConfigError(
            "DIR",
            options.folder,
            f"it contains no run with records of evaluations ({_count(runs)}{first})",
            "pass the folder that contains the run folders of a sweep, or of DomainBed's",
        )
    tables = build_domainbed_tables(found.runs, selection, options.published)
    if all(table.is_empty for table in tables):
        raise why_empty(found.runs, selection)
    return tables, report


def published_list() -> str:
    """Write what `--published list` prints: the sources, and what their figures are of."""
    from fishr_exp.reports.tables.published_rows import describe, known_sources

    return (
        "\n".join(line for source in known_sources().values() for line in describe(source)) + "\n"
    )


def _colored_mnist(options: argparse.Namespace, runs: Runs) -> tuple[list[Comparison], list[str]]:
    from fishr_exp.reports.tables.colored_mnist import build_colored_mnist_tables, is_in_protocol

    others = [run.path for run in runs.done if not is_in_protocol(run)]
    if len(others) == len(runs.done):
        raise ConfigError(
            "DIR",
            options.folder,
            "it contains no completed run on dataset=colored_mnist with observer=last_step"
            f" ({_count(runs)})",
            "start some with fishr-exp -m experiment=colored_mnist_table2, or leave --protocol out"
            " for a table of all runs",
        )
    report = _report(runs)
    if others:
        report.append(f"Not counted: {len(others)} on other data, or not of the last step.")
    tables = build_colored_mnist_tables(runs.done)
    if all(table.is_empty for table in tables):
        raise ConfigError(
            "--protocol",
            "colored_mnist",
            "no run recorded an accuracy of its columns: train, and the test domains minus90 and"
            " gray",
            "start runs with 'test_domains=[minus90,gray]', or leave --protocol out for a table of"
            " all runs",
        )
    return tables, report


def _read(options: argparse.Namespace) -> Runs:
    from fishr_exp.reports.conditions import none_left, parse_conditions, runs_where
    from fishr_exp.runs.reading import read_runs

    folder, conditions = options.folder, parse_conditions(options.where)
    gc.disable()  # what is read has no cycles, and looking for them is a seventh of the time
    try:
        runs = read_runs(folder)
    except OSError as error:
        raise ConfigError(
            "DIR",
            folder,
            f"this folder cannot be read ({error.strerror})",
            "pass the folder that contains the run folders, such as outputs/runs",
        ) from error
    finally:
        gc.enable()
    kept = runs_where(runs, conditions)
    if runs.done and not kept.done and options.protocol != "domainbed":
        raise none_left(runs.done, conditions)
    return kept


def read_layout(options: argparse.Namespace) -> Layout:
    """Return what the options say of how tables are shown.

    Raises:
        ConfigError: If a new name is not of the form OLD=NEW.
    """
    from fishr_exp.reports.sheets.layout import Layout

    names = {}
    for word in options.rename:
        old, sign, new = word.partition("=")
        if not sign or not old:
            raise ConfigError("--rename", word, "must be OLD=NEW, such as Fishr=Ours")
        names[old] = new
    return Layout(options.columns, options.rows, names, options.bold_best)


def _say(
    sheets: Sequence[Sheet], printed: str, report: Sequence[str], files: Sequence[Path]
) -> None:
    from fishr_exp.reports.sheets.sheet import FORMATS, on_one_line

    sys.stdout.write(FORMATS[printed](sheets))
    sys.stdout.flush()
    # If a program may read the table, the report about it goes to stderr.
    stream = sys.stdout if printed == "text" else sys.stderr
    lines = ["", *report, "Wrote:", *(f"  {file}" for file in files)]
    stream.write(
        "\n".join(line if line.isprintable() else on_one_line(line) for line in lines) + "\n"
    )


def _count(runs: Runs) -> str:
    plural = "" if len(runs) == 1 else "s"
    return (
        f"{len(runs)} run{plural}: {len(runs.done)} done, {len(runs.failed)} failed,"
        f" {len(runs.unfinished)} unfinished, {len(runs.broken)} unreadable"
    )


def _report(runs: Runs) -> list[str]:
    lines = [f"Read {_count(runs)}."]
    lines += [f"  failed: {path}" for path in runs.failed]
    lines += [f"  unreadable: {path}: {problem}" for path, problem in runs.broken.items()]
    return lines


def _about_figures(tables: Sequence[Table], everything: bool) -> list[str]:
    from fishr_exp.reports.figures.curves import MOST_ROWS
    from fishr_exp.reports.figures.gamma import MOST_CURVES, MOST_POINTS, is_drawn, varies_gamma

    lines, fewer = [], "count fewer runs with --where KEY=VALUE, or pass --all-figures."
    for table in tables:
        varies = varies_gamma(table)
        if not (everything or is_drawn(table)):
            most = f"{MOST_CURVES} curves over gamma" if varies else f"{MOST_POINTS} rows"
            lines.append(f"No figure of {table.title}: it has more than {most}; {fewer}")
        elif not varies:
            lines.append(
                f"Gamma does not vary in {table.title}: its figure shows one point per row."
            )
    lines += [
        f"No curves of {table.title}: it has more than {MOST_ROWS} rows; {fewer}"
        for table in tables
        if len(table.rows) > MOST_ROWS and not everything
    ]
    return lines
