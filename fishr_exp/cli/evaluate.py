"""`fishr-eval`: what the network of a run does in every domain, of its own data or of others."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fishr_exp.cli.given_runs import read_done
from fishr_exp.cli.output import Parser, as_folder, command
from fishr_exp.configuration.messages import before_the_run, is_out_of_memory, one_line
from fishr_exp.configuration.permissions import permissions_of
from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.runs.identity import digest
from fishr_exp.runs.names import EVALUATIONS

if TYPE_CHECKING:
    from fishr_exp.runs.evaluated import EvaluatedRun
    from fishr_exp.runs.reading import Run

FORMATS = ("text", "markdown", "latex", "csv")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 for a mistake, 1 where it could not continue."""
    options = _parser().parse_intermixed_args(argv)
    # A folder may have an equals sign in its name.
    folders = [Path(w) for w in options.words if "=" not in w or Path(w).is_dir()]
    words = [w for w in options.words if "=" in w and not Path(w).is_dir()]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("fishr_exp").setLevel(logging.INFO)
    status = 0
    with permissions_of(words, options.allow_targets):
        try:
            runs = _runs(folders)
            with contextlib.ExitStack() as stack:
                names = _names(runs)
                sink = _sink(options.predictions, names, stack)
                for run in runs:
                    try:
                        several = options.out and len(runs) > 1
                        out = options.out / names[run.path] if several else options.out
                        _evaluate(run, words, options, out, sink)
                    except Exception as error:
                        if len(runs) == 1:
                            raise
                        status = max(status, _say(error))
        except KeyboardInterrupt:
            return 130
        except Exception as error:  # noqa: BLE001 - `_say` raises what is no mistake
            return _say(error)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fishr-eval",
        description="Evaluate the checkpoint that is the result of a run, in every domain: on the"
        " data of the run again, or on others with the same classes. Nothing is trained, and the"
        " files of the run stay as they are.",
    )
    add = parser.add_argument
    add(
        "words", nargs="+", metavar="RUN|OVERRIDE",
        help="run folders, or folders of runs; and overrides: dataset=NAME and dataset.KEY=VALUE"
        " for other data, device=, precision=, evaluation_batch_size=, num_workers=",
    )  # fmt: skip
    add(
        "--domains", type=lambda text: [name for name in text.split(",") if name], default=[],
        metavar="NAME,...", help="only these domains",
    )  # fmt: skip
    add(
        "--predictions", type=Path, metavar="FILE",
        help="write the prediction for every sample: a .csv, or a .parquet",
    )  # fmt: skip
    add(
        "--out", type=as_folder, metavar="DIR",
        help=f"where tables and figures are written (default: RUN/{EVALUATIONS}/DATASET); of "
        "several runs, each in a folder of its own there",
    )  # fmt: skip
    add(
        "--format", choices=FORMATS, default="text",
        help="what is printed (default: text); all are written",
    )  # fmt: skip
    parser.add_allow_targets()
    add("-cd", "--config-dir", metavar="DIR", help="as for fishr-exp")
    return parser


def _runs(folders: Sequence[Path]) -> list[Run]:
    if not folders:
        raise ConfigError("RUN", "", "is missing", "pass a run folder, such as outputs/runs/NAME")
    return read_done(folders, averages=True)


def _sink(path: Path | None, names: Mapping[Path, str], stack: contextlib.ExitStack) -> Any:
    """Open the file of the predictions, if there is to be one."""
    if path is None:
        return None
    from fishr_exp.reports.predictions import Predictions

    return stack.enter_context(Predictions(path, names))


def _names(runs: Sequence[Run]) -> dict[Path, str]:
    """Name each run by its folder; a second one of that name, in another folder, is NAME-2."""
    names: dict[Path, str] = {}
    for run in runs:
        own = run.path.resolve().name
        numbered = (own if number == 1 else f"{own}-{number}" for number in itertools.count(1))
        names[run.path] = next(name for name in numbered if name not in names.values())
    return names


def _evaluate(
    run: Run, words: Sequence[str], options: argparse.Namespace, out: Path | None, sink: Any
) -> None:
    """Evaluate a run, write its files, and print its tables."""
    from fishr_exp.configuration.evaluating import asked_arguments, changes_data
    from fishr_exp.configuration.recorded import recorded_arguments
    from fishr_exp.training.assessment import assess

    asked = asked_arguments(run, words, options.config_dir)
    found = assess(
        run,
        recorded_arguments(run),
        asked,
        other_data=changes_data(words),
        domains=options.domains,
        sink=sink,
    )
    if out is None:
        name = found.dataset if found.own else f"{found.dataset}-{digest(asked.config['dataset'])}"
        out = run.path / EVALUATIONS / name.replace("/", "_")
    _print(found, options.format, _write(found, out))


def _write(found: EvaluatedRun, out: Path) -> list[Path]:
    from fishr_exp.reports.figures.evaluation import draw_confusion, draw_reliability
    from fishr_exp.reports.output import explaining_os_errors, write
    from fishr_exp.reports.sheets.evaluation_sheet import (
        calibration_lines,
        classes_sheet,
        confusion_lines,
        domains_sheet,
    )
    from fishr_exp.runs.files import to_json, write_atomically

    files = write([domains_sheet(found)], out, "evaluation")
    for stem, sheet in (
        ("classes", classes_sheet(found)),
        ("confusion", confusion_lines(found)),
        ("calibration", calibration_lines(found)),
    ):
        files += write([sheet], out, stem, formats=("csv",))
    with explaining_os_errors(out):
        write_atomically(out / "evaluation.json", to_json(found.to_json()) + "\n")
        files.append(out / "evaluation.json")
        files += draw_confusion(found, out / "confusion")
        files += draw_reliability(found, out / "reliability")
    return files


def _print(found: EvaluatedRun, printed: str, files: Sequence[Path]) -> None:
    from fishr_exp.reports.sheets.evaluation_sheet import classes_sheet, domains_sheet
    from fishr_exp.reports.sheets.sheet import FORMATS as WRITERS
    from fishr_exp.reports.sheets.sheet import on_one_line

    sheets = [sheet for sheet in (domains_sheet(found), classes_sheet(found)) if sheet.rows]
    sys.stdout.write(f"{WRITERS[printed](sheets)}\n")
    sys.stdout.flush()
    stream = sys.stdout if printed == "text" else sys.stderr
    names = ", ".join(file.name for file in files)
    stream.write(f"{on_one_line(f'Wrote to {files[0].parent}: {names}')}\n\n")


def _say(error: Exception) -> int:
    """Print a mistake in one line, and return the exit status; raise what is none."""
    message = one_line(error)
    if message is None:
        if type(error).__module__.split(".")[0] not in ("hydra", "omegaconf"):
            raise error
        message = before_the_run(error)
    sys.stderr.write(f"fishr-eval: {message}\n")
    return 1 if isinstance(error, TrainingError) or is_out_of_memory(error) else 2


if __name__ == "__main__":
    sys.exit(main())
