"""What the MLflow mirror costs a run: training with it and without, in turns.

Each round calls `fishr-exp` once for each contender, in a new random order: without a tracker
(twice: the difference between `none` and `none again` is noise), with the mirror on a SQLite file,
and on an `mlflow server` of this machine, whose own work is in the figures too. The databases exist
before (making one takes seconds, once). A run is ERM on `colored_digits` with
whole domains as minibatches and an MLP as wide as makes a step of about 50 ms on a quiet machine;
it evaluates, writes and sends every 20 steps.

- `epoch`: the median time from one record to the next, and of that over the rounds.
- `ratio`: a run's `epoch` by that of `none` in the same round; the median over the rounds.
- `more`: what the command takes beside its epochs (imports, the first connection, the end), less
  what `none` takes in the same round; the median over the rounds.
- `cost`: both together in a run of 5000 steps, as long as DomainBed's. The bar is 2 %; there is no
  verdict where `none again` alone is farther off, for the machine is too busy then.
- `CPU`: what the mirror's thread computes for each record after the first connection, and as a
  share of 20 steps of 50 ms. It is the most that sending can take from training, were there no
  other core, and hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import explained, measured, write_numbers, write_section
from tabulate import tabulate
from timed_steps import Platform, Workload, measure_times

from fishr_exp.cli import run as cli
from fishr_exp.models.mlp import mlp
from fishr_exp.tracking.mlflow import MlflowMirror

MIRRORED = ("sqlite", "server")
CONTENDERS = ("none", "none again", *MIRRORED)
RUN_WORDS = "--run-words"  # be the command, with the words behind it
HEADING = "## Tracking"  # where the page's part of this script begins
ROOT = Path(__file__).resolve().parents[1]
STEP = 0.05  # seconds
STEPS_PER_EPOCH, RUN = 20, 5000  # steps
BAR = 0.02


def width(samples: int = 479) -> int:
    """How wide an MLP must be for a step of about 50 ms; the time grows with its square."""
    guess = 512
    for _ in range(2):
        build = partial(mlp, hidden=guess, hidden_layers=2, single_logit=True)
        times, _ = measure_times(Workload(build, 2, samples, (2, 8, 8), 2), ["erm"], 20, Platform())
        milliseconds = min(times["erm"].values())  # others may be busy here
        guess = max(16, 16 * round(guess * (1e3 * STEP / milliseconds) ** 0.5 / 16))
    return guess


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Start `mlflow server` on loopback; give its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{folder}/server.db",
             "--artifacts-destination", f"{folder}/artifacts"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *words],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    uri = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health"):
                break
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def be_fishr_exp(words: list[str]) -> None:
    """Be the command; print at the end how long the mirror's thread computed, by call, seconds."""
    send, spent = MlflowMirror._send, []

    def timed(mirror: MlflowMirror, status: str) -> None:
        before = time.thread_time()
        send(mirror, status)
        spent.append(time.thread_time() - before)

    MlflowMirror._send = timed  # type: ignore[method-assign]
    sys.argv = ["fishr-exp", *words]
    try:
        cli.main()
    finally:
        print(json.dumps(spent))


def run(words: list[str], folder: Path, epochs: int) -> dict[str, float]:
    """Call the command; return seconds: an epoch, all beside epochs, and the thread's a record."""
    options = [*words, "trainer=erm", "batch_size=null", "observer=last_step", f"epochs={epochs}",
               f"steps_per_epoch={STEPS_PER_EPOCH}", f"hydra.run.dir={folder}"]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, RUN_WORDS, *options],
        cwd=folder.parent, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    whole = time.perf_counter() - started
    if done.returncode or "MLflow" in done.stderr:
        raise RuntimeError(done.stderr)
    written = [json.loads(line)["time"] for line in (folder / "records.jsonl").open()]
    epoch = float(np.median(np.diff(written)))
    spent = json.loads(done.stdout.splitlines()[-1])[1:-1] or [0.0]  # less the first and the last
    return {"epoch": epoch, "once": whole - epochs * epoch, "cpu": float(np.mean(spent))}


def measure(rounds: int, epochs: int, hidden: int) -> dict[str, list[dict[str, float]]]:
    """Call every contender in every round; return its figures, a dictionary a round."""
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as home, mlflow_server(Path(home)) as server:
        to = {"sqlite": f"sqlite:///{home}/mlflow.db", "server": server}
        words = {
            name: [f"tracker.tracking_uri={to[name]}"] if name in to else ["tracker=none"]
            for name in CONTENDERS
        }
        for name in to:
            run([*words[name], "model.hidden=16"], Path(home) / f"warm-{name}", 2)
        for i in range(rounds):
            for name in random.Random(i).sample(CONTENDERS, len(CONTENDERS)):
                folder = Path(home) / f"{name.replace(' ', '-')}-{i}"
                figures[name].append(run([*words[name], f"model.hidden={hidden}"], folder, epochs))
                print(f"round {i + 1}, {name}: {figures[name][-1]}", file=sys.stderr)
    return figures


def summarise(figures: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Medians and quartiles by contender, paired with `none` of the same round."""
    base, summary = figures["none"], {}
    for name, own in figures.items():
        ratios = [a["epoch"] / b["epoch"] for a, b in zip(own, base, strict=True)]
        more = [a["once"] - b["once"] for a, b in zip(own, base, strict=True)]
        seconds = RUN / STEPS_PER_EPOCH * float(np.median([b["epoch"] for b in base]))
        summary[name] = {
            "epoch": float(np.median([a["epoch"] for a in own])),
            "ratio": float(np.median(ratios)),
            "quartiles": np.quantile(ratios, (0.25, 0.75)).tolist(),
            "cpu": float(np.median([a["cpu"] for a in own])),
            "more": float(np.median(more)),
            "cost": float(np.median(ratios)) - 1 + float(np.median(more)) / seconds,
        }
    return summary


def judge(name: str, summary: dict[str, dict[str, Any]]) -> str:
    """Compare a contender's cost with the bar, where the machine is quiet enough to tell."""
    if name not in MIRRORED:
        return ""
    if abs(summary["none again"]["cost"]) > BAR:
        return "machine too busy"
    return "met" if summary[name]["cost"] < BAR else "not met"


def render(summary: dict[str, dict[str, Any]], style: str) -> str:
    """Return the table."""
    rows = [
        [
            name,
            f"{row['epoch']:.3f}",
            f"{row['ratio']:.3f}",
            "{:.3f} – {:.3f}".format(*row["quartiles"]),
            f"{row['more']:+.1f}",
            f"{100 * row['cost']:+.1f} %",
            judge(name, summary),
            *(
                [f"{1e3 * row['cpu']:.1f}", f"{100 * row['cpu'] / STEPS_PER_EPOCH / STEP:.2f} %"]
                if name in MIRRORED
                else ["", ""]
            ),
        ]
        for name, row in summary.items()
    ]
    columns = ["tracker", "epoch, s", "ratio", "quartiles", "more, s", "cost", "bar 2 %",
               "CPU, ms", "share"]  # fmt: skip
    return tabulate(rows, columns, tablefmt=style, disable_numparse=True)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=6, help="runs of each contender (default 6)")
    add("--epochs", type=int, default=12, help=f"of {STEPS_PER_EPOCH} steps (default 12)")
    add("--hidden", type=int, help="width of the MLP (default: for steps of about 50 ms)")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--markdown", type=Path, metavar="FILE", help="write the section Tracking of this page")
    arguments = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    hidden = arguments.hidden or width()
    figures = measure(arguments.rounds, arguments.epochs, hidden)
    summary = summarise(figures)
    rounds = f"{arguments.rounds} rounds of {arguments.epochs} epochs"
    mlflow = f"mlflow {importlib.metadata.version('mlflow')}"
    cores, mlp = f"{os.cpu_count()} cores", f"MLP of width {hidden}"
    head = measured("threads: 1", "float32", cores, mlp, rounds, mlflow)
    print(f"{head}\n\n{render(summary, 'simple')}")
    if arguments.json:
        write_numbers(arguments.json, {"header": head, "rounds": figures, "summary": summary})
    if arguments.markdown:
        section = "\n\n".join([HEADING, head, explained(__doc__), render(summary, "github")])
        write_section(arguments.markdown, section)


if __name__ == "__main__":
    if sys.argv[1:2] == [RUN_WORDS]:
        be_fishr_exp(sys.argv[2:])
    else:
        main()
