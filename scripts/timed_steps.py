"""A training step of each contender on the same batch: its time, in turns, and its peak memory."""

from __future__ import annotations

import copy
import functools
import gc
import importlib.util
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from backpack import backpack, extend, memory_cleanup
from backpack.core.derivatives.convnd import weight_jac_t_save_memory
from backpack.extensions import SumGradSquared
from torch import nn

from fishr_exp.core._torchvision import torchvision
from fishr_exp.core.contracts import Batch, Model, Objective, Trainer
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.models.backbone import backbone
from fishr_exp.models.mlp import mlp
from fishr_exp.models.mnist_cnn import mnist_cnn
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
        risk = torch.stack(risks).mean()
        stacked = [torch.stack(v) for v in zip(*variances, strict=True)]
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


def described(platform: Platform) -> str:
    """Say how a step computes."""
    how = "bfloat16 by autocast" if platform.precision == "bf16" else "float32"
    how += ", channels last" * platform.channels_last
    return how + f", compiled by {platform.compiler}" * bool(platform.compiler)


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
random_backbone = partial(
    backbone, pretrained=False, weights_file=None, freeze_bn=True, dropout=0.0
)
_resnet18 = partial(random_backbone, library="torchvision", name="resnet18")


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
        partial(random_backbone, library="torchvision", name="swin_t"), 3, 4, (3, 96, 96), 7,
        {"fishr classifier native time": 1.05, "fishr all native time": 6.0},
    ),
    "mobilevit_s": Workload(
        partial(random_backbone, library="timm", name="mobilevit_s"), 3, 4, (3, 96, 96), 7,
        {"fishr classifier native time": 1.05, "fishr all native time": 6.0},
    ),
}  # fmt: skip


def can_build(name: str) -> bool:
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
        import bench_methods

        self.name, self.batch = DOMAINBED, batch
        workload = Workload(
            lambda **_: copy.deepcopy(model), len(batch.sizes), batch.sizes[0],
            tuple(batch.x.shape[1:]), int(batch.y.max()) + 1,
        )  # fmt: skip
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


def _resident(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, field
    return int(match[1]) * 1024


def freeing_memory() -> dict[str, str]:
    """Environment in which blocks above 64 KiB go back to the system when freed.

    The peak is then what was in use.
    """
    return {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
