"""Every method makes steps on a device; they are found by themselves, so a new one is tested."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fishr_exp.training.step import make_players, optimizer_step
from tests.e2e.conftest import Command
from tests.unit.trainers.test_methods import METHODS, batch, ready

aten = torch.ops.aten


@pytest.mark.parametrize("name", METHODS)
def test_steps_have_a_finite_objective(name: str, device: torch.device) -> None:
    """Before and after the penalty acts, and after the state went through a checkpoint."""
    trainer, network, _ = ready(name)
    trainer, network = trainer.to(device), network.to(device)
    players = make_players(trainer, network, torch.optim.Adam)
    for step in (0, 10_000, 10_001):
        if step == 10_001:  # the state of a checkpoint is read to the CPU
            content = io.BytesIO()
            torch.save([trainer.state_dict(), network.state_dict()], content)
            content.seek(0)
            saved = torch.load(content, map_location="cpu", weights_only=True)
            trainer.load_state_dict(saved[0])
            network.load_state_dict(saved[1])
        given = batch(6, 7, 5, seed=step)
        given = dataclasses.replace(given, x=given.x.to(device), y=given.y.to(device))
        logs = optimizer_step(trainer, network, players, given, step)
        assert logs["objective"].isfinite()
    for parameter in (*network.parameters(), *trainer.parameters()):
        assert parameter.device.type == device.type
        assert parameter.isfinite().all()


class _Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: values that Python asks for, and copies."""

    ASKING = (aten._local_scalar_dense, aten.nonzero, aten._unique2, aten.masked_select)

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = function.overloadpacket
        found = function(*args, **kwargs)
        if packet in self.ASKING:
            self.counts[str(packet)] += 1
        if packet is aten._to_copy and args[0].device != found.device:
            self.counts["copy"] += not kwargs.get("non_blocking")
        return found


@pytest.mark.parametrize("trainer", [
    "erm", "irm_colored_mnist", "vrex_colored_mnist", "fishr_colored_mnist", "fishr", "coral",
    "fishr_domainbed",
])  # fmt: skip
def test_a_step_waits_once_for_the_device(
    trainer: str, device: torch.device, fishr_exp: Command
) -> None:
    """When it looks whether the objective is finite: the rest is told to the device ahead."""
    waits = []
    for steps in (5, 7):  # at the steps 1, 2, 4, 8, ... Fishr checks itself
        mode = _Waits()
        words = (
            f"trainer={trainer}",
            f"device={device}",
            f"total_steps={steps}",
            f"steps_per_epoch={steps}",
            "batch_size=null",
            "tracker=none",
            "optimizer=sgd",
        )  # fmt: skip  (Adam counts its steps in tensors on the CPU)
        words += ("trainer.anneal_steps=0",) if "fishr" in trainer else ()
        with mode:
            done = fishr_exp(*words, tiny=("model.hidden=8",))
        assert done.status == 0, done.err
        waits.append(mode.counts)
    assert waits[1] - waits[0] == {"aten._local_scalar_dense": 2}
