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
import importlib.util
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from pages import measured
from tabulate import tabulate
from torch import Tensor, nn

from fishr_exp.core._torchvision import torchvision
from fishr_exp.gradient_variance import (
    UnsupportedError,
    gradient_variance,
    per_sample_losses,
    squared_distance,
)

CLASSES = 7
BEGIN, END = "<!-- table of layers: begin -->", "<!-- table of layers: end -->"


class Case(NamedTuple):
    """A model and the shape of one sample."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    words: int = 0  # inputs are integers below this, if it is not 0


class Between(nn.Module):
    """A layer between a linear layer, over the last dimension, and a classifier."""

    def __init__(
        self,
        layer: nn.Module,
        last: int = 0,
        call: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x),
    ) -> None:
        super().__init__()
        self.before = nn.Linear(last, last) if last else nn.Identity()
        self.layer, self.call = layer, call
        self.classifier = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map samples to logits."""
        y = self.call(
            self.layer, torch.tanh(self.before(x)) if len(self.before.state_dict()) else x
        )
        return self.classifier(torch.tanh(y.flatten(1)))


class _Distances(nn.Module):
    """Distances to learned prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(16, 32))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.prototypes)


class _StandardizedConv(nn.Conv2d):
    """As timm's `StdConv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(weight, None, None, training=True, momentum=0.0)
        return nn.functional.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


def _vector(layer: Callable[[], nn.Module]) -> Case:
    return Case(lambda: Between(layer(), 32), (32,))


def _tokens(
    layer: Callable[[], nn.Module],
    call: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x),
) -> Case:
    return Case(lambda: Between(layer(), 32, call), (12, 32))


def _image(layer: Callable[[], nn.Module]) -> Case:
    return Case(lambda: Between(layer(), 12), (8, 12, 12))


def _folded(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _positions_first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.transpose(0, 1)).transpose(0, 1)


def _of_other_tokens(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x[:, :4], x, x, need_weights=False)[0]


def _first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0]


def _attention() -> nn.Module:
    return nn.MultiheadAttention(32, 4, batch_first=True)


def _weight_norm(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer)


LAYERS: dict[str, Case] = {
    "Linear": _vector(lambda: nn.Linear(32, 32)),
    "Linear on [N, T, F]": _tokens(lambda: nn.Linear(32, 32)),
    "Linear on [N·T, F]": _tokens(lambda: nn.Linear(32, 32), _folded),
    "Linear on [T, N, F]": _tokens(lambda: nn.Linear(32, 32), _positions_first),
    "Conv1d": Case(lambda: Between(nn.Conv1d(8, 8, 3), 32), (8, 32)),
    "Conv2d": _image(lambda: nn.Conv2d(8, 8, 3)),
    "Conv2d, depthwise": _image(lambda: nn.Conv2d(8, 8, 3, groups=8)),
    "Conv3d": Case(lambda: Between(nn.Conv3d(2, 4, 3), 8), (2, 8, 8, 8)),
    "ConvTranspose2d": _image(lambda: nn.ConvTranspose2d(8, 8, 3)),
    "Conv2d, standardized weight": _image(lambda: _StandardizedConv(8, 8, 3)),
    "Conv2d, weight_norm": _image(lambda: _weight_norm(nn.Conv2d(8, 8, 3))),
    "BatchNorm2d, evaluation mode": _image(lambda: nn.BatchNorm2d(8).eval()),
    "BatchNorm2d, training mode": _image(lambda: nn.BatchNorm2d(8)),
    "LayerNorm": _tokens(lambda: nn.LayerNorm(32)),
    "GroupNorm": _image(lambda: nn.GroupNorm(2, 8)),
    "InstanceNorm2d, affine": _image(lambda: nn.InstanceNorm2d(8, affine=True)),
    "RMSNorm": _tokens(lambda: nn.RMSNorm(32)),
    "Embedding": Case(lambda: Between(nn.Embedding(50, 16)), (12,), words=50),
    "Embedding on [N]": Case(lambda: Between(nn.Embedding(50, 16)), (), words=50),
    "EmbeddingBag": Case(lambda: Between(nn.EmbeddingBag(50, 16)), (12,), words=50),
    "MultiheadAttention, to itself": _tokens(_attention, lambda a, x: a(x, x, x)[0]),
    "MultiheadAttention, to other tokens": _tokens(_attention, _of_other_tokens),
    "TransformerEncoderLayer": _tokens(
        lambda: nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    ),
    "PReLU": _image(lambda: nn.PReLU(8)),
    "Bilinear": Case(
        lambda: Between(nn.Bilinear(32, 32, 8), 32, lambda layer, x: layer(x, x)), (32,)
    ),
    "RNN": _tokens(lambda: nn.RNN(32, 16, batch_first=True), _first),
    "GRU": _tokens(lambda: nn.GRU(32, 16, batch_first=True), _first),
    "LSTM": _tokens(lambda: nn.LSTM(32, 16, batch_first=True), _first),
    "TorchScript module": _vector(
        lambda: torch.jit.script(nn.Sequential(nn.Linear(32, 32), nn.Tanh()))
    ),
    "cdist to a parameter": _vector(_Distances),
    "Dropout, training mode": _vector(lambda: nn.Dropout(0.5)),
    "Dropout, training mode, beside PReLU": _image(
        lambda: nn.Sequential(nn.PReLU(8), nn.Dropout(0.5))
    ),
}


def _of_torchvision(name: str, side: int = 64, **options: object) -> Case:
    def build() -> nn.Module:
        return torchvision.models.get_model(name, num_classes=CLASSES, **options)

    return Case(build, (3, side, side))


def _of_timm(name: str, side: int = 64, **options: object) -> Case:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=CLASSES, **options)

    return Case(build, (3, side, side))


def _swin(name: str) -> Case:
    return _of_torchvision(name, 96)


NETWORKS: dict[str, Case] = {
    "resnet18": _of_torchvision("resnet18"),
    "resnet50": _of_torchvision("resnet50"),
    "densenet121": _of_torchvision("densenet121"),
    "mobilenet_v3_small": _of_torchvision("mobilenet_v3_small"),
    "efficientnet_b0": _of_torchvision("efficientnet_b0"),
    "convnext_tiny": _of_torchvision("convnext_tiny"),
    "vit_b_16": _of_torchvision("vit_b_16", image_size=64),
    "swin_t": _swin("swin_t"),
    "swin_v2_t": _swin("swin_v2_t"),
}
TIMM = {
    f"timm {name}": _of_timm(name, **options)
    for name, options in {
        "mobilevit_xxs": {},
        "mobilevit_s": {},
        "nf_resnet50": {},
        "resnetv2_50x1_bit": {},
        "beit_base_patch16_224": {"img_size": 64, "depth": 4},
        "xcit_nano_12_p8_224": {},
        "convnextv2_atto": {},
    }.items()
}
if importlib.util.find_spec("timm"):
    NETWORKS |= TIMM


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
