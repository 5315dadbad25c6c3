"""What a step over all parameters is made of: products beside everything else, ERM beside Fishr.

GFLOP are of matrix products and convolutions alone, counted by torch. `ratio` is to ERM's: a step
that did nothing but its products, as fast as ERM does its own, would take so many times ERM's time.
Shares are of the time that the step's operators take by themselves, by what they do.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Sequence

import torch
from pages import measured
from tabulate import tabulate
from timed_steps import WORKLOADS, Contender, Platform
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

CONTENDERS = ("erm", "fishr all native")
KINDS = {  # what an operator does, by words in its name; the first that fits
    "products": ("mm", "convolution", "conv2d", "_attention"),
    "copies": ("copy", "im2col", "col2im", "unfold", "cat", "index", "fill", "zero", "clone"),
    "sums": ("sum", "mean", "norm", "softmax"),
}


def kind(operator: str) -> str:
    """Say what an operator does."""
    found = (k for k, words in KINDS.items() if any(word in operator for word in words))
    return next(found, "elementwise and other")


def flops_of_addmm(_: Sequence[int], a: Sequence[int], b: Sequence[int], **others: object) -> int:
    """Count the operations of [m, k] times [k, n]; torch does not count `addmm_` by itself."""
    del others
    return 2 * a[0] * a[1] * b[1]


def flops(contender: Contender) -> int:
    """Count the operations of a step's products; one multiplication and addition are two."""
    in_place = {torch.ops.aten.addmm_: flops_of_addmm}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        contender.step()
    return counter.get_total_flops()


def shares(contender: Contender, steps: int) -> tuple[float, dict[str, float]]:
    """Return the milliseconds of a step, and the share of each kind of operator in them."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            contender.step()
    times: Counter[str] = Counter()
    for event in profiled.key_averages():
        times[kind(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    return total / steps / 1e3, {name: time / total for name, time in times.items()}


def main(argv: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workloads", nargs="*", default=["mlp", "mnist_cnn", "resnet18", "vit"])
    parser.add_argument("--steps", type=int, default=3, help="steps of each (default 3)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    kinds = [*KINDS, "elementwise and other"]
    rows = []
    for name in arguments.workloads:
        workload, counted = WORKLOADS[name], {}
        batch = workload.batch("cpu")
        for method in CONTENDERS:
            contender = Contender(method, workload.model("cpu"), batch, Platform())
            contender.step()  # the first one checks the rules, once
            counted[method] = flops(contender)
            milliseconds, parts = shares(contender, arguments.steps)
            ratio = counted[method] / counted["erm"]
            times = [milliseconds * parts.get(k, 0.0) for k in kinds]
            rows.append([name, method, counted[method] / 1e9, ratio, milliseconds, *times])
    print(f"{measured(f'threads: {arguments.threads}', 'float32')}\n")
    columns = ["workload", "step", "GFLOP", "ratio", "ms", *(f"{k}, ms" for k in kinds)]
    formats = ("", "", ".1f", ".2f", ".0f", *(".0f" for _ in kinds))
    print(tabulate(rows, columns, tablefmt="github", floatfmt=formats))


if __name__ == "__main__":
    logging.getLogger("fishr_exp").setLevel(logging.ERROR)  # random weights are meant here
    main()
