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
import logging
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import explained, measured, write_numbers, write_page
from tabulate import tabulate
from timed_steps import (
    CONTENDERS,
    DOMAINBED,
    RIVALS,
    WORKLOADS,
    Platform,
    can_build,
    described,
    freeing_memory,
    measure_peak,
    measure_times,
)


def platform_of(arguments: argparse.Namespace) -> Platform:
    """Return what the command line says of where and how."""
    return Platform(
        arguments.device, arguments.precision, arguments.compile, arguments.channels_last,
        arguments.domainbed,
    )  # fmt: skip


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


def time_methods(arguments: argparse.Namespace) -> None:
    """Time every method beside ERM and DomainBed's own update."""
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
        write_numbers(arguments.json, {"header": head, "methods": figures})


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
    chosen = arguments.workloads or [name for name in WORKLOADS if can_build(name)]
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
            write_numbers(arguments.json, {"header": head, "workloads": figures})


if __name__ == "__main__":
    logging.getLogger("fishr_exp").setLevel(logging.ERROR)  # random weights are meant here
    main()
