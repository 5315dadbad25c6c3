"""`fishr-table`: tables and figures from the run folders under a folder."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fishr_exp.core.errors import ConfigError

if TYPE_CHECKING:
    from fishr_exp.reports.sheets.sheet import Sheet
    from fishr_exp.reports.tables.comparison import Comparison
    from fishr_exp.reports.tables.table import Table
    from fishr_exp.runs.reading import Runs

SUFFIXES = {"markdown": "md", "latex": "tex", "csv": "csv"}
PROTOCOLS = ("domainbed", "colored_mnist")
SELECTIONS = ("training", "oracle", "leave_one_out")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 for a configuration error."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # for terminals without ±
    try:
        _check(options)
        if options.protocol is None:
            _make_table(options.folder, options.out or options.folder / "table", options.format)
        else:
            _make_comparison(options)
    except ConfigError as error:
        sys.stderr.write(f"fishr-table: {error}\n")
        return 2
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe; the files are written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fishr-table",
        description="Mean accuracy and standard error over seeds of the runs under DIR, as a table"
        " for each dataset and choice of test domains, and figures of accuracy over gamma,"
        " and over the steps. With --protocol, the tables of a benchmark, with a verdict against"
        " the published figures.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that contains run folders")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where table.md, table.tex, table.csv and the figures are written, or"
        " PROTOCOL[-SELECTION].md and so on (default: DIR/table)",
    )
    parser.add_argument(
        "--format",
        choices=["text", *SUFFIXES],
        default="text",
        help="what is printed (default: text); all are written",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="domainbed: one table per dataset, and the averages; also reads results.jsonl files"
        " of DomainBed. colored_mnist: the table of the IRM setup",
    )
    parser.add_argument(
        "--selection",
        choices=SELECTIONS,
        help="how domainbed selects hyperparameters and checkpoint (default: training)",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="add the rows of DomainBed's and Fishr's published tables to domainbed's",
    )
    parser.add_argument(
        "--cells",
        action="store_true",
        help="print the runs behind each cell of a protocol's tables, not the tables",
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse options that would have no effect."""
    if options.selection and options.protocol != "domainbed":
        raise ConfigError(
            "--selection",
            options.selection,
            "only domainbed has a selection",
            "add --protocol domainbed",
        )
    if options.published and options.protocol != "domainbed":
        reason = "only domainbed adds rows; colored_mnist shows published figures anyway"
        raise ConfigError("--published", "given", reason, "add --protocol domainbed")
    if options.cells and options.protocol is None:
        reason = "only a protocol's tables are traced to their runs"
        raise ConfigError("--cells", "given", reason, f"add --protocol {' or '.join(PROTOCOLS)}")


def _make_table(folder: Path, out: Path, printed: str) -> None:
    from fishr_exp.reports.figures.curves import draw_curves
    from fishr_exp.reports.sheets.table_sheet import table_sheet
    from fishr_exp.reports.tables.table import build_tables

    runs = _read(folder)
    if not runs.done:
        raise ConfigError(
            "DIR",
            folder,
            f"it contains no completed run ({_count(runs)})",
            "start runs with fishr-exp, or pass the folder that contains them",
        )
    tables = build_tables(runs.done)
    sheets = [table_sheet(table) for table in tables]
    files = _write(sheets, out, "table", tables)
    report = [*_report(runs), *_about_figures(tables)]
    try:
        files += [f"  {file}" for file in draw_curves(tables, out / "curves")]
    except (OSError, ValueError) as error:
        report.append(f"No curves: {error}")
    _say(sheets, printed, report, files)


def _make_comparison(options: argparse.Namespace) -> None:
    from fishr_exp.reports.sheets.comparison_sheet import cells_sheet, comparison_sheet

    runs = _read(options.folder)
    tables, report = (
        _domainbed(options, runs)
        if options.protocol == "domainbed"
        else _colored_mnist(options, runs)
    )
    stem = "-".join(part for part in (options.protocol, tables[0].selection) if part)
    out = options.out or options.folder / "table"
    sheets = [comparison_sheet(table) for table in tables]
    cells = [sheet for sheet in map(cells_sheet, tables) if sheet.rows]
    files = _write(sheets, out, stem) + _write(cells, out, f"{stem}-cells", formats=("csv",))
    _say(cells if options.cells else sheets, options.format, report, files)


def _domainbed(options: argparse.Namespace, runs: Runs) -> tuple[list[Comparison], list[str]]:
    from fishr_exp.reports.tables.domainbed import build_domainbed_tables, why_empty
    from fishr_exp.runs.history import read_histories

    found = read_histories(options.folder, runs.done)
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
    selection = options.selection or SELECTIONS[0]
    tables = build_domainbed_tables(found.runs, selection, options.published)
    if all(table.is_empty for table in tables):
        raise why_empty(found.runs, selection)
    return tables, report


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


def _read(folder: Path) -> Runs:
    from fishr_exp.runs.reading import read_runs

    try:
        return read_runs(folder)
    except OSError as error:
        raise ConfigError(
            "DIR",
            folder,
            f"this folder cannot be read ({error.strerror})",
            "pass the folder that contains the run folders, such as outputs/runs",
        ) from error


def _say(
    sheets: Sequence[Sheet], printed: str, report: Sequence[str], files: Sequence[str]
) -> None:
    from fishr_exp.reports.sheets.sheet import FORMATS

    sys.stdout.write(FORMATS[printed](sheets))
    sys.stdout.flush()
    # If a program may read the table, the report about it goes to stderr.
    stream = sys.stdout if printed == "text" else sys.stderr
    stream.write("\n".join(["", *report, "Wrote:", *files]) + "\n")


def _write(
    sheets: Sequence[Sheet],
    out: Path,
    stem: str,
    figures: Sequence[Table] = (),
    formats: Sequence[str] = tuple(SUFFIXES),
) -> list[str]:
    """Write the files and return their names, one per line."""
    from fishr_exp.reports.sheets.sheet import FORMATS
    from fishr_exp.runs.files import write_atomically

    files = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in formats:
            files.append(out / f"{stem}.{SUFFIXES[name]}")
            write_atomically(files[-1], FORMATS[name](sheets))
        for number, table in enumerate(figures, start=1):
            from fishr_exp.reports.figures.gamma import draw

            files += draw(table, out / _figure_name(table, number, len(figures)))
    except OSError as error:
        raise ConfigError(
            "--out",
            out,
            f"this folder cannot be written ({error.strerror or error})",
            "pass another folder with --out",
        ) from error
    return [f"  {file}" for file in files]


def _figure_name(table: Table, number: int, of: int) -> str:
    if of == 1:
        return "figure"
    name = re.sub(r"[^\w-]+", "-", "-".join([table.dataset, *table.test_domains]))
    return f"figure-{number}-{name}"


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


def _about_figures(tables: Sequence[Table]) -> list[str]:
    from fishr_exp.reports.figures.gamma import varies_gamma

    return [
        f"Gamma does not vary in {table.title}: its figure shows one point per row."
        for table in tables
        if not varies_gamma(table)
    ]


if __name__ == "__main__":
    sys.exit(main())
