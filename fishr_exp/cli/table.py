"""`fishr-table`: tables and figures from the run folders under a folder."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence

from fishr_exp.cli.output import Parser, as_folder, command
from fishr_exp.cli.tables import (
    SELECTIONS,
    make_comparison,
    make_single_source,
    make_table,
    published_list,
)
from fishr_exp.core.errors import ConfigError

FORMATS = ("text", "markdown", "latex", "csv")
PROTOCOLS = ("domainbed", "colored_mnist", "single_source")
TRACED = ("domainbed", "colored_mnist")  # whose cells `--cells` traces to runs
DEFAULT_SOURCES = ("domainbed", "fishr")  # of a bare --published beside others
ACCURACY = "accuracy"  # the metric of a table without --metric


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 for a configuration error."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # for terminals without ±
    if options.published == ["list"]:
        sys.stdout.write(published_list())
        return 0
    _read_published(options)
    if options.folder is None:
        parser.error("the following arguments are required: DIR")
    try:
        _check(options)
        if options.watch:
            from fishr_exp.cli.watch import watch

            watch(options)
        elif options.protocol is None:
            make_table(options)
        elif options.protocol == "single_source":
            make_single_source(options)
        else:
            make_comparison(options)
    except ConfigError as error:
        sys.stderr.write(f"fishr-table: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fishr-table",
        description="Mean accuracy and standard error over seeds of the runs under DIR, as a table"
        " for each dataset and choice of test domains, and figures of accuracy over gamma,"
        " and over the steps. With --protocol, the tables of a benchmark, with a verdict against"
        " the published figures.",
    )
    parser.add_argument(
        "folder", nargs="?", type=as_folder, metavar="DIR", help="folder that contains run folders"
    )
    parser.add_argument(
        "--out",
        type=as_folder,
        metavar="DIR",
        help="where table.md, table.tex, table.csv and the figures are written, or"
        " PROTOCOL[-SELECTION].md and so on (default: DIR/table)",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="text",
        help="what is printed (default: text); all are written",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="domainbed: one table per dataset, and the averages; also reads results.jsonl files"
        " of DomainBed. colored_mnist: the table of the IRM setup. single_source: runs trained on"
        " one domain and tested on all others",
    )
    parser.add_argument(
        "--selection",
        choices=SELECTIONS,
        help="how domainbed selects hyperparameters and checkpoint (default: training)",
    )
    parser.add_argument(
        "--published",
        action="append",
        nargs="?",
        const="",
        metavar="NAME,...",
        help="add rows of published tables to domainbed's: those of DomainBed and Fishr, or of the"
        " sources named, such as miro,swad; `--published list` lists them, without DIR",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="show the table, and again as runs come in, until Ctrl-C; nothing is written",
    )
    parser.add_argument(
        "--cells",
        action="store_true",
        help="print the runs behind each cell of a protocol's tables, not the tables",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="count only runs with this value, or one of several: seed=0,1. KEY is a key of the"
        " configuration, or method, dataset, model, trainer; can be given several times",
    )
    parser.add_argument(
        "--metric",
        default=ACCURACY,
        metavar="NAME",
        help="make the table of all runs of another metric that the runs recorded (metrics=[...]):"
        " macro_f1, worst_class, balanced_accuracy; the files' names end in it",
    )
    _add_layout(parser)
    return parser


def _add_layout(parser: argparse.ArgumentParser) -> None:
    shown = parser.add_argument_group(
        "for a paper", "what text, Markdown and LaTeX show; the CSV holds everything"
    )
    shown.add_argument(
        "--columns",
        type=_list,
        default=[],
        metavar="NAME,...",
        help="show these columns, in this order: by header, as minus90, or test, delta, interval",
    )
    shown.add_argument(
        "--rows",
        type=_list,
        default=[],
        metavar="NAME,...",
        help="show these rows, in this order: ERM,Fishr, or with the next cells: 'Fishr 100'",
    )
    shown.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="another name for a method, column, dataset or domain, in the figures as well; can be"
        " given several times",
    )
    shown.add_argument(
        "--all-figures",
        action="store_true",
        help="also draw figures with more curves or rows than can be read, which takes minutes",
    )
    shown.add_argument(
        "--bold-best",
        action="store_true",
        help="the highest accuracy of each test domain in bold, in Markdown and LaTeX",
    )


def _read_published(options: argparse.Namespace) -> None:
    """Turn what `--published` was given into names: none for its default, null without it.

    A folder after it is DIR, if there is no other: `fishr-table --published DIR`.
    """
    if options.published is None:
        return
    words = options.published
    if options.folder is None and words[-1] and as_folder(words[-1]).is_dir():
        options.folder, words = as_folder(words[-1]), [*words[:-1], ""]
    names = [name for word in words for name in (_list(word) or DEFAULT_SOURCES)]
    bare = not any(words)
    options.published = [] if bare else list(dict.fromkeys(names))


def _check(options: argparse.Namespace) -> None:
    """Refuse options that would have no effect."""
    if options.selection and options.protocol != "domainbed":
        raise ConfigError(
            "--selection",
            options.selection,
            "only domainbed has a selection",
            "add --protocol domainbed",
        )
    if options.published is not None and options.protocol != "domainbed":
        reason = "only domainbed adds rows; colored_mnist shows published figures anyway"
        given = ",".join(options.published) or "given"
        raise ConfigError("--published", given, reason, "add --protocol domainbed")
    if options.cells and options.protocol not in TRACED:
        reason = "only the tables of these protocols are traced to their runs"
        raise ConfigError("--cells", "given", reason, f"add --protocol {' or '.join(TRACED)}")
    if options.all_figures and (options.protocol or options.watch):
        other = "--watch" if options.watch else "--protocol"
        reason = f"figures are of the table of all runs, and {other} draws none"
        raise ConfigError("--all-figures", "given", reason, "leave one of the two out")
    if options.metric != ACCURACY and options.protocol:
        reason = "the tables of a protocol are of accuracy"
        raise ConfigError("--metric", options.metric, reason, "leave one of the two out")
    layout = {
        "--columns": options.columns,
        "--rows": options.rows,
        "--bold-best": options.bold_best,
    }
    for option, value in layout.items():
        if value and options.cells:
            reason = "--cells prints the runs behind the cells, which it does not change"
            given = ",".join(value) if isinstance(value, list) else "given"
            raise ConfigError(option, given, reason, "leave one of the two out")


def _list(text: str) -> list[str]:
    """Return the items of a comma-separated list; an item with a comma is in double quotes."""
    items = next(csv.reader([text], skipinitialspace=True), [])
    return [item.strip() for item in items if item.strip()]


if __name__ == "__main__":
    sys.exit(main())
