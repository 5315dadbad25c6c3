"""Time and memory of a training step: ERM beside Fishr, by engine and scope, on the same batch.

A step of training is timed: objective, backward pass and Adam's update, on random inputs and
labels, which cost the same as real ones.

Time: in every round each contender makes one step, in a new random order, so that other load on
the machine affects all of them equally. `ratio` divides the medians. `paired` is the median over
the rounds of the ratio to the ERM step of the same round; the bars refer to it. `erm again` is a
second ERM: its difference from 1 is noise. Contenders over all parameters are slow and their bars
wide: they take part in every fifth round, and those whose first step took more than 20 times
ERM's in every fifteenth. `steps` is the number of timed steps.

Our engine is `native`. BackPACK over all parameters runs in up to four ways; `native faster` is
its time divided by that of native:

- `backpack`: with its defaults, as `engine=backpack` runs it. It keeps all per-sample gradients,
  and BackPACK chooses how to differentiate convolutions.
- `backpack fast`: the same with BackPACK's mode `weight_jac_t_save_memory`.
- `backpack squares`: our code with BackPACK's extension `SumGradSquared`, one domain after
  another, which gives the same penalty. No per-sample gradients of linear layers are kept.
- `backpack fast squares`: both.

The bar refers to BackPACK with its defaults. Its default convolutions slow down faster than the
batch grows: with 64 samples of each domain a step of the CNN takes minutes. They are left out
there, and `cnn_minibatch` compares all four on a smaller batch.

With `--domainbed DIR`, DomainBed's own Fishr takes part in `mlp_minibatch`, with its own optimizer
and a classifier of one logit for each class: `fishr classifier domainbed`.

Memory: each contender runs alone in its own process; the peak resident set of three steps, minus
what was resident before them (libraries, weights, batch). On CUDA, allocated memory, and no process
of its own.

With `--precision bf16` the objective is computed under autocast, with `--channels-last` on that
layout. With `--compile` the featurizers
of ERM and of Fishr on the classifier are compiled; over all parameters nothing is, since compiled
code cannot be differentiated twice. Bars are for one CPU thread in float32.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import importlib.util
import json
import logging
import os
import random
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backpack import backpack, extend, memory_cleanup
from backpack.core.derivatives.convnd import weight_jac_t_save_memory
from backpack.extensions import SumGradSquared
from pages import explained, measured, write_page
from tabulate import tabulate
from torch import nn

from fishr_exp.core._torchvision import torchvision
from fishr_exp.core.contracts import Batch, Model, Objective, Trainer
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.models.backbone import backbone
from fishr_exp.models.mlp import mlp
from fishr_exp.models.mnist_cnn import mnist_cnn
from fishr_exp.runs.files import write_atomically
from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.fishr import Fishr
from fishr_exp.training.precision import autocast, compile_featurizer
from fishr_exp.training.step import make_players, optimizer_step

ALL_EVERY, SLOW_EVERY = 5, 15  # rounds
SLOW = 20  # times ERM


class SquaresByBackpack(Trainer):
    """Fishr over all parameters, from BackPACK's sums of squared gradients of one domain a time."""

    min_domains = 2

    def __init__(self) -> None:
        super().__init__(per_sample_losses)

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:  # noqa: ARG002
        """Return mean risk plus penalty, as `Fishr(1.0, scope="all")` does."""
        extended, parameters = extend(model), [*model.parameters()]
        variances, risks = [], []
        for x, y in zip(batch.by_domain(batch.x), batch.by_domain(batch.y), strict=True):
            x = x.clone().requires_grad_()  # else the hooks of the first layer do not fire
            losses = self.loss(extended(x), y)
            with backpack(SumGradSquared()):
                sums = torch.autograd.grad(losses.sum(), [*parameters, x], create_graph=True)
            pairs = zip(parameters, sums, strict=False)
            variances.append([p.sum_grad_squared / len(y) - (g / len(y)) ** 2 for p, g in pairs])
            risks.append(losses.mean())
        memory_cleanup(model)
        risk, stacked = (
            torch.stack(risks).mean(),
            [torch.stack(v) for v in zip(*variances, strict=True)],
        )
        penalty = sum((v - v.mean(0)).square().sum() for v in stacked) / len(risks)
        return Objective(risk + penalty, {"risk": risk, "penalty": torch.as_tensor(penalty)})


_fishr_all_backpack = partial(Fishr, 1.0, scope="all", engine="backpack")
CONTENDERS: dict[str, Callable[[], Trainer]] = {
    "erm": Erm,
    "erm again": Erm,
    "fishr classifier native": partial(Fishr, 1.0, engine="native"),
    "fishr classifier backpack": partial(Fishr, 1.0, engine="backpack"),
    "fishr all native": partial(Fishr, 1.0, scope="all", engine="native"),
    "fishr all backpack": _fishr_all_backpack,
    "fishr all backpack fast": _fishr_all_backpack,
    "fishr all backpack squares": SquaresByBackpack,
    "fishr all backpack fast squares": SquaresByBackpack,
}
DOMAINBED = "fishr classifier domainbed"  # its own class, where there is a checkout
RIVALS = tuple(name for name in CONTENDERS if name.startswith("fishr all backpack"))
COMPILED = ("erm", "erm again", "fishr classifier native")


@dataclass(frozen=True)
class Platform:
    """Where the steps are made, and how."""

    device: str = "cpu"
    precision: str = "fp32"  # or bf16
    compiler: str | None = None  # backend of torch.compile
    channels_last: bool = False
    domainbed: str | None = None  # a checkout of it


@dataclass(frozen=True)
class Workload:
    """A model and the batch that it learns from."""

    build: Callable[..., Model]
    domains: int
    samples: int  # of each domain
    input_shape: tuple[int, ...]
    num_classes: int
    bars: dict[str, float] = field(default_factory=dict)  # by contender and quantity, see `judge`
    rivals: tuple[str, ...] = RIVALS[:1]  # of BackPACK over all parameters; DOMAINBED

    def model(self, device: str) -> Model:
        """Build the model, in training mode."""
        model = self.build(input_shape=self.input_shape, num_classes=self.num_classes)
        return model.to(device).train()

    def batch(self, device: str) -> Batch:
        """Draw a batch."""
        n = self.domains * self.samples
        x, y = torch.randn(n, *self.input_shape), torch.randint(self.num_classes, (n,))
        return Batch(x.to(device), y.to(device), (self.samples,) * self.domains)

    def contenders(self, names: list[str]) -> list[str]:
        """Those of `names` that take part."""
        return [name for name in names if name not in (*RIVALS, DOMAINBED) or name in self.rivals]

    def __str__(self) -> str:
        shape = "×".join(map(str, self.input_shape))
        return f"{self.domains} × {self.samples} samples of {shape}, {self.num_classes} classes"


_mlp = partial(mlp, hidden=390, hidden_layers=2, single_logit=True)
_backbone = partial(backbone, pretrained=False, weights_file=None, freeze_bn=True, dropout=0.0)
_resnet18 = partial(_backbone, library="torchvision", name="resnet18")


def _cnn_without_norm(**arguments: Any) -> Model:
    model = mnist_cnn(**arguments)
    kept = [m for m in model.featurizer.children() if not isinstance(m, nn.GroupNorm)]
    return Model(nn.Sequential(*kept), model.classifier)


def _vit(*, input_shape: tuple[int, ...], num_classes: int) -> Model:
    """Build a small vision transformer: patches of 16, 6 layers of width 128 with 4 heads."""
    body = torchvision.models.VisionTransformer(
        image_size=input_shape[-1], patch_size=16, num_layers=6, num_heads=4, hidden_dim=128,
        mlp_dim=512, num_classes=num_classes,
    )  # fmt: skip
    body.heads = nn.Identity()
    return Model(body, nn.Linear(128, num_classes))


WORKLOADS = {
    "mlp": Workload(
        _mlp, 2, 25_000, (2, 14, 14), 2,
        {"fishr classifier native time": 1.10, "fishr all native time": 4.5},
        (RIVALS[0], RIVALS[2]),
    ),
    "mlp_minibatch": Workload(  # the MLP on what BackPACK can hold
        _mlp, 3, 64, (2, 14, 14), 2,
        {"fishr classifier native time": 1.25, "fishr all backpack speed-up": 2.2},
        (RIVALS[0], RIVALS[2], DOMAINBED),
    ),
    "mnist_cnn": Workload(
        mnist_cnn, 3, 64, (1, 28, 28), 10,
        {"fishr classifier native time": 1.05, "fishr all native time": 4.5},
    ),
    "cnn_without_norm": Workload(  # the CNN as BackPACK can do it
        _cnn_without_norm, 3, 64, (1, 28, 28), 10, rivals=(RIVALS[1], RIVALS[3]),
    ),
    "cnn_minibatch": Workload(  # on what its convolutions as they come can do
        _cnn_without_norm, 3, 8, (1, 28, 28), 10, {"fishr all backpack speed-up": 4.0}, RIVALS,
    ),
    "resnet18": Workload(
        _resnet18, 3, 16, (3, 96, 96), 7,
        {"fishr classifier native time": 1.05, "fishr all native time": 6.0,
         "fishr all native memory": 2.5},
    ),
    "vit": Workload(
        _vit, 3, 16, (3, 96, 96), 7,
        {"fishr classifier native time": 1.05, "fishr all native time": 6.0},
    ),
    "swin_t": Workload(
        partial(_backbone, library="torchvision", name="swin_t"), 3, 4, (3, 96, 96), 7,
        {"fishr classifier native time": 1.05, "fishr all native time": 6.0},
    ),
    "mobilevit_s": Workload(
        partial(_backbone, library="timm", name="mobilevit_s"), 3, 4, (3, 96, 96), 7,
        {"fishr classifier native time": 1.05, "fishr all native time": 6.0},
    ),
}  # fmt: skip


def _can_build(name: str) -> bool:
    """Whether what a workload's model is taken from is installed; timm may be absent."""
    return not name.startswith("mobilevit") or importlib.util.find_spec("timm") is not None


class Contender:
    """A method with its own model and optimizer."""

    def __init__(self, name: str, model: Model, batch: Batch, platform: Platform) -> None:
        self.name, self.model, self.batch = name, model, batch
        self.method = CONTENDERS[name]()
        self.autocast = autocast(platform.precision, torch.device(platform.device))
        if platform.channels_last:
            model.to(memory_format=torch.channels_last)
        if platform.compiler and name in COMPILED:
            compile_featurizer(model, self.method, platform.compiler)
        adam = functools.partial(torch.optim.Adam, lr=1e-4)
        self.players = make_players(self.method, model, adam)
        self.fast_convolutions = "fast" in name
        if name in RIVALS[:2]:
            self._refuse_what_does_not_fit()

    def step(self) -> None:
        """Make one step."""
        with weight_jac_t_save_memory(save_memory=self.fast_convolutions):
            optimizer_step(self.method, self.model, self.players, self.batch, 0, self.autocast)

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


class DomainBedsClass(Contender):
    """DomainBed's own Fishr, with its classifier of two logits, behind the same featurizer.

    Args:
        model: Its featurizer is copied.
        batch: What it learns from.
        checkout: The folder of a checkout of facebookresearch/DomainBed.
    """

    def __init__(self, model: Model, batch: Batch, checkout: str) -> None:
        sys.path.insert(0, str(Path(__file__).parent))
        import bench_methods

        self.name, self.batch = DOMAINBED, batch
        classes = int(batch.y.max()) + 1
        workload = bench_methods.Workload(
            lambda **_: copy.deepcopy(model), tuple(batch.x.shape[1:]), batch.sizes[0], classes
        )
        known = bench_methods.Checkout(checkout)
        self._update = known.update("fishr_domainbed", workload, batch)

    def step(self) -> None:
        """Make one update."""
        self._update()


def make_contender(name: str, model: Model, batch: Batch, platform: Platform) -> Contender:
    """Make a contender, by its name."""
    if name == DOMAINBED:
        assert platform.domainbed is not None
        return DomainBedsClass(model, batch, platform.domainbed)
    return Contender(name, model, batch, platform)


def measure_times(
    workload: Workload, names: list[str], rounds: int, platform: Platform, *, sparing: bool = True
) -> tuple[dict[str, dict[int, float]], dict[str, str]]:
    """Time the contenders in turns; return milliseconds by name and round, and the refusals.

    Slow contenders take part in fewer rounds if `sparing`.
    """
    model, batch = workload.model(platform.device), workload.batch(platform.device)
    contenders, refusals, every = {}, {}, {}
    for name in names:
        try:
            contender = make_contender(name, copy.deepcopy(model), batch, platform)
            every[name], slow = 1, name.startswith("fishr all")
            few = 1 if platform.device == "cpu" else 2  # the first one loads a device's kernels
            warm_up = [contender.timed_step() for _ in range(few if slow else 3)]
            if slow and sparing:
                is_very_slow = warm_up[-1] > SLOW * contenders["erm"].timed_step()
                every[name] = SLOW_EVERY if is_very_slow else ALL_EVERY
            contenders[name] = contender
        except (ValueError, NotImplementedError, torch.OutOfMemoryError) as error:
            refusals[name] = str(error).partition("\n")[0]
    times: dict[str, dict[int, float]] = {name: {} for name in contenders}
    shuffle = random.Random(0).shuffle
    gc.freeze()  # what lives now need not be looked through before every step
    for i in range(rounds):
        turns = [name for name in contenders if i % every[name] == 0]
        shuffle(turns)
        for name in turns:
            gc.collect()
            times[name][i] = contenders[name].timed_step()
    gc.unfreeze()
    return times, refusals


def measure_peak(workload: Workload, name: str, platform: Platform) -> int:
    """Peak memory of three steps in this process, less what it held before them, in bytes."""
    device = platform.device
    model, batch = workload.model(device), workload.batch(device)
    small = replace(workload, samples=2).batch(device)
    make_contender(name, copy.deepcopy(model), small, platform).step()  # first use loads much
    contender = make_contender(name, model, batch, platform)
    if platform.compiler:
        contender.step()  # compiles for these shapes
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


def _peak_on_device(workload: str, name: str, arguments: argparse.Namespace) -> int | None:
    samples = max(2, round(WORKLOADS[workload].samples * arguments.scale))
    try:
        return measure_peak(
            replace(WORKLOADS[workload], samples=samples), name, platform_of(arguments)
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:  # of memory, for one
        print(f"no peak of {name} on {workload}: {error}", file=sys.stderr)
        return None
    finally:
        torch.cuda.empty_cache()


def platform_of(arguments: argparse.Namespace) -> Platform:
    """Return what the command line says of where and how."""
    return Platform(
        arguments.device, arguments.precision, arguments.compile, arguments.channels_last,
        arguments.domainbed,
    )  # fmt: skip


def _resident(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, field
    return int(match[1]) * 1024


def freeing_memory() -> dict[str, str]:
    """Environment in which blocks above 64 KiB go back to the system when freed.

    The peak is then what was in use.
    """
    return {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}


def peak_in_a_process(workload: str, name: str, arguments: argparse.Namespace) -> int | None:
    """Run `measure_peak` in a process of its own; None if that fails, as where Linux is absent.

    On CUDA in this one: what else is on the device is subtracted exactly.
    """
    if arguments.device == "cuda":
        return _peak_on_device(workload, name, arguments)
    command = [sys.executable, __file__, workload, "--peak-of", name]
    for option in ("scale", "threads", "device", "precision"):
        command += [f"--{option}", str(getattr(arguments, option))]
    command += ["--compile", arguments.compile] if arguments.compile else []
    command += ["--channels-last"] if arguments.channels_last else []
    command += ["--domainbed", arguments.domainbed] if arguments.domainbed else []
    done = subprocess.run(
        command, capture_output=True, text=True, env=freeing_memory(), check=False
    )
    if done.returncode == 0:
        return int(done.stdout)
    reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
    print(f"no peak of {name} on {workload}: {reason}", file=sys.stderr)
    return None


def summarise(
    times: dict[str, dict[int, float]], peaks: dict[str, int | None]
) -> dict[str, dict[str, Any]]:
    """Medians, quartiles and ratios, by contender; `time` is the paired ratio.

    `speed-up`, of BackPACK alone, is how many times as long as the native engine it takes.
    """
    erm, base, summary = times["erm"], peaks["erm"], {}
    for name, own in times.items():
        peak, native = peaks[name], times.get(f"{name.partition(' backpack')[0]} native", {})
        first, median, third = np.quantile([*own.values()], (0.25, 0.5, 0.75)).tolist()
        paired = np.median([own[i] / erm[i] for i in own])
        gains = [own[i] / native[i] for i in own if i in native and " backpack" in name]
        summary[name] = {
            "milliseconds": [*own.values()],
            "median": median,
            "quartiles": (first, third),
            "ratio": median / float(np.median([*erm.values()])),
            "time": float(paired),
            "speed-up": float(np.median(gains)) if gains else None,
            "peak": peak,
            "memory": peak / base if peak and base else None,
        }
    return summary


def judge(name: str, row: dict[str, Any], bars: dict[str, float]) -> str:
    """Compare with the bars: time and memory of ERM at most, BackPACK of native at least."""
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
            len(row["milliseconds"]),
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
    ] + [[name, "refuses", *[""] * 8] for name in refusals]
    columns = [
        "contender", "steps", "ms", "quartiles", "ratio", "paired", "MiB", "memory",
        "native faster", "bars",
    ]  # fmt: skip
    table = tabulate(rows, columns, tablefmt=style, disable_numparse=True)
    reasons = [f"{name} refuses: {why}" for name, why in refusals.items()]
    return "\n\n".join([table, *reasons, *in_words(summary)])


def in_words(summary: dict[str, dict[str, Any]]) -> list[str]:
    """How many times as long as native BackPACK takes over all parameters: a sentence or none."""
    ways = {
        "as it comes": RIVALS[0],
        "with its fast convolutions": RIVALS[1],
        "by sums of squares": RIVALS[2],
        "by sums of squares with its fast convolutions": RIVALS[3],
    }
    gains = [
        f"{summary[name]['speed-up']:.1f} times as long {way}"
        for way, name in ways.items()
        if name in summary and summary[name]["speed-up"]
    ]
    return [f"Over all parameters BackPACK takes, against native, {', '.join(gains)}."] * bool(
        gains
    )


def described(platform: Platform) -> str:
    """Say how a step computes."""
    how = "bfloat16 by autocast" if platform.precision == "bf16" else "float32"
    how += ", channels last" * platform.channels_last
    return how + f", compiled by {platform.compiler}" * bool(platform.compiler)


def time_methods(arguments: argparse.Namespace) -> None:
    """Time every method beside ERM and DomainBed's own update."""
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_methods

    torch.set_num_threads(arguments.threads)
    head = measured(f"threads: {arguments.threads}", "float32")
    print(head)
    tables, figures = bench_methods.run(
        arguments.workloads or [*bench_methods.WORKLOADS],
        arguments.methods or bench_methods.options(),
        arguments.domainbed,
        arguments.rounds,
    )
    if arguments.markdown:
        about = explained(bench_methods.__doc__, skip=2)
        parts = ["# Time of a step of every method", head, about, tables]
        write_page(arguments.markdown, parts)
    if arguments.json:
        arguments.json.write_text(json.dumps({"header": head, "methods": figures}, indent=1))


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
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--compile", nargs="?", const="inductor", metavar="BACKEND", help="compile featurizers")
    add("--channels-last", action="store_true", help="memory layout of weights and images")
    add("--scale", type=float, default=1.0, help="times the samples of each domain, for trials")
    add("--json", type=Path, metavar="FILE", help="write every time and figure")
    add("--markdown", type=Path, metavar="FILE", help="write the tables")
    add(
        "--methods",
        nargs="*",
        metavar="NAME",
        help="time every method (or these) beside ERM and DomainBed: see bench_methods.py",
    )
    add("--domainbed", metavar="DIR", help="a checkout; its Fishr takes part")
    add(
        "--peak-of",
        choices=[*CONTENDERS, DOMAINBED],
        metavar="NAME",
        help="print only its peak, in bytes",
    )
    arguments = parser.parse_args(argv)
    for message in ("Full backward hook is firing", "Extension saving to", "Using backward.. with"):
        warnings.filterwarnings("ignore", message=message)  # of BackPACK
    if arguments.methods is not None:
        time_methods(arguments)
        return
    chosen = arguments.workloads or [name for name in WORKLOADS if _can_build(name)]
    if unknown := set(chosen) - set(WORKLOADS):
        parser.error(f"{', '.join(unknown)}: choose of {', '.join(WORKLOADS)}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    names = [name for name in CONTENDERS if name in {"erm", *arguments.contenders}]
    plain = Platform(domainbed=arguments.domainbed)
    platform = platform_of(arguments)
    names += [DOMAINBED] if arguments.domainbed and platform == plain else []
    how, figures = f"threads: {arguments.threads}", {}
    head = measured(how, described(platform), device=platform.device)
    pages = ["# Time and memory of a training step", head, explained(__doc__)]
    if not arguments.peak_of:
        print(head)
    for name in chosen:
        samples = max(2, round(WORKLOADS[name].samples * arguments.scale))
        workload = replace(WORKLOADS[name], samples=samples)
        if platform != plain:
            workload = replace(workload, bars={})
        if arguments.peak_of:
            print(measure_peak(workload, arguments.peak_of, platform))
            return
        taking_part = workload.contenders(names)
        times, refusals = measure_times(workload, taking_part, arguments.rounds, platform)
        summary = summarise(times, {n: peak_in_a_process(name, n, arguments) for n in times})
        tables = [render(summary, refusals, workload.bars, s) for s in ("simple", "github")]
        print(f"\n{name}: {workload}\n\n{tables[0]}", flush=True)
        pages += [f"## {name}: {workload}", tables[1]]
        figures[name] = {"refusals": refusals, "contenders": summary}
        if arguments.markdown:  # after each, so that a command that is stopped leaves them
            write_page(arguments.markdown, pages)
        if arguments.json:
            text = json.dumps({"header": head, "workloads": figures}, indent=1)
            write_atomically(arguments.json, text)


if __name__ == "__main__":
    logging.getLogger("fishr_exp").setLevel(logging.ERROR)  # random weights are meant here
    main()
