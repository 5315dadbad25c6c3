"""`fishr-diagnostics`: draws the diagnostics of a run with `diagnostics=true`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fishr_exp.cli.output import Parser, as_folder, command
from fishr_exp.core.errors import ConfigError


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 where a run could not be drawn."""
    parser = Parser(
        prog="fishr-diagnostics",
        description="Draw the norms and distances of the domains' gradient variances, the share of"
        " the penalty in the objective, and the cosine between the gradients of risk and penalty,"
        " over the steps of a run that was started with diagnostics=true.",
    )
    parser.add_argument("runs", type=as_folder, nargs="+", metavar="RUN", help="a run folder")
    options = parser.parse_args(arguments)
    status = 0
    for folder in options.runs:
        try:
            files = _draw(folder)
        except ConfigError as error:
            sys.stderr.write(f"fishr-diagnostics: {error}\n")
            status = 2
        else:
            sys.stdout.writelines(f"{file}\n" for file in files)
    return status


def _draw(folder: Path) -> list[Path]:
    from fishr_exp.reports.figures.diagnostics import PANELS, draw_diagnostics, series
    from fishr_exp.runs.content import START_AGAIN, UnreadableError, anything, count, mapping, take
    from fishr_exp.runs.records import parse_evaluations
    from fishr_exp.runs.run_folder import CONFIG, RECORDS, RunFolder

    if not ((folder / CONFIG).exists() and (folder / RECORDS).exists()):
        reason = f"is not a run folder (no {CONFIG} and {RECORDS} in it)"
        raise ConfigError("RUN", folder, reason, "pass one")
    try:
        records, config = parse_evaluations(folder / RECORDS), RunFolder(folder).config()
        trainer: dict[str, Any] = take(config, "trainer", mapping(anything), {})
        anneal_steps = take(trainer, "anneal_steps", count, 0)
    except UnreadableError as error:
        raise ConfigError("RUN", folder, error.allowed, START_AGAIN) from error
    except ValueError as error:
        raise ConfigError("RUN", folder, f"{CONFIG} is damaged: {error}", START_AGAIN) from error
    if not series(records).keys() & PANELS.keys():
        raise ConfigError(
            "RUN",
            folder,
            "has no recorded diagnostics",
            "run it with diagnostics=true, and with resume=false if it is done",
        )
    try:
        return draw_diagnostics(
            records, folder.resolve().name, anneal_steps, folder / "diagnostics"
        )
    except OSError as error:
        reason = f"this folder cannot be written ({error.strerror or error})"
        raise ConfigError("RUN", folder, reason, "use a copy of it") from error


if __name__ == "__main__":
    sys.exit(main())
