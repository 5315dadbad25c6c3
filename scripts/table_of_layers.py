"""Which layers and networks the native engine computes by rule, and at what cost.

Each layer stands between a linear layer and a classifier; each network has its own classifier, and
BatchNorm in evaluation mode, as where it is frozen. Gradient steps of Fishr over all parameters are
computed on random samples. The table says how:

- `by rule`: no per-sample forward pass;
- `sample by sample`: some parameters have no rule, and are named: their samples run separately;
- `refused`: with the first line of the message;
- `times ERM`: the median over the rounds of the time of a gradient step of Fishr over all
  parameters, divided by that of ERM in the same round. Of small layers most is overhead.

Networks of timm are included if it is installed.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from layer_cases import CLASSES, LAYERS, NETWORKS, Case
from pages import measured
from tabulate import tabulate
from torch import nn

from fishr_exp.gradient_variance import (
    UnsupportedError,
    gradient_variance,
    per_sample_losses,
    squared_distance,
)

BEGIN, END = "<!-- table of layers: begin -->", "<!-- table of layers: end -->"


class Row(NamedTuple):
    """What became of a case."""

    how: str
    parameters: str  # those without a rule, or the reason of a refusal
    ratio: float | None


class _Fishr:
    """Fishr over all parameters, and ERM, on one batch."""

    def __init__(self, case: Case, samples: int) -> None:
        torch.manual_seed(0)
        self.sizes = (samples, samples)
        count = sum(self.sizes)
        self.x = (
            torch.randint(case.words, (count, *case.shape))
            if case.words
            else torch.randn(count, *case.shape)
        )
        self.y = torch.randint(CLASSES, (count,))
        self.model = case.build()
        if case in NETWORKS.values():
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        with torch.no_grad():
            self.model(self.x)  # makes lazy layers

    def erm(self) -> None:
        """Compute ERM's gradient."""
        per_sample_losses(self.model(self.x), self.y).mean().backward()

    def fishr(self) -> None:
        """Compute Fishr's gradient."""
        found = gradient_variance(
            self.model, self.x, self.y, self.sizes, scope="all",
            reduce=lambda _, v: squared_distance(v),
        )  # fmt: skip
        penalty = torch.stack(list(found.variances.values())).sum()
        (found.losses.mean() + penalty).backward()


@contextmanager
def _without_rule() -> Iterator[list[str]]:
    """Collect the names of the parameters that the engine reports to have no rule."""
    names: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("no rule applies") and record.args:
                names.extend(str(record.args[0]).split(", "))

    logger, handler = logging.getLogger("fishr_exp.gradient_variance"), Collect()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield names
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def examine(case: Case, samples: int, rounds: int) -> Row:
    """See how a case is computed, and time it."""
    fishr = _Fishr(case, samples)
    with _without_rule() as names:
        try:
            for _ in range(3):  # calls 1 and 2 are compared with autograd
                fishr.fishr()
        except UnsupportedError as error:
            return Row("refused", str(error), None)
        except RuntimeError as error:  # torch has no second derivative, for one
            return Row("refused", f"by torch: {str(error).splitlines()[0]}", None)
    fishr.erm()
    ratios = [_seconds(fishr.fishr) / _seconds(fishr.erm) for _ in range(rounds)]
    how = "sample by sample" if names else "by rule"
    return Row(how, ", ".join(names), statistics.median(ratios) if ratios else None)


def _seconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def render(rows: dict[str, Row], title: str) -> str:
    """Return the rows as a Markdown table."""
    cells = [
        [name, row.how, "" if row.ratio is None else f"{row.ratio:.1f}", _short(row)]
        for name, row in rows.items()
    ]
    columns = [title, "computed", "times ERM", "without rule, or the reason"]
    return tabulate(cells, columns, tablefmt="github", disable_numparse=True)


def _short(row: Row, most: int = 3) -> str:
    names = row.parameters.split(", ")
    if row.how == "refused" or len(names) <= most:
        return row.parameters
    return f"{', '.join(names[:most])}, … ({len(names)})"


def write_section(page: Path, section: str) -> None:
    """Replace what is between the two marks in a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page}: has no marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{section}\n\n{END}{after}")


def main(argv: list[str] | None = None) -> None:
    """Examine, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="layers and networks; default all")
    add("--samples", type=int, default=16, help="for layers, in each of two domains (default 16)")
    add("--images", type=int, default=4, help="for networks, in each of two domains (default 4)")
    add("--rounds", type=int, default=5, help="timed steps (default 5)")
    add("--threads", type=int, default=1, help="threads of one operation (default 1)")
    add("--markdown", type=Path, metavar="FILE", help="write the tables between the marks in it")
    arguments = parser.parse_args(argv)
    cases = LAYERS | NETWORKS
    if unknown := set(arguments.names) - set(cases):
        parser.error(f"{', '.join(sorted(unknown))}: choose of {', '.join(cases)}")
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    rows = {}
    for name in arguments.names or cases:
        samples = arguments.samples if name in LAYERS else arguments.images
        rows[name] = examine(cases[name], samples, arguments.rounds)
        print(name, *rows[name], sep=" | ", flush=True)
    tables = [
        render({n: row for n, row in rows.items() if n in group}, title)
        for title, group in (("layer", LAYERS), ("network", NETWORKS))
        if rows.keys() & group.keys()
    ]
    head = measured(f"threads: {arguments.threads}", "float32")
    batch = (
        f"Batches have 2 domains of {arguments.samples} samples for layers, "
        f"{arguments.images} images of 64×64 (Swin: 96×96) for networks."
    )
    section = "\n\n".join([head, batch, *tables])
    print(f"\n{section}")
    if arguments.markdown:
        write_section(arguments.markdown, section)


if __name__ == "__main__":
    main()
