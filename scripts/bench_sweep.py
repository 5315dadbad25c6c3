"""What a sweep costs beside its steps, and what runs save that share steps.

    python scripts/bench_sweep.py [PART ...] [--mnist DIR] [--before DIR] [--markdown FILE]

Every figure is of a whole command in a process of its own, with `OMP_NUM_THREADS=1`. The ways that
are compared take turns. `wall` and `CPU` (user and system) are seconds, medians over the rounds;
a ratio is the median over the rounds of the ratio to the first way in the same round. `before` is
an earlier version, where the path of a checkout is given.

- `shared`: a sweep over gamma with `share_steps=false` and `true`, into empty folders. `steps` are
  those that were made. Whether records and results of both are equal, without times, is checked.
- `restart`: the command of a sweep whose runs are all done, given again. The runs are made up:
  folders of the right names, of which one was trained. `no index` has to compose each run, since
  nothing is noted yet of what was composed before. Hydra's own sweeper and the version before
  compose and launch every run; they are measured on the smallest sweep only.
- `table`: `fishr-table` on the same runs; `peak` is the most memory that it held.
- `plan`: `fishr-sweep-plan` of 720 runs.
- `slurm`: the time from the command to the return of the last `sbatch`, on a real Slurm. Shared
  steps are submitted first, and the runs that depend on them as a second array.
- `start`: single commands, and `make run`: the sweep and the table, in an empty folder, with the
  first MLflow database.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from timed_commands import ROOT, Cost, Table, call, in_turns, seconds, times, verdict

# What is imported here is kept small: a process that this one starts counts its memory as its own.

HEADING = "## Sweeps"
INDEX = ".composed.json"  # what a sweep notes of the runs that it composed
QUICKSTART = ("experiment=quickstart", "tracker=none")
MNIST = (  # a tenth of the steps, a third of them shared as there, and fewer evaluations
    "experiment=gamma_colored_mnist", "tracker=none", "trainer.gamma=0,100,1000,10000,100000",
    "epochs=3", "steps_per_epoch=20", "trainer.anneal_steps=20", "evaluate_train=false",
)  # fmt: skip
SMALL = ("trainer.gamma=0,100", "seed=0,1", "epochs=2", "steps_per_epoch=20", "model.hidden=8",
         "trainer.anneal_steps=20", "observer=last_step", "tracker=none")  # fmt: skip
DONE = {21: (7, 3), 720: (40, 18), 5000: (250, 20)}  # runs: gammas, seeds
PLANNED = (40, 18)
RESTART_WITHIN = {720: 10.0, 5000: 30.0}  # seconds
TABLE_WITHIN = {5000: 5.0}
PLAN_WITHIN = 20.0
START_WITHIN = {"one run, no tracker": 0.6, "make run": 0.7}  # of the time before


def without_times(tree: Any) -> Any:
    """Leave out of a record or a result what is measured, and where steps came from."""
    if isinstance(tree, dict):
        return {
            key: without_times(value)
            for key, value in tree.items()
            if key not in ("time", "shared") and not key.startswith("seconds")
        }
    return [without_times(value) for value in tree] if isinstance(tree, list) else tree


def runs_of(sweep: Path) -> dict[str, dict[str, Any]]:
    """Return the records and the result of each run of a sweep that is done."""
    found = {}
    for path in sorted(sweep.glob("*/result.json")):
        records = (path.parent / "records.jsonl").read_text().splitlines()
        found[path.parent.name] = {
            "records": [json.loads(line) for line in records],
            "result": json.loads(path.read_text()),
        }
    return found


def steps_of(runs: Mapping[str, dict[str, Any]]) -> tuple[int, int]:
    """Return how many steps were made, and how many it were if each run made its own."""
    alone = sum(run["records"][-1]["step"] for run in runs.values())
    shared = sum((run["result"].get("shared") or {"steps": 0})["steps"] for run in runs.values())
    return alone - shared, alone


def shared_steps(options: argparse.Namespace, scratch: Path) -> list[Table]:
    """Compare sweeps with and without shared steps."""
    sweeps, notes, rows = {"quickstart": QUICKSTART}, [], []
    if options.mnist:
        sweeps["gamma_colored_mnist"] = (*MNIST, f"dataset.root={options.mnist.absolute()}")
    else:
        notes.append("gamma_colored_mnist is skipped: `--mnist DIR` names no folder of MNIST/raw.")
    for name, words in sweeps.items():

        def sweep(way: str, i: int, name: str = name, words: tuple[str, ...] = words) -> Cost:
            folder = scratch / f"{name}-{way}-{i}"
            given = ["-m", *words, f"share_steps={way}", f"output_dir={folder}"]
            return call("run", given, scratch)

        ways = {way: lambda i, way=way: sweep(way, i) for way in ("false", "true")}
        costs = in_turns(ways, options.sweeps)
        made = {
            way: [runs_of(scratch / f"{name}-{way}-{i}") for i in range(options.sweeps)]
            for way in ways
        }
        first = made["false"][0]
        for way in ways:
            steps, alone = steps_of(made[way][0])
            share = f"{steps} ({steps / alone:.2f})"
            rows.append([name, f"share_steps={way}", str(len(first)), share, *times(costs, way)])
        others = [*made["true"], *made["false"][1:]]
        notes.append(f"{name}: {how_equal(first, others)}")
    columns = ("sweep", "way", "runs", "steps", "wall, s", "CPU, s", "wall ratio", "CPU ratio")
    return [Table("Shared steps", columns, rows, notes)]


def how_equal(first: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """Say in how many runs the sweeps agree."""
    same = [
        name
        for name in first
        if all(without_times(other.get(name)) == without_times(first[name]) for other in others)
    ]
    unknown = {name for other in others for name in other} - set(first)
    if len(same) == len(first) and not unknown:
        return f"records and results, without times, are equal in all {len(same)} runs."
    return f"RECORDS OR RESULTS DIFFER in {len(first) - len(same) + len(unknown)} runs."


def numbers(count: int) -> list[str]:
    """Return gammas: 0, and then ten in each power of ten."""
    return ["0.0", *(str(float(f"{10 ** (k / 10):.4g}")) for k in range(count - 1))]


def made_up(count: int, scratch: Path) -> tuple[Path, list[str]]:
    """Return the folder of a sweep of made-up runs, and the words that it is made with."""
    folder, (gammas, seeds) = scratch / f"done-{count}", DONE[count]
    if not folder.exists():
        script = [str(Path(__file__).with_name("made_up_runs.py")), str(folder), str(count)]
        more = [f"--seeds={seeds}", "--gammas", *numbers(gammas)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run(
            [sys.executable, *script, *more], check=True, env=env, stdout=subprocess.DEVNULL
        )
    swept = [
        f"trainer.gamma={','.join(numbers(gammas))}", f"seed={','.join(map(str, range(seeds)))}"
    ]  # fmt: skip
    return folder, ["-m", "tracker=none", "epochs=2", *swept, f"output_dir={folder}"]


def restart(options: argparse.Namespace, scratch: Path) -> list[Table]:
    """Give the command of a sweep that is done again."""
    rows = []
    for count in options.counts:
        folder, words = made_up(count, scratch)
        runs = {path.name for path in folder.glob("[!.]*") if path.is_dir()}

        def again(*more: str, code: Path = ROOT, words: list[str] = words) -> Cost:
            return call("run", [*words, *more], scratch, code=code)

        (folder / INDEX).unlink(missing_ok=True)
        found = {"no index": [again()]}
        if f"{count} done before" not in (said := found["no index"][0].output):
            raise RuntimeError(f"runs were not found as done: {said[-1000:]}")
        found["index"] = [again() for _ in range(options.rounds)]
        if count == min(DONE):
            found["hydra/sweeper=basic"] = [again("hydra/sweeper=basic")]
            if options.before:
                found["before"] = [again(code=options.before)]
        if runs != {path.name for path in folder.glob("[!.]*") if path.is_dir()}:
            raise RuntimeError(f"runs were made in {folder}")
        for way, costs in found.items():
            wall, cpu = (median(getattr(cost, kind) for cost in costs) for kind in ("wall", "cpu"))
            bar = RESTART_WITHIN.get(count) if way == "index" else None
            rows.append([f"{count:,}", way, seconds(wall), seconds(cpu), verdict(wall, bar, " s")])
    return [Table("A done sweep again", ("runs", "way", "wall, s", "CPU, s", "aim"), rows)]


def table(options: argparse.Namespace, scratch: Path) -> list[Table]:
    """Make the tables of many runs."""
    rows = []
    for count in options.counts:
        folder, _ = made_up(count, scratch)
        costs = [call("table", [str(folder)], scratch) for _ in range(options.rounds)]
        wall, cpu = (median(getattr(cost, kind) for cost in costs) for kind in ("wall", "cpu"))
        peak = f"{max(cost.peak for cost in costs) / 2**20:.0f}"
        gammas, seeds = DONE[count]
        aim = verdict(wall, TABLE_WITHIN.get(count), " s")
        size = f"{gammas} × {seeds}"
        rows.append([f"{count:,}", size, seconds(wall), seconds(cpu), peak, aim])
    columns = ("runs", "gammas × seeds", "wall, s", "CPU, s", "peak, MiB", "aim")
    return [Table("fishr-table", columns, rows)]


def plan(options: argparse.Namespace, scratch: Path) -> list[Table]:
    """Plan a sweep of many runs."""
    del options
    gammas, seeds = PLANNED
    swept = [f"trainer.gamma={','.join(numbers(gammas))}", f"seed=range({seeds})"]
    cost = call("plan", [*QUICKSTART, *swept], scratch)
    aim = verdict(cost.wall, PLAN_WITHIN, " s")
    row = [f"{gammas * seeds:,}", seconds(cost.wall), seconds(cost.cpu), aim]
    return [Table("fishr-sweep-plan", ("runs", "wall, s", "CPU, s", "aim"), [row])]


def slurm(options: argparse.Namespace, scratch: Path) -> list[Table]:
    """Submit sweeps to Slurm."""
    title, real = "Slurm", shutil.which("sbatch")
    if real is None or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        return [Table(title, (), [], ["Skipped: there is no Slurm here."])]
    tools, log = scratch / "tools", scratch / "submitted"
    tools.mkdir(parents=True)
    wrapper = tools / "sbatch"  # the real one, and a line with the time of its return
    lines = ["#!/bin/sh", f'"{real}" "$@"', "status=$?", f'date +%s.%N >> "{log}"', "exit $status"]
    wrapper.write_text("\n".join(lines) + "\n")
    wrapper.chmod(0o755)
    env = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    rows = []

    def submit(name: str, runs: int, words: Sequence[str]) -> None:
        log.write_text("")
        started = time.time()
        cost = call("run", [*words, "hydra/launcher=submitit_slurm"], scratch, env=env)
        returned = [float(line) for line in log.read_text().split()]
        submitted = seconds(returned[-1] - started) if returned else ""
        rows.append([name, f"{runs:,}", str(len(returned)), submitted, seconds(cost.wall)])

    small = ["-m", *SMALL, f"output_dir={scratch / 'small'}"]
    submit("to be made", 4, small)
    submit("done", 4, small)
    count = options.counts[min(1, len(options.counts) - 1)]
    _, words = made_up(count, scratch)
    submit("done, no index of this command", count, words)
    submit("done", count, words)
    columns = ("sweep", "runs", "arrays submitted", "submitted after, s", "command, s")
    return [Table(title, columns, rows)]


def start(options: argparse.Namespace, scratch: Path) -> list[Table]:
    """Measure single commands and `make run`, beside the version before."""
    codes = {"before": options.before, "now": ROOT} if options.before else {"now": ROOT}
    commands: dict[str, Callable[[Path, Path], Cost]] = {
        "--help": lambda code, folder: call("run", ["--help"], folder, code=code),
        "one run, no tracker": lambda code, folder: call(
            "run", ["tracker=none"], folder, code=code
        ),
        "make run": lambda code, folder: (
            call("run", ["--multirun", "experiment=quickstart"], folder, code=code)
            + call("table", ["outputs/quickstart"], folder, code=code)
        ),
    }
    for code in codes.values():  # compiles it, once
        call("run", ["--help"], scratch, code=code)
    rows = []
    for name, command in commands.items():

        def one(version: str, i: int, command: Any = command, name: str = name) -> Cost:
            folder = scratch / f"start {name} {version} {i}".replace(" ", "-")
            return command(codes[version], folder)

        ways = {version: lambda i, version=version: one(version, i) for version in codes}
        costs = in_turns(ways, options.sweeps if name == "make run" else options.rounds)
        for version in codes:
            cells = times(costs, version)
            bar = START_WITHIN.get(name) if version == "now" and options.before else None
            aim = verdict(float(cells[2]), bar, "") if bar else ""
            rows.append([name, version, *cells, aim])
    columns = ("command", "version", "wall, s", "CPU, s", "wall ratio", "CPU ratio", "aim")
    return [Table("Start", columns, rows)]


PARTS: dict[str, Callable[[argparse.Namespace, Path], list[Table]]] = {
    "shared": shared_steps,
    "restart": restart,
    "table": table,
    "plan": plan,
    "slurm": slurm,
    "start": start,
}


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default all")
    add("--rounds", type=int, default=3, help="of short commands (default 3)")
    add("--sweeps", type=int, default=1, help="rounds of whole sweeps (default 1)")
    add("--counts", type=int, nargs="+", default=[*DONE], choices=DONE, help="runs of done sweeps")
    add("--mnist", type=Path, metavar="DIR", help="the folder that holds MNIST/raw")
    add("--before", type=Path, metavar="DIR", help="a checkout of an earlier version")
    add("--markdown", type=Path, metavar="FILE", help="write the section Sweeps of this page")
    options = parser.parse_args(argv)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    for name in ("before", "mnist"):
        path = getattr(options, name)
        if path is not None and not path.is_dir():
            parser.error(f"--{name} {path}: is not a folder")
        setattr(options, name, path and path.absolute())
    tables = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.parts or PARTS:
            for each in PARTS[name](options, Path(scratch)):
                tables.append(each)
                print(f"\n{each.show('simple')}\n", flush=True)
    from pages import explained, measured, write_section  # last: it needs much memory

    before = ""
    if options.before:
        given = ["git", "-C", str(options.before), "rev-parse", "--short", "HEAD"]
        found = subprocess.run(given, capture_output=True, text=True, check=False).stdout.strip()
        before = f" Before: commit {found or 'unknown'}."
    rounds = f"{options.rounds} rounds, {options.sweeps} of sweeps"
    head = measured("threads: 1", "float32", f"{os.cpu_count()} cores", rounds) + before
    print(head)
    if options.markdown:
        about = explained(__doc__, skip=2)
        pages = [HEADING, head, about, *(each.show("github") for each in tables)]
        write_section(options.markdown, "\n\n".join(pages))


if __name__ == "__main__":
    main()
