"""Everything that needs a GPU, part by part, within a budget of time: `make gpu`.

- `tests`: those marked `gpu`.
- `table2`: the forty runs of Table 2, one after another, and again four at a time.
- `step`: time and memory of a training step in float32, in bfloat16, and compiled.
- `data`: images per second, and how long a step waits for its batch.
- `pacs`: ERM and Fishr on PACS at 96 and 224 pixels, three seeds.

Each part is made by processes of its own and has a limit of its own: one that fails, or takes too
long, does not affect the others. A part that does not fit into what is left of the budget is
skipped, and the summary names it. `OUT/docs` is laid out like `docs/` and is written after every
part, also as `OUT/gpu.tar.gz`; the output of the commands is in `OUT/logs`. Parts may be made by
several calls with the same OUT.

Python needs PyTorch, and can have the rest as wheels: `make gpu-kit`. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import gpu_parts
from gpu_work import ROOT, FailedError, SkippedError, Work, as_table, stand_ins

DATA = ("mnist", "pacs")
ROOM = 60.0  # seconds kept for the command that is ended last, and for the summary


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Attributes:
        make: Makes it, and returns what it came to as a line.
        most: Minutes that it may take.
        least: Minutes without which it is not begun.
        needs: The data that it reads.
    """

    make: Callable[[Work], str]
    most: float
    least: float
    needs: tuple[str, ...] = ()


PARTS = {  # in the order in which they are made; the last takes what is left
    "tests": Part(gpu_parts.tests, 4, 1),
    "table2": Part(gpu_parts.table2, 4, 1, ("mnist",)),
    "step": Part(gpu_parts.step, 7, 2),
    "data": Part(gpu_parts.data, 4, 1.5, ("pacs",)),
    "pacs": Part(gpu_parts.pacs, math.inf, 3, ("pacs",)),
}


def machine() -> dict[str, Any]:
    """Describe the machine; what cannot be imported is under `missing`."""
    missing = [name for name in gpu_parts.MODULES if importlib.util.find_spec(name) is None]
    if missing:
        return {"missing": missing, "text": "", "cuda": False}
    import torch

    import fishr_exp.cli.run  # noqa: F401 - all that a run needs can be imported
    from fishr_exp.runs.environment import environment

    cuda = torch.cuda.is_available()
    known = environment("cuda" if cuda else "cpu", torch.get_num_threads())
    found = [f"{name} {version}" for name, version in known["versions"].items()]
    parts = []
    if cuda:
        facts = torch.cuda.get_device_properties(0)
        gib = facts.total_memory / 2**30
        parts.append(f"{facts.name} ({gib:.0f} GiB), driver {gpu_parts.driver()}")
        parts.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    parts.append(f"{known['processor']}, {len(os.sched_getaffinity(0))} cores")
    commit = known["git_commit"]
    parts.append(f"commit {commit}" if commit else "no git checkout")
    return {"missing": [], "text": "; ".join([*parts, ", ".join(found)]), "cuda": cuda}


def install(wheels: Path, into: Path, python: str, log: Path) -> None:
    """Unpack wheels into a folder for PYTHONPATH; the given Python is left as it is.

    Raises:
        FailedError: If pip refuses.
    """
    shutil.rmtree(into, ignore_errors=True)
    names = sorted({path.name.partition("-")[0] for path in wheels.glob("*.whl")})
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               "--no-index", "--find-links", str(wheels), "--no-deps", "--no-compile", "--target",
               str(into), *names]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        version = ".".join(map(str, sys.version_info[:2]))
        raise FailedError(
            f"pip cannot install the wheels in {wheels}; see {log}. If one is not for this Python: "
            f'make gpu-kit WORDS="--pythons {version}"'
        )


def link(data: Path, into: Path) -> None:
    """Put a link to a folder of data into our folder; an archive of one is unpacked first, once.

    So runs name their data as on every other machine.
    """
    if not data.is_dir():
        folder = into.with_name(f"{into.name}.unpacked")
        if not folder.is_dir():
            half = into.with_name(f"{into.name}.half")
            shutil.rmtree(half, ignore_errors=True)
            try:
                with tarfile.open(data) as archive:
                    archive.extractall(half, filter="data")
            except (OSError, tarfile.TarError) as error:
                raise FailedError(f"{data} cannot be unpacked ({error})") from error
            half.rename(folder)
        inside = [path for path in folder.iterdir() if path.is_dir()]
        data = inside[0] if len(inside) == 1 and inside[0].name != "MNIST" else folder
    into.unlink(missing_ok=True)
    into.symlink_to(data.resolve(), target_is_directory=True)


def make(name: str, work: Work) -> tuple[str, str]:
    """Make a part; return its outcome (passed, failed or skipped) and a line about it."""
    if absent := [data for data in PARTS[name].needs if data not in work.data]:
        return "skipped", f"needs {absent[0].upper()}=DIR"
    left = (work.ends - time.monotonic()) / 60
    if left < (least := PARTS[name].least * (not work.cut)):
        return "skipped", f"takes {least:g} minutes or more, and {max(left, 0):.1f} are left"
    own = work.within(name, 60 * min(PARTS[name].most, left))
    own.log.write_text("")
    try:
        return "passed", PARTS[name].make(own)
    except SkippedError as reason:
        return "skipped", str(reason)
    except FailedError as reason:
        return "failed", str(reason)
    except Exception as error:  # noqa: BLE001 - the other parts are still to be made
        with own.log.open("a") as log:
            traceback.print_exc(file=log)
        return "failed", f"{type(error).__name__}: {error}"


def machines(summary: dict[str, Any]) -> str:
    """Name the machine, or each with the parts that it made."""
    made: dict[str, list[str]] = {}
    for name, of in summary.items():
        if of["outcome"] != "skipped":
            made.setdefault(of.get("machine", "an unknown machine"), []).append(name)
    if len(made) <= 1:
        return next(iter(made), "")
    return "\n".join(f"- {', '.join(names)}: {machine}" for machine, names in made.items())


def write(work: Work, summary: dict[str, Any]) -> None:
    """Write the pages and the archive of what there is so far."""
    rows = [[n, of["outcome"], f"{of['minutes']:.1f}", of["line"]] for n, of in summary.items()]
    table = as_table(rows, ["part", "outcome", "minutes", "result"])
    pieces = [work.piece(name) for name in gpu_parts.PIECES]
    pages = ["# Measurements on a GPU", machines(summary), "`make gpu` made this page.", table]
    pages += [piece.read_text().strip() for piece in pieces if piece.exists()]
    (work.docs / "benchmarks_gpu.md").write_text("\n\n".join(pages) + "\n")
    half = work.out / "gpu.tar.gz.half"
    with tarfile.open(half, "w:gz") as archive:
        for path in sorted(work.docs.iterdir()):
            archive.add(path, path.name)
    half.rename(work.out / "gpu.tar.gz")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a kit gives what is not named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("outputs/gpu"), metavar="DIR")
    add("--parts", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART", help="default: all")
    add("--minutes", type=float, default=25.0, help="for all parts together (default 25)")
    add("--kit", type=Path, metavar="DIR", help="of scripts/gpu_kit.py: wheels and data")
    add("--wheels", type=Path, metavar="DIR", help="packages that Python lacks")
    add("--mnist", type=Path, metavar="DIR", help="holds MNIST/raw; or an archive of it")
    add("--pacs", type=Path, metavar="DIR", help="holds the four domains; or an archive of it")
    add("--pacs-steps", type=int, metavar="N", help="steps of a run on PACS (default: what fits)")
    add("--cut", action="store_true", help="try all parts on the CPU, at a small size")
    add("--machine", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if (steps := arguments.pacs_steps) is not None and (steps < 5 or steps % 5):
        parser.error(f"--pacs-steps {steps}: must be a multiple of 5, for as many evaluations")
    if kit := arguments.kit:
        if not kit.is_dir():
            parser.error(f"--kit {kit}: is not a folder")
        arguments.wheels = arguments.wheels or kit / "wheels"
        for name in DATA:
            archive = kit / f"{name}.tar.gz"
            if getattr(arguments, name) is None and archive.exists():
                setattr(arguments, name, archive)
    for name in ("wheels", *DATA):
        if (path := getattr(arguments, name)) and not path.exists():
            parser.error(f"--{name} {path}: does not exist")
    return arguments


def prepared(arguments: argparse.Namespace, started: float) -> tuple[Work, str]:
    """Prepare packages, data and folders; return them with the description of the machine.

    Raises:
        FailedError: If something is missing without which no part can be made.
    """
    out = arguments.out.resolve()
    for folder in ("docs/results/records", "logs", "pieces", "runs", "data"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    path, python = [str(ROOT)], sys.executable
    if arguments.wheels:
        install(arguments.wheels, out / "data" / "site", python, out / "logs" / "wheels.log")
        path.append(str(out / "data" / "site"))
    env = {"OMP_NUM_THREADS": "1" if arguments.cut else "4", **os.environ}
    path += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    env |= {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    command = [python, __file__, "--machine"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FailedError(f"PyTorch or the package cannot be imported: {reason}")
    about = json.loads(done.stdout.splitlines()[-1])
    if about["missing"]:
        absent = ", ".join(about["missing"])
        raise FailedError(f"{python} lacks {absent}: pass KIT=DIR or WHEELS=DIR (make gpu-kit)")
    if not (about["cuda"] or arguments.cut):
        raise FailedError("PyTorch finds no CUDA device; CUT=1 tries all parts on the CPU")
    given = {name: path for name in DATA if (path := getattr(arguments, name))}
    if arguments.cut:
        given = {**stand_ins(out / "data", python, env), **given}
    for name, path in given.items():
        link(path, out / "data" / name)
    data = {name: Path("data", name) for name in given}
    ends = started + 60 * arguments.minutes - ROOM * (not arguments.cut)
    work = Work(python, "cpu" if arguments.cut else "cuda", out, env, data, ends, arguments.cut)
    work.pacs_steps = arguments.pacs_steps
    work.machine = f"{time.strftime('%Y-%m-%d')}; {about['text']}."
    if arguments.cut:
        work.machine += " A trial at a cut size: none of these figures says anything."
    return work, work.machine


def main(argv: Sequence[str] | None = None) -> int:
    """Make the parts; return 0 if none failed."""
    started = time.monotonic()
    arguments = parse(argv)
    if arguments.machine:
        print(json.dumps(machine()))
        return 0
    try:
        work, about = prepared(arguments, started)
        return measure(arguments, work, about, started)
    except FailedError as reason:
        print(f"gpu: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu: stopped; the same command keeps what is done", file=sys.stderr)
        return 130


def measure(arguments: argparse.Namespace, work: Work, about: str, started: float) -> int:
    """Make the parts that are named; return 0 if none failed."""
    print(about, flush=True)
    file = work.out / "summary.json"  # of earlier calls, too
    summary: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    outcomes = {}
    for name in (name for name in PARTS if name in arguments.parts):
        print(f"{name}: …", flush=True)
        begun = time.monotonic()
        outcome, line = make(name, work)
        minutes = (time.monotonic() - begun) / 60
        outcomes[name] = outcome
        if outcome != "skipped" or name not in summary:
            summary[name] = {"outcome": outcome, "minutes": minutes, "line": line, "machine": about}
        print(f"{name}: {outcome} after {minutes:.1f} min: {line}", flush=True)
        file.write_text(json.dumps(summary, indent=1))
        write(work, summary)
    minutes = (time.monotonic() - started) / 60
    of = {kind: [n for n, outcome in outcomes.items() if outcome == kind] for kind in
          ("passed", "failed", "skipped")}  # fmt: skip
    words = [f"{kind}: {', '.join(names)}" for kind, names in of.items() if names]
    print(f"{'; '.join(words)}; {minutes:.1f} min")
    print(f"pages: cp -r {work.docs}/. docs/   or   tar xzf {work.out}/gpu.tar.gz -C docs")
    return 1 if of["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
