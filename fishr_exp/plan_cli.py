"""`fishr-sweep-plan`: how many runs a sweep has, what is done, and what the rest will cost."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tabulate import tabulate
from tqdm import tqdm

from fishr_exp.baseline import AddBaseline
from fishr_exp.cli import claim_optuna, register_run_name
from fishr_exp.config import arguments, conf_dir
from fishr_exp.errors import ConfigError
from fishr_exp.mistakes import before_the_run, one_line
from fishr_exp.results.run_folder import RunFolder
from fishr_exp.runs.identity import settings

if TYPE_CHECKING:
    from fishr_exp.probe import Costs

SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
STATES = {"done": "done", "running": "half-done", "failed": "failed", "planned": "missing"}


class MistakesError(Exception):
    """What is wrong with runs of the sweep: each mistake, and the runs that it is in."""

    def __init__(self, runs: Mapping[str, Sequence[str]]) -> None:
        super().__init__(runs)
        self.runs = runs

    def lines(self) -> list[str]:
        """A line for each mistake, with the first run that has it."""
        more = {m: f" and {len(runs) - 1} more" * (len(runs) > 1) for m, runs in self.runs.items()}
        return [f"{m} (in: {runs[0]}{more[m]})" for m, runs in self.runs.items()]


@dataclass(frozen=True)
class Job:
    """One run of the sweep."""

    overrides: str  # that the sweep varies
    folder: Path
    labels: Mapping[str, str]
    arguments: Mapping[str, Any]  # of `run`, checked
    state: str  # of `STATES`
    step: int  # that its records reach
    steps_per_epoch: int = 0  # known when its dataset is

    @property
    def settings(self) -> dict[str, Any]:
        """The flat settings."""
        return settings(self.arguments["config"])

    @property
    def cost_key(self) -> tuple[object, ...]:
        """What runs have in common that cost alike: all parts, and what the method computes."""
        words = {k: v for k, v in self.settings.items() if k.startswith("trainer.")}
        kinds = [f"{k}={v}" for k, v in sorted(words.items()) if not _is_number(v)]
        return (*self.labels.values(), *kinds)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 for a mistake in what was asked."""
    parser = argparse.ArgumentParser(
        prog="fishr-sweep-plan",
        description="Compose every run of a sweep as `fishr-exp -m OVERRIDE ...` would, check it,"
        " and estimate time and disk from a few steps of one run a method. Nothing is written.",
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="taken for granted")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for fishr-exp")
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    register_run_name()
    claim_optuna()
    try:
        jobs = compose(options.overrides)
        jobs = _sized(jobs)
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


def compose(overrides: Sequence[str]) -> list[Job]:
    """Return all runs of the sweep, each once, in their order.

    Raises:
        MistakesError: If runs are not as they must be.
    """
    jobs: dict[Path, Job] = {}
    mistakes: dict[str, list[str]] = {}
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        inner = GlobalHydra.instance().hydra
        assert inner is not None
        config = inner.compose_config("config", list(overrides), RunMode.MULTIRUN)
        AddBaseline().on_multirun_start(config)
        runs = _split(config, inner.config_loader)
        for words in tqdm(runs, desc="composing", unit="run", disable=None, leave=False):
            varied = " ".join(w for w in words if w not in overrides) or " ".join(words)
            try:
                job = _job(inner.config_loader.load_sweep_config(config, words), varied)
            except Exception as error:
                if (message := one_line(error)) is None:
                    raise
                mistakes.setdefault(message, []).append(varied)
            else:
                jobs.setdefault(job.folder, job)
    if mistakes:
        raise MistakesError(mistakes)
    return list(jobs.values())


def _split(config: DictConfig, loader: Any) -> list[list[str]]:
    """Return the overrides of every run, as Hydra's own sweeper makes them."""
    sweeper = config.hydra.sweeper
    if sweeper.get("_target_") != SWEEPER:
        reason = "this sweeper chooses its runs as it goes, so there is no plan of them"
        raise ConfigError("hydra/sweeper", sweeper.get("_target_"), reason, "leave it out")
    words = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    words += OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # type: ignore[arg-type]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(words)
    return BasicSweeper.split_arguments(parsed, None)[0]


def _job(config: DictConfig, varied: str) -> Job:
    choices = config.hydra.runtime.choices
    folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    checked = arguments(own)
    # What the parts refuse: a gamma below 0, say.
    checked["trainer"](loss=checked["loss"]())
    checked["observer"]()
    there = RunFolder(folder)
    records = there.records()
    return Job(
        overrides=varied,
        folder=folder,
        labels={group: choices[group] for group in ("dataset", "model", "trainer")},
        arguments=checked,
        state=there.state if checked["resume"] else "planned",
        step=records[-1]["step"] if records and checked["resume"] else 0,
    )


def _sized(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with the steps of their epochs; each dataset is built once.

    Raises:
        ConfigError: If a dataset lacks a test domain.
    """
    known: dict[str, dict[str, int]] = {}
    sized = []
    for job in jobs:
        data = {k: v for k, v in job.settings.items() if k.startswith("dataset.")}
        name = str(sorted((k, v) for k, v in data.items() if not k.endswith(".seed")))
        if name not in known:
            domains = job.arguments["dataset"]().by_name
            known[name] = {name: len(domain) for name, domain in domains.items()}
        sizes, test_domains = known[name], job.arguments["test_domains"]
        unknown = [d for d in test_domains if d not in sizes]
        if unknown:
            reason = f"{job.labels['dataset']} has no domain {unknown[0]}"
            mend = f"choose from {', '.join(sizes)}"
            raise ConfigError("test_domains", f"[{', '.join(test_domains)}]", reason, mend)
        batch_size, holdout = job.arguments["batch_size"], job.arguments["holdout_fraction"]
        training = [n - int(holdout * n) for d, n in sizes.items() if d not in test_domains]
        per_pass = 1 if batch_size is None else min(training, default=0) // batch_size
        steps = job.arguments["steps_per_epoch"] or max(1, per_pass)
        sized.append(dataclasses.replace(job, steps_per_epoch=steps))
    return sized


def _counts(jobs: Sequence[Job]) -> str:
    states = Counter(job.state for job in jobs)
    said = ", ".join(f"{states[state]} {word}" for state, word in STATES.items() if states[state])
    where = ", ".join(sorted({str(job.folder.parent) for job in jobs}))
    return f"{len(jobs)} run{'s' * (len(jobs) != 1)} in {where}: {said}. All are well configured."


def _estimate(jobs: Sequence[Job]) -> str:
    """Probe a run of each kind; return the estimate in words."""
    import torch

    from fishr_exp.probe import probe

    rows, total, size = [], 0.0, 0
    for alike in _kinds(jobs):
        dearest = max(alike, key=_dearness)
        costs = probe(dearest.arguments, dearest.labels)
        seconds = [_seconds(job, costs) for job in alike]
        total += sum(seconds)
        size += sum(costs.bytes(_evaluations(job)) for job in alike)
        words = [*dearest.labels.values()]
        words[-1] += "".join(f" {word}" for word in _apart(dearest, jobs))
        steps = max(_steps(job) for job in alike)
        rows.append(
            [
                *words,
                len(alike),
                steps,
                f"{1000 * costs.step:.3g} ms",
                _time(costs.evaluation),
                _time(max(seconds)),
            ]
        )
    headers = ["dataset", "model", "trainer", "to do", "steps", "a step", "evaluation", "a run"]
    table = tabulate(rows, headers, disable_numparse=True, stralign="left")
    threads = torch.get_num_threads()
    place = _existing(jobs[0].folder)
    device = "cuda" if torch.cuda.is_available() else f"CPU, {threads} thread{'s' * (threads != 1)}"
    return (
        f"\n{table}\n\nTo do: about {_time(total)} on this machine ({device}), one run after"
        f" another, and {_size(size)} of disk; {_size(shutil.disk_usage(place).free)} are free.\n"
        "Measured in a few steps and one evaluation of one run a line, the one with the largest"
        " minibatches and gamma; early stopping makes it less. MLflow's database is not counted.\n"
    )


def _kinds(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    kinds: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        kinds.setdefault(job.cost_key, []).append(job)
    yield from kinds.values()


def _apart(job: Job, jobs: Sequence[Job]) -> list[str]:
    """Return the settings of its method that set a job's kind apart from others of that name."""
    alike = [other.cost_key for other in jobs if other.labels == job.labels]
    shared = set(alike[0]).intersection(*alike)
    return [str(word).removeprefix("trainer.") for word in job.cost_key if word not in shared]


def _dearness(job: Job) -> tuple[float, float]:
    batch = job.arguments["batch_size"]
    return (float("inf") if batch is None else batch, job.settings.get("trainer.gamma", 0.0))


def _seconds(job: Job, costs: Costs) -> float:
    steps = _steps(job)
    gamma = job.settings.get("trainer.gamma")
    anneal_steps = steps if gamma == 0 else job.settings.get("trainer.anneal_steps", 0)
    first = min(job.step, steps)
    return costs.seconds(first, steps, anneal_steps, _evaluations(job, first))


def _evaluations(job: Job, first: int = 0) -> int:
    return -(-(_steps(job) - first) // job.steps_per_epoch)


def _steps(job: Job) -> int:
    total = job.arguments.get("total_steps")
    return total if total is not None else job.arguments["epochs"] * job.steps_per_epoch


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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_hydras(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in ("hydra", "omegaconf")


if __name__ == "__main__":
    sys.exit(main())
