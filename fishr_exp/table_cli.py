"""`fishr-table`: tables and figures from the run folders under a folder."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fishr_exp.errors import ConfigError

if TYPE_CHECKING:
    from fishr_exp.results.runs import Runs
    from fishr_exp.results.table import Table

SUFFIXES = {"markdown": "md", "latex": "tex", "csv": "csv"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 for a mistake in what was asked."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without ± still shows the rest
    try:
        _make_table(options.folder, options.out or options.folder / "table", options.format)
    except ConfigError as error:
        sys.stderr.write(f"fishr-table: {error}\n")
        return 2
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; the files are written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fishr-table",
        description="Mean accuracy and standard error over seeds of the runs under DIR, as a table"
        " for each dataset and choice of test domains, and figures of accuracy over gamma.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with run folders in it")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where table.md, table.tex, table.csv, figure.pdf and figure.png go"
        " (default: DIR/table)",
    )
    parser.add_argument(
        "--format",
        choices=["text", *SUFFIXES],
        default="text",
        help="what is printed (default: text); all are written",
    )
    return parser


def _make_table(folder: Path, out: Path, printed: str) -> None:
    from fishr_exp.results.runs import read_runs
    from fishr_exp.results.table import build_tables
    from fishr_exp.results.table_formats import FORMATS

    try:
        runs = read_runs(folder)
    except OSError as error:
        raise ConfigError(
            "DIR",
            folder,
            f"this folder cannot be read ({error.strerror})",
            "give the folder that holds the run folders, such as outputs/runs",
        ) from error
    if not runs.done:
        raise ConfigError(
            "DIR",
            folder,
            f"no run under it is done ({_count(runs)})",
            "start runs with fishr-exp, or give the folder that holds them",
        )
    tables = build_tables(runs.done)
    files = _write(tables, out)
    sys.stdout.write(FORMATS[printed](tables))
    sys.stdout.flush()
    # What is said about a table goes elsewhere when the table may be read by a program.
    said = sys.stdout if printed == "text" else sys.stderr
    said.write("\n".join(["", *_report(runs), *_about_figures(tables), "Wrote:", *files]) + "\n")


def _write(tables: Sequence[Table], out: Path) -> list[str]:
    """Write all files and return their names, one a line."""
    from fishr_exp.results.figure import draw
    from fishr_exp.results.run_folder import write_atomically
    from fishr_exp.results.table_formats import FORMATS

    try:
        out.mkdir(parents=True, exist_ok=True)
        files = []
        for name, suffix in SUFFIXES.items():
            files.append(out / f"table.{suffix}")
            write_atomically(files[-1], FORMATS[name](tables))
        for number, table in enumerate(tables, start=1):
            files += draw(table, out / _figure_name(table, number, len(tables)))
    except OSError as error:
        raise ConfigError(
            "--out",
            out,
            f"this folder cannot be written ({error.strerror or error})",
            "give another folder with --out",
        ) from error
    return [f"  {file}" for file in files]


def _figure_name(table: Table, number: int, of: int) -> str:
    if of == 1:
        return "figure"
    words = re.sub(r"[^\w-]+", "-", "-".join([table.dataset, *table.test_domains]))
    return f"figure-{number}-{words}"


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
    from fishr_exp.results.figure import varies_gamma

    return [
        f"Gamma does not vary in {table.title}: its figure shows one point a row."
        for table in tables
        if not varies_gamma(table)
    ]


if __name__ == "__main__":
    sys.exit(main())
