"""Time and memory of a training step: ERM beside Fishr, by engine and scope, on the same batch.

What is timed is the step that training makes: objective, backward pass and Adam's update, on
inputs and labels drawn at random, which cost what real ones do.

Time: the contenders make one step each, round after round, in a new random order every round, so
that whatever slows the machine slows all alike. `ratio` divides the medians; `paired` is the
median over the rounds of the ratio to the ERM step of the same round, and the bars judge it.
`erm again` is a second ERM: how far from 1 it is, the machine adds by itself. Contenders over all
parameters are slow, and their bars wide: they take part in every fifth round. BackPACK's
convolutions run in its mode `weight_jac_t_save_memory`, which is many times faster on a CPU than
its default.

Memory: each contender alone in a process of its own; the peak resident set of three steps, less
what was resident before them (libraries, weights, batch). On CUDA, of allocated memory.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import json
import logging
import os
import platform
import random
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backpack.core.derivatives.convnd import weight_jac_t_save_memory
from tabulate import tabulate

from fishr_exp.contracts import Batch, Model
from fishr_exp.models.mlp import mlp
from fishr_exp.models.mnist_cnn import mnist_cnn
from fishr_exp.models.resnet import resnet
from fishr_exp.results.environment import environment
from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.fishr import Fishr
from fishr_exp.training.step import Method, optimizer_step

ALL_EVERY = 5  # rounds
CONTENDERS: dict[str, Callable[[], Method]] = {
    "erm": Erm,
    "erm again": Erm,
    "fishr classifier native": partial(Fishr, 1.0, engine="native"),
    "fishr classifier backpack": partial(Fishr, 1.0, engine="backpack"),
    "fishr all native": partial(Fishr, 1.0, scope="all", engine="native"),
    "fishr all backpack": partial(Fishr, 1.0, scope="all", engine="backpack"),
}


@dataclass(frozen=True)
class Workload:
    """A model and the batch that it learns from."""

    build: Callable[..., Model]
    domains: int
    samples: int  # of each domain
    input_shape: tuple[int, ...]
    num_classes: int
    bars: dict[str, float]  # by contender and quantity, see `judge`

    def model(self, device: str) -> Model:
        """Build the model, in training mode."""
        model = self.build(input_shape=self.input_shape, num_classes=self.num_classes)
        return model.to(device).train()

    def batch(self, device: str) -> Batch:
        """Draw a batch."""
        n = self.domains * self.samples
        x, y = torch.randn(n, *self.input_shape), torch.randint(self.num_classes, (n,))
        return Batch(x.to(device), y.to(device), (self.samples,) * self.domains)

    def __str__(self) -> str:
        shape = "×".join(map(str, self.input_shape))
        return f"{self.domains} × {self.samples} samples of {shape}, {self.num_classes} classes"


_mlp = partial(mlp, hidden=390, hidden_layers=2, single_logit=True)
_resnet18 = partial(
    resnet, depth=18, pretrained=False, weights_file=None, freeze_bn=True, dropout=0.0
)


def _cnn_without_norm(**arguments: Any) -> Model:
    model = mnist_cnn(**arguments)
    kept = [m for m in model.featurizer.children() if not isinstance(m, torch.nn.GroupNorm)]
    return Model(torch.nn.Sequential(*kept), model.classifier)


WORKLOADS = {
    "mlp": Workload(
        _mlp, 2, 25_000, (2, 14, 14), 2,
        {"fishr classifier native time": 1.10, "fishr all native time": 4.5},
    ),
    "mlp_minibatch": Workload(  # the MLP on what BackPACK can hold
        _mlp, 2, 64, (2, 14, 14), 2, {"fishr all native speed-up": 2.2},
    ),
    "mnist_cnn": Workload(
        mnist_cnn, 3, 64, (1, 28, 28), 10,
        {"fishr classifier native time": 1.05, "fishr all native time": 4.5},
    ),
    "cnn_without_norm": Workload(  # the CNN as BackPACK can do it
        _cnn_without_norm, 3, 64, (1, 28, 28), 10, {"fishr all native speed-up": 4.0},
    ),
    "resnet18": Workload(
        _resnet18, 3, 16, (3, 96, 96), 7,
        {"fishr classifier native time": 1.05, "fishr all native time": 6.0,
         "fishr all native memory": 2.5},
    ),
}  # fmt: skip


class Contender:
    """A method with its own model and optimizer."""

    def __init__(self, name: str, model: Model, batch: Batch) -> None:
        self.method, self.model, self.batch = CONTENDERS[name](), model, batch
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        if name == "fishr all backpack":
            self._refuse_what_does_not_fit()

    def step(self) -> None:
        """Make one step; BackPACK's convolutions in the faster of its two modes."""
        with weight_jac_t_save_memory(save_memory=True):
            optimizer_step(self.method, self.model, self.optimizer, self.batch, 0)

    def timed_step(self) -> float:
        """Make one step and return its milliseconds."""
        if not self.batch.x.is_cuda:
            started = time.perf_counter()
            self.step()
            return (time.perf_counter() - started) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def _refuse_what_does_not_fit(self) -> None:
        """Stop before the system ends a process that takes more memory than there is."""
        entries = len(self.batch.y) * sum(p.numel() for p in self.model.parameters())
        needed = 2 * 4 * entries  # per-sample gradients and their squares, float32
        if self.batch.x.is_cuda:
            free = torch.cuda.mem_get_info()[0]
        else:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > free:
            gib = needed / 2**30
            raise ValueError(f"per-sample gradients and their squares take {gib:.0f} GiB")


def measure_times(
    workload: Workload, names: list[str], rounds: int, device: str
) -> tuple[dict[str, dict[int, float]], dict[str, str]]:
    """Time the contenders in turns; return milliseconds by name and round, and the refusals."""
    model, batch = workload.model(device), workload.batch(device)
    contenders, refusals = {}, {}
    for name in names:
        try:
            contender = Contender(name, copy.deepcopy(model), batch)
            for _ in range(1 if name.startswith("fishr all") else 3):  # warm-up
                contender.step()
            contenders[name] = contender
        except (ValueError, NotImplementedError) as error:
            refusals[name] = str(error)
    times: dict[str, dict[int, float]] = {name: {} for name in contenders}
    shuffle = random.Random(0).shuffle
    gc.freeze()  # what lives now need not be looked through before every step
    for i in range(rounds):
        turns = [n for n in contenders if i % ALL_EVERY == 0 or not n.startswith("fishr all")]
        shuffle(turns)
        for name in turns:
            gc.collect()
            times[name][i] = contenders[name].timed_step()
    gc.unfreeze()
    return times, refusals


def measure_peak(workload: Workload, name: str, device: str) -> int:
    """Peak memory of three steps in this process, less what it held before them, in bytes."""
    model, batch = workload.model(device), workload.batch(device)
    small = replace(workload, samples=2).batch(device)
    Contender(name, copy.deepcopy(model), small).step()  # libraries load much at first use
    contender = Contender(name, model, batch)
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far
        before = _resident("VmRSS")
    for _ in range(3):
        contender.step()
    return (torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")) - before


def _resident(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, field
    return int(match[1]) * 1024


def peak_in_a_process(workload: str, name: str, arguments: argparse.Namespace) -> int | None:
    """Run `measure_peak` in a process of its own; None if that fails, as where Linux is absent."""
    command = [sys.executable, __file__, workload, "--peak-of", name]
    for option in ("scale", "threads", "device"):
        command += [f"--{option}", str(getattr(arguments, option))]
    # Blocks above 64 KiB go back to the system when freed, so that the peak is what was in use.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
    if done.returncode == 0:
        return int(done.stdout)
    reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
    print(f"no peak of {name} on {workload}: {reason}", file=sys.stderr)
    return None


def summarise(
    times: dict[str, dict[int, float]], peaks: dict[str, int | None]
) -> dict[str, dict[str, Any]]:
    """Medians, quartiles and ratios, by contender; `time` is the paired ratio."""
    erm, base, summary = times["erm"], peaks["erm"], {}
    for name, own in times.items():
        peak, rival = peaks[name], times.get(name.replace("native", "backpack"), {})
        first, median, third = np.quantile([*own.values()], (0.25, 0.5, 0.75)).tolist()
        paired = np.median([own[i] / erm[i] for i in own])
        gains = [rival[i] / own[i] for i in own if i in rival]
        summary[name] = {
            "milliseconds": [*own.values()],
            "median": median,
            "quartiles": (first, third),
            "ratio": median / float(np.median([*erm.values()])),
            "time": float(paired),
            "speed-up": float(np.median(gains)) if gains and name.endswith("native") else None,
            "peak": peak,
            "memory": peak / base if peak and base else None,
        }
    return summary


def judge(name: str, row: dict[str, Any], bars: dict[str, float]) -> str:
    """Compare with the bars: time and memory of ERM at most, speed-up over BackPACK at least."""
    verdicts = []
    for quantity, sign in (("time", "≤"), ("memory", "≤"), ("speed-up", "≥")):
        bar, value = bars.get(f"{name} {quantity}"), row[quantity]
        if bar is not None and value is not None:
            met = value <= bar if sign == "≤" else value >= bar
            verdicts.append(f"{quantity} {sign} {bar:g} {'met' if met else 'not met'}")
    return ", ".join(verdicts)


def render(
    summary: dict[str, dict[str, Any]], refusals: dict[str, str], bars: dict[str, float], style: str
) -> str:
    """One workload as a table; what refused is a line with the reason below."""
    rows = [
        [
            name,
            f"{row['median']:.4g}",
            "{:.4g} – {:.4g}".format(*row["quartiles"]),
            f"{row['ratio']:.3f}",
            f"{row['time']:.3f}",
            f"{row['peak'] / 2**20:.0f}" if row["peak"] else "",
            f"{row['memory']:.2f}" if row["memory"] else "",
            f"{row['speed-up']:.2f}" if row["speed-up"] else "",
            judge(name, row, bars),
        ]
        for name, row in summary.items()
    ] + [[name, "refuses", *[""] * 7] for name in refusals]
    columns = ["step", "ms", "quartiles", "ratio", "paired", "MiB", "memory", "speed-up", "bars"]
    table = tabulate(rows, columns, tablefmt=style, disable_numparse=True)
    return "\n\n".join([table, *(f"{name} refuses: {why}" for name, why in refusals.items())])


def header(device: str, threads: int) -> str:
    """Machine, versions and date."""
    known, cpu = environment(device, threads), Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    machine = found[1] if found else platform.machine()
    if device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, {machine}"
    versions = ", ".join(f"{package} {version}" for package, version in known["versions"].items())
    commit = known["git_commit"] or "unknown"
    return (
        f"Measured {datetime.date.today()} at commit {commit} on {machine}, "
        f"threads: {threads}, float32; {versions}."
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; default all")
    add("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS], metavar="NAME")
    add("--rounds", type=int, default=30, help="steps of each contender (default 30)")
    add("--threads", type=int, default=1, help="threads of one operation (default 1)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--scale", type=float, default=1.0, help="times the samples of each domain, for trials")
    add("--json", type=Path, metavar="FILE", help="write every time and figure")
    add("--markdown", type=Path, metavar="FILE", help="write the tables")
    add("--peak-of", choices=CONTENDERS, metavar="NAME", help="print only its peak, in bytes")
    arguments = parser.parse_args(argv)
    chosen = arguments.workloads or [*WORKLOADS]
    if unknown := set(chosen) - set(WORKLOADS):
        parser.error(f"{', '.join(unknown)}: choose of {', '.join(WORKLOADS)}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    logging.getLogger("fishr_exp").setLevel(logging.ERROR)  # random weights are meant here
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # BackPACK's

    names = [name for name in CONTENDERS if name in {"erm", *arguments.contenders}]
    head, figures = header(arguments.device, arguments.threads), {}
    pages = ["# Time and memory of a training step", head, (__doc__ or "").partition("\n\n")[2]]
    if not arguments.peak_of:
        print(head)
    for name in chosen:
        samples = max(2, round(WORKLOADS[name].samples * arguments.scale))
        workload = replace(WORKLOADS[name], samples=samples)
        if arguments.peak_of:
            print(measure_peak(workload, arguments.peak_of, arguments.device))
            return
        times, refusals = measure_times(workload, names, arguments.rounds, arguments.device)
        summary = summarise(times, {n: peak_in_a_process(name, n, arguments) for n in times})
        tables = [render(summary, refusals, workload.bars, s) for s in ("simple", "github")]
        print(f"\n{name}: {workload}\n\n{tables[0]}", flush=True)
        pages += [f"## {name}: {workload}", tables[1]]
        figures[name] = {"refusals": refusals, "contenders": summary}
    if arguments.markdown:
        arguments.markdown.write_text("\n\n".join(page.strip() for page in pages) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps({"header": head, "workloads": figures}, indent=1))


if __name__ == "__main__":
    main()
