"""`fishr-diagnostics`: draws the diagnostics of a run with `diagnostics=true`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fishr_exp.cli.output import add_version, command
from fishr_exp.core.errors import ConfigError


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 for a configuration error."""
    parser = argparse.ArgumentParser(
        prog="fishr-diagnostics",
        description="Draw the norms and distances of the domains' gradient variances, the share of"
        " the penalty in the objective, and the cosine between the gradients of risk and penalty,"
        " over the steps of a run that was started with diagnostics=true.",
    )
    add_version(parser)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder")
    options = parser.parse_args(arguments)
    try:
        for folder in options.runs:
            for file in _draw(folder):
                sys.stdout.write(f"{file}\n")
    except ConfigError as error:
        sys.stderr.write(f"fishr-diagnostics: {error}\n")
        return 2
    return 0


def _draw(folder: Path) -> list[Path]:
    from fishr_exp.reports.figures.diagnostics import draw_diagnostics
    from fishr_exp.runs.run_folder import CONFIG, RECORDS, parse_records

    try:
        records = parse_records(folder / RECORDS)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("RUN", folder, f"is not a run folder ({error})", "pass one") from error
    if not any("diagnostics" in record for record in records):
        raise ConfigError(
            "RUN",
            folder,
            "has no recorded diagnostics",
            "run it with diagnostics=true, and with resume=false if it is done",
        )
    trainer = config.get("trainer") or {}
    try:
        return draw_diagnostics(
            records, folder.resolve().name, trainer.get("anneal_steps", 0), folder / "diagnostics"
        )
    except OSError as error:
        reason = f"this folder cannot be written ({error.strerror or error})"
        raise ConfigError("RUN", folder, reason, "use a copy of it") from error


if __name__ == "__main__":
    sys.exit(main())
