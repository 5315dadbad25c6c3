"""`fishr-average`: averages the weights of runs with one start, as DiWA and model soups do."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from fishr_exp.cli.given_runs import read_done
from fishr_exp.cli.output import Parser, as_folder, command
from fishr_exp.configuration.messages import is_out_of_memory, one_line
from fishr_exp.configuration.permissions import permissions_of
from fishr_exp.configuration.recorded import recorded_arguments
from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.reading import Run

log = logging.getLogger(__name__)

HOW = ("uniform", "restricted")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 for a mistake, 1 where it could not continue."""
    parser = Parser(
        prog="fishr-average",
        description="Average the weights of runs that are done and have the same start, splits and"
        " network, evaluate the average on all domains, and write it as a run folder that"
        " fishr-table reads. The same average is not made twice.",
    )
    add = parser.add_argument
    add(
        "runs", type=as_folder, nargs="+", metavar="RUN",
        help="a run folder, or a folder of runs; averages among them are passed over",
    )  # fmt: skip
    add(
        "--how", choices=HOW, default=HOW[0],
        help="uniform: all of them. restricted: in descending order of validation accuracy, those"
        " with which the validation accuracy of the average is not lower",
    )  # fmt: skip
    add(
        "--out", type=as_folder, metavar="DIR",
        help="the folder in which the average gets its own; by default that of the first run",
    )  # fmt: skip
    parser.add_allow_targets()
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with permissions_of(names=options.allow_targets):
            runs = read_done(options.runs, averages=False)
            lines = _average(runs, options.how, options.out)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (message := one_line(error)) is None:
            raise
        sys.stderr.write(f"fishr-average: {message}\n")
        return 2 if isinstance(error, ConfigError) and not is_out_of_memory(error) else 1
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def _average(runs: Sequence[Run], how: str, out: Path | None) -> list[str]:
    """Average runs; return what to print."""
    from fishr_exp.training.members import Member, check_alike, folder_of
    from fishr_exp.training.soup import make_average

    members = [Member.of(run, recorded_arguments(run)) for run in runs]
    check_alike(members)
    folder = folder_of(members, how, out or runs[0].path.parent)
    result = make_average(members, how, folder)
    accuracies = [f"test {n} {100 * (a or 0):.1f} %" for n, a in result.test["accuracy"].items()]
    if (mean := result.scores.mean("accuracy", "validation")) is not None:
        accuracies.append(f"validation {100 * mean:.1f} %")
    return [f"{result.outline.method}: {', '.join(accuracies)}", str(folder)]


if __name__ == "__main__":
    sys.exit(main())
