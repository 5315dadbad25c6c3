"""Time of a step in half precision on a CPU: ours beside PyTorch's autocast alone, and float32.

A step of ERM is timed, as `bench_step.py` does it, on 3 × 16 random images of 96×96, with weights
in channels_last. In every round each contender makes one step, in a new random order. `ratio` is
the median over the rounds of the time relative to float32 in the same round. With `precision=bf16`
on a CPU, depthwise convolutions stay in float32; `autocast alone` is without that. ResNet-18 has no
depthwise convolutions: its two rows in bfloat16 compute the same, and their difference is noise.
"""

from __future__ import annotations

import argparse
import copy
import functools
import random
from pathlib import Path
from statistics import median

import torch
from pages import explained, measured, write_section
from tabulate import tabulate
from timed_steps import Contender, Platform, Workload, random_backbone

NETWORKS = {
    "EfficientNet-Lite0": ("timm", "tf_efficientnet_lite0"),
    "MobileNet-V3, large": ("torchvision", "mobilenet_v3_large"),
    "ConvNeXt-Tiny": ("torchvision", "convnext_tiny"),
    "ResNet-18": ("torchvision", "resnet18"),
}
ALONE = "bf16, autocast alone"
WAYS = {"fp32": "fp32", ALONE: "bf16", "bf16": "bf16"}  # what a row is called -> its precision


def contenders(network: str) -> dict[str, Contender]:
    """Return what steps in each way, from the same weights on the same batch."""
    library, name = NETWORKS[network]
    build = functools.partial(random_backbone, library=library, name=name)
    workload = Workload(build, 3, 16, (3, 96, 96), 7)
    model, batch = workload.model("cpu"), workload.batch("cpu")
    found = {}
    for way, precision in WAYS.items():
        platform = Platform(precision=precision, channels_last=True)
        found[way] = Contender("erm", copy.deepcopy(model), batch, platform)
    found[ALONE].autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    return found


def times(network: str, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each way, by round."""
    known = contenders(network)
    for contender in known.values():
        contender.timed_step()
    found: dict[str, list[float]] = {way: [] for way in known}
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        turns = [*known]
        shuffle(turns)
        for way in turns:
            found[way].append(known[way].timed_step())
    return found


def rows(network: str, rounds: int) -> list[list[str]]:
    """Return the rows of a network."""
    found = times(network, rounds)
    base = found["fp32"]
    table = []
    for way, ms in found.items():
        ratio = median(a / b for a, b in zip(ms, base, strict=True))
        table.append([network, way, f"{median(ms):.0f}", f"{ratio:.2f}"])
    return table


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=[*NETWORKS], metavar="NETWORK")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each contender")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the section")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    body = [row for network in arguments.networks for row in rows(network, arguments.rounds)]
    table = tabulate(body, ["network", "precision", "ms", "ratio"], "github", disable_numparse=True)
    settings = f"threads: {arguments.threads}", "channels last", f"rounds: {arguments.rounds}"
    parts = ["## Half precision", measured(*settings), explained(__doc__), table]
    section = "\n\n".join(parts)
    print(section)
    if arguments.markdown:
        write_section(arguments.markdown, section)


if __name__ == "__main__":
    main()
