"""Time of a training step of every method: ERM's, ours, and DomainBed's own update.

`bench_step.py --methods` runs it; `--domainbed DIR` names a checkout of facebookresearch/DomainBed.

Ours and DomainBed's update start from the same weights and learn from the same batch, with Adam,
BatchNorm frozen, and every penalty acting. In every round ERM, ours and theirs make one step each,
in a new random order, so that other load on the machine affects them equally. A method that updates
its networks in turn (DANN) makes a whole cycle, and its time is divided by the steps of it. `ours`
and `DomainBed` are medians; `× ERM` is the median over the rounds of ours to ERM's of the same
round, and `gain` that of DomainBed's to ours: above 1, ours is the faster one.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import random
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from tabulate import tabulate
from timed_steps import Workload, random_backbone
from torch import nn

from fishr_exp.configuration.binding import arguments
from fishr_exp.configuration.options import conf_dir
from fishr_exp.core._torchvision import torchvision  # noqa: F401 - before DomainBed imports it
from fishr_exp.core.contracts import Batch, Facts, Model, Trainer
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.models.mlp import mlp
from fishr_exp.trainers.erm import Erm
from fishr_exp.training.step import make_players, optimizer_step

LATE = 1_000_000  # a step at which everything acts
CLOSE = 1.10  # times ERM, for the methods that add little
ADD_LITTLE = ("coral", "group_dro", "vrex", "irm", "sd", "rsc", "eqrm")
STEPS = {"dann": 2, "cdann": 2}  # of a cycle: one update of each player
# Our options, and what DomainBed calls them, with what makes its penalties act at once.
DOMAINBED: dict[str, tuple[str, dict[str, Any]]] = {
    "erm": ("ERM", {}),
    "fishr_domainbed": ("Fishr", {"penalty_anneal_iters": 0}),
    "irm": ("IRM", {"irm_penalty_anneal_iters": 0}),
    "vrex": ("VREx", {"vrex_penalty_anneal_iters": 0}),
    "coral": ("CORAL", {}),
    "mmd": ("MMD", {}),
    "group_dro": ("GroupDRO", {}),
    "mixup": ("Mixup", {}),
    "mldg": ("MLDG", {"n_meta_test": 1}),
    "rsc": ("RSC", {}),
    "sd": ("SD", {}),
    "iga": ("IGA", {}),
    "ib_erm": ("IB_ERM", {"ib_penalty_anneal_iters": 0}),
    "ib_irm": ("IB_IRM", {"ib_penalty_anneal_iters": 0, "irm_penalty_anneal_iters": 0}),
    "eqrm": ("EQRM", {"eqrm_burnin_iters": 0}),
    "rdm": ("RDM", {"rdm_penalty_anneal_iters": 0}),
    "cad": ("CAD", {}),
    "cond_cad": ("CondCAD", {}),
    "causirl_coral": ("CausIRL_CORAL", {}),
    "causirl_mmd": ("CausIRL_MMD", {}),
    "and_mask": ("ANDMask", {}),
    "sand_mask": ("SANDMask", {"tau": 0.5}),
    "fish": ("Fish", {}),
    "dann": ("DANN", {}),
    "cdann": ("CDANN", {}),
    "sagnet": ("SagNet", {}),
    "mtl": ("MTL", {}),
    "arm": ("ARM", {}),
    "selfreg": ("SelfReg", {}),
    "transfer": ("Transfer", {"d_steps_per_g": 10}),
    "urm": ("URM", {}),
    "trm": ("TRM", {"iters": 0}),
}
PRESETS = ("fishr_colored_mnist", "fishr_domainlab", "irm_colored_mnist", "vrex_colored_mnist",
           "mixup_2020", "composed", "linear_probe")  # fmt: skip


WORKLOADS = {
    "mlp": Workload(
        functools.partial(mlp, hidden=390, hidden_layers=2, single_logit=False), 3, 64, (2, 14, 14),
        7,
    ),
    "resnet18": Workload(
        functools.partial(random_backbone, library="torchvision", name="resnet18"), 3, 16,
        (3, 96, 96), 7,
    ),
}  # fmt: skip


def build(workload: Workload, input_shape: tuple[int, ...] = ()) -> Model:
    """Build its network, always with the same weights; also for samples with more channels."""
    torch.manual_seed(0)
    return replace(workload, input_shape=input_shape or workload.input_shape).model("cpu")


class Body(nn.Module):
    """Our featurizer, as DomainBed wants it."""

    def __init__(self, featurizer: nn.Module, outputs: int) -> None:
        super().__init__()
        self.featurizer, self.n_outputs = featurizer, outputs
        self.activation: nn.Module = nn.Identity()  # URM replaces it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [n, *input_shape] to features [n, F]."""
        return self.featurizer(x)


def ours(option: str, workload: Workload, batch: Batch) -> Callable[[], None]:
    """Return what makes a step of a method of ours."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [f"trainer={option}", "sweep_name=bench"])
    make = arguments(config, {"dataset": "", "model": "", "trainer": ""}).trainer
    trainer: Trainer = make(loss=per_sample_losses)
    model = build(workload)
    facts = Facts(
        ("a", "b", "c"), workload.num_classes, model.classifier.in_features, LATE + 1000,
        workload.input_shape,
    )  # fmt: skip
    model = trainer.prepare(model, facts).train()
    trainer.train()
    players = make_players(trainer, model, functools.partial(torch.optim.Adam, lr=5e-5))
    step = LATE

    def one() -> None:
        nonlocal step
        optimizer_step(trainer, model, players, batch, step)
        step += 1

    return one


class Latest:
    """Lets DomainBed's Fishr run with current versions of PyTorch and BackPACK.

    Its backward pass is limited to the classifier's parameters, where BackPACK's hooks no longer
    fire; it is limited to the classifier's input and parameters instead.
    """

    def __init__(self) -> None:
        self._features: torch.Tensor | None = None
        original = torch.Tensor.backward

        def backward(tensor: torch.Tensor, *args: Any, inputs: Any = None, **keywords: Any) -> None:
            if inputs is not None and self._features is not None:
                inputs = [*inputs, self._features]
            original(tensor, *args, inputs=inputs, **keywords)

        self.backward = backward

    def __call__(self, _module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self._features = given[0]


class Checkout:
    """DomainBed's own updates, on our networks."""

    def __init__(self, path: str) -> None:
        sys.modules.setdefault("timm", types.ModuleType("timm"))  # imported, and not used here
        sys.path.insert(0, path)
        self.networks: Any = importlib.import_module("domainbed.networks")
        self.algorithms: Any = importlib.import_module("domainbed.algorithms")
        self.registry: Any = importlib.import_module("domainbed.hparams_registry")

    @contextlib.contextmanager
    def _with(self, workload: Workload) -> Iterator[None]:
        def featurizer(input_shape: tuple[int, ...], _hparams: object) -> Body:
            model = build(workload, tuple(input_shape))
            return Body(model.featurizer, model.classifier.in_features)

        with (
            mock.patch.object(self.networks, "Featurizer", featurizer),
            mock.patch.object(self.networks, "MNIST_CNN", Body),
            mock.patch.object(torch.Tensor, "cuda", lambda tensor, *_: tensor),
            mock.patch.object(nn.Module, "cuda", lambda module, *_: module),
        ):
            yield

    def update(self, option: str, workload: Workload, batch: Batch) -> Callable[[], None]:
        """Return what makes an update of the method that is our `option`."""
        name, more = DOMAINBED[option]
        hparams = self.registry.default_hparams(name, "PACS") | {"batch_size": workload.samples}
        with self._with(workload):
            algorithm = getattr(self.algorithms, name)(
                workload.input_shape, workload.num_classes, len(batch.sizes), hparams | more
            )
        algorithm.train()  # TRM's returns nothing
        minibatches = list(zip(batch.by_domain(batch.x), batch.by_domain(batch.y), strict=True))
        features = Latest()
        if name == "Fishr":
            algorithm.classifier.register_forward_pre_hook(features)

        def one() -> None:
            with (
                self._with(workload),
                mock.patch.object(torch.Tensor, "backward", features.backward),
            ):
                algorithm.update(minibatches)

        return one


def erm(workload: Workload, batch: Batch) -> Callable[[], None]:
    """Return what makes a step of ERM."""
    trainer, model = Erm(), build(workload)
    players = make_players(trainer, model, functools.partial(torch.optim.Adam, lr=5e-5))
    return lambda: void(optimizer_step(trainer, model, players, batch, LATE))


def void(_result: object) -> None:
    """Drop a result."""


def measure(
    option: str, workload: Workload, checkout: Checkout | None, rounds: int
) -> dict[str, float | None]:
    """Time a method beside ERM and DomainBed's update; milliseconds, and ratios of rounds."""
    torch.manual_seed(0)
    batch = workload.batch("cpu")
    sides = {"erm": erm(workload, batch), "ours": ours(option, workload, batch)}
    if checkout and option in DOMAINBED:
        sides["theirs"] = checkout.update(option, workload, batch)
    steps = {"erm": 1, "ours": STEPS.get(option, 1), "theirs": STEPS.get(option, 1)}
    times: dict[str, list[float]] = {side: [] for side in sides}
    order, shuffle = [*sides], random.Random(0).shuffle
    for number in range(rounds + 1):  # the first one warms up
        shuffle(order)
        for side in order:
            gc.collect()
            started = time.perf_counter()
            for _ in range(steps[side]):
                sides[side]()
            if number >= 1:
                times[side].append((time.perf_counter() - started) * 1e3 / steps[side])
    values = {side: np.array(own) for side, own in times.items()}
    theirs = values.get("theirs")
    return {
        "erm": float(np.median(values["erm"])),
        "ours": float(np.median(values["ours"])),
        "times_erm": float(np.median(values["ours"] / values["erm"])),
        "domainbed": None if theirs is None else float(np.median(theirs)),
        "gain": None if theirs is None else float(np.median(theirs / values["ours"])),
    }


def options() -> list[str]:
    """Our methods: the options of the group `trainer`, one for each."""
    known = sorted(path.stem for path in (conf_dir() / "trainer").glob("*.yaml"))
    return [name for name in known if name not in PRESETS and name != "fishr"]


def verdict(option: str, name: str, row: dict[str, float | None]) -> str:
    """Compare with what is asked of a method."""
    said = []
    times_erm, gain = row["times_erm"], row["gain"]
    assert times_erm is not None
    if name == "resnet18" and option in ADD_LITTLE:
        said.append(f"≤ {CLOSE:g} × ERM {'met' if times_erm <= CLOSE else 'not met'}")
    if gain is not None:
        said.append("not slower" if gain >= 1 else "slower" if gain < 0.98 else "equal")
    return ", ".join(said)


def run(
    workloads: list[str], chosen: list[str], path: str | None, rounds: int
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Measure the methods on the workloads; print as it goes.

    Returns:
        The tables in Markdown, and all figures.
    """
    checkout = Checkout(path) if path else None
    pages, figures = [], {}
    for name in workloads:
        workload, rows = WORKLOADS[name], {}
        for option in chosen:
            row: dict[str, Any] = {}
            try:
                row = measure(option, workload, checkout, rounds)
            except (ValueError, RuntimeError, NotImplementedError) as error:
                print(f"{name} {option}: {str(error).splitlines()[0]}", flush=True)
                continue
            rows[option] = row
            print(name, option, verdict(option, name, row),
                  {k: v and round(v, 3) for k, v in row.items()}, flush=True)  # fmt: skip
        figures[name] = rows
        pages += [f"## Methods, {name}: {workload}", table(name, rows)]
    return "\n\n".join(pages) + "\n", figures


def table(name: str, rows: dict[str, dict[str, float | None]]) -> str:
    """One workload in Markdown, by cost."""

    def shown(value: float | None, form: str = ".4g") -> str:
        return "" if value is None else format(value, form)

    ordered = sorted(rows.items(), key=lambda item: item[1]["times_erm"] or 0)
    return tabulate(
        [
            [
                option, shown(row["ours"]), shown(row["times_erm"], ".2f"),
                shown(row["domainbed"]), shown(row["gain"], ".2f"), verdict(option, name, row),
            ]
            for option, row in ordered
        ],
        ["trainer", "ours, ms", "× ERM", "DomainBed, ms", "gain", ""],
        tablefmt="github",
        disable_numparse=True,
    )  # fmt: skip
