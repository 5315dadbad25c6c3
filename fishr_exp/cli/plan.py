"""`fishr-sweep-plan`: how many runs a sweep has, what is done, and what the rest will cost."""

from __future__ import annotations

import logging
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from fishr_exp.cli.output import Parser, command
from fishr_exp.configuration.command_line import quoted
from fishr_exp.configuration.messages import before_the_run, one_line
from fishr_exp.configuration.mistakes import MistakesError
from fishr_exp.configuration.permissions import permissions_of
from fishr_exp.configuration.planning import Job, compose
from fishr_exp.configuration.starting import prefer_own_sweepers, register_run_name
from fishr_exp.core.quiet import without_warnings

if TYPE_CHECKING:
    from fishr_exp.cli.probe import Costs

STATES = {"done": "done", "running": "half-done", "failed": "failed", "planned": "missing"}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 for a mistake in what was asked."""
    parser = Parser(
        prog="fishr-sweep-plan",
        description="Compose every run of a sweep as `fishr-exp -m OVERRIDE ...` would, check it,"
        " and estimate time and disk from a few steps of one run per method. Nothing is written.",
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="accepted, and implied")
    parser.add_argument("-cd", "--config-dir", metavar="DIR", help="as for fishr-exp")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for fishr-exp")
    options = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    register_run_name()
    prefer_own_sweepers()
    try:
        with permissions_of(options.overrides):
            jobs = compose(quoted(options.overrides), options.config_dir)
        sys.stdout.write(f"{_counts(jobs)}\n")
        todo = [job for job in jobs if job.state != "done"]
        if todo:
            sys.stdout.flush()  # before the probe takes its time
            sys.stdout.write(_estimate(todo))
    except MistakesError as error:
        sys.stderr.writelines(f"fishr-sweep-plan: {line}\n" for line in error.lines())
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        message = one_line(error)
        if message is None and not _is_hydras(error):
            raise
        sys.stderr.write(f"fishr-sweep-plan: {message or before_the_run(error)}\n")
        return 2
    return 0


def _counts(jobs: Sequence[Job]) -> str:
    states = Counter(job.state for job in jobs)
    counts = ", ".join(f"{states[state]} {word}" for state, word in STATES.items() if states[state])
    where = ", ".join(sorted({str(job.folder.parent) for job in jobs}))
    return f"{len(jobs)} run{'s' * (len(jobs) != 1)} in {where}: {counts}. All are well configured."


def _estimate(jobs: Sequence[Job]) -> str:
    """Probe a run of each kind; return the estimate as text."""
    import torch

    from fishr_exp.cli.probe import probe

    rows, total, size = [], 0.0, 0
    for equal in _kinds(jobs):
        costliest = max(equal, key=_cost_order)
        with without_warnings():
            costs = probe(costliest.arguments)
        seconds = [_seconds(job, costs) for job in equal]
        total += sum(seconds)
        size += sum(costs.bytes(job.evaluations) for job in equal)
        names = [*costliest.labels.values()]
        names[-1] += "".join(f" {setting}" for setting in _distinguishing(costliest, jobs))
        steps = max(job.steps for job in equal)
        rows.append(
            [
                *names,
                len(equal),
                steps,
                f"{1000 * costs.step:.3g} ms",
                _time(costs.evaluation),
                _time(max(seconds)),
            ]
        )
    headers = ["dataset", "model", "trainer", "to do", "steps", "per step", "evaluation", "per run"]
    table = tabulate(rows, headers, disable_numparse=True, stralign="left")
    threads = torch.get_num_threads()
    place = _existing(jobs[0].folder)
    sharing = [job for job in jobs if job.shared > job.step]
    taken = "" if not sharing else f" {len(sharing)} of them take over steps that others make."
    device = "cuda" if torch.cuda.is_available() else f"CPU, {threads} thread{'s' * (threads != 1)}"
    return (
        f"\n{table}\n\nTo do: about {_time(total)} on this machine ({device}), one run after"
        f" another, and {_size(size)} of disk; {_size(shutil.disk_usage(place).free)} are free."
        f"{taken}\n"
        "Measured in a few steps and one evaluation of one run per line, the one with the largest"
        " minibatches and gamma; early stopping shortens it. MLflow's database is not counted.\n"
    )


def _kinds(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    kinds: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        kinds.setdefault(job.cost_key, []).append(job)
    yield from kinds.values()


def _distinguishing(job: Job, jobs: Sequence[Job]) -> list[str]:
    """Return the settings of its method that distinguish a job's kind from others of that name."""
    keys = [other.cost_key for other in jobs if other.labels == job.labels]
    shared = set(keys[0]).intersection(*keys)
    return [str(word).removeprefix("trainer.") for word in job.cost_key if word not in shared]


def _cost_order(job: Job) -> tuple[float, float]:
    batch = job.arguments.batch_size
    sizes = [*batch.values()] if isinstance(batch, Mapping) else [batch]
    return (max(float("inf") if size is None else size for size in sizes), job.gamma or 0.0)


def _seconds(job: Job, costs: Costs) -> float:
    anneal_steps = job.steps if job.gamma == 0 else job.anneal_steps
    first = min(max(job.step, job.shared), job.steps)
    return costs.seconds(first, job.steps, anneal_steps, job.evaluations_from(first))


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _time(seconds: float) -> str:
    """Write a time with the two units that say most."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _is_hydras(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in ("hydra", "omegaconf")


if __name__ == "__main__":
    sys.exit(main())
