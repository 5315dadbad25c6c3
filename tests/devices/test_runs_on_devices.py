"""Runs on a device: stopped and resumed, in half precision, compiled, and opened on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fishr_exp.api import load_model
from fishr_exp.cli import evaluate
from fishr_exp.runs.names import EVALUATIONS
from tests.e2e.conftest import Command, Outcome, caller, newest_state, stop_before

SHORT = ("model.hidden=16", "total_steps=6", "steps_per_epoch=3", "batch_size=16", "tracker=none")
FISHR = ("trainer=fishr_domainbed", "trainer.gamma=10", "trainer.anneal_steps=2")
SMALL = (
    "dataset=image_folder", "dataset.image_size=32", "model=torchvision", "model.name=resnet18",
    "test_domains=[sketch]", "batch_size=4", "total_steps=3", "steps_per_epoch=3",
    "evaluate_train=false", "tracker=none",
)  # fmt: skip
WAYS = {
    "bf16": ("precision=bf16", "channels_last=true"),
    "compiled": ("compile=true",),
    "all": ("precision=bf16", "channels_last=true", "compile=true"),
}


def scores(outcome: Outcome) -> list[dict[str, Any]]:
    """The records, without their times."""
    return [
        {k: v for k, v in record.items() if "seconds" not in k and k != "time"}
        for record in outcome.records()
    ]


def assert_same(one: Any, other: Any, device: torch.device) -> None:
    """The same bits on the CPU; on a device sums may be added up in another order."""
    if device.type == "cpu" or not isinstance(one, dict | list | float):
        assert one == other
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    else:
        keys = range(len(one)) if isinstance(one, list) else one
        assert len(one) == len(other)
        for key in keys:
            assert_same(one[key], other[key], device)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that was never stopped, and its device."""
    runs = tmp_path_factory.mktemp("whole")
    outcome = caller(runs)(*FISHR, f"device={request.param}", tiny=SHORT)
    assert outcome.status == 0, outcome.err
    return outcome, torch.device(request.param)


def test_a_stopped_run_goes_on_to_the_same_records(whole: Any, fishr_exp: Command) -> None:
    """The penalty acts, with its moving average and Adam made from scratch, before the stop."""
    undisturbed, device = whole
    with pytest.MonkeyPatch.context() as patch:
        stop_before(4, patch)
        stopped = fishr_exp(*FISHR, f"device={device}", tiny=SHORT)
    assert stopped.status == 130, stopped.err
    done = fishr_exp(*FISHR, f"device={device}", tiny=SHORT)
    assert done.status == 0, done.err
    assert_same(scores(done), scores(undisturbed), device)
    for kind in ("best", "last"):
        left, right = (outcome.checkpoint(kind)["model"] for outcome in (undisturbed, done))
        for name, value in left.items():
            torch.testing.assert_close(right[name].cpu(), value.cpu(), rtol=1e-4, atol=1e-5)


def test_its_records_are_those_of_the_cpu(whole: Any, fishr_exp: Command) -> None:
    """Splits, minibatches and first weights do not depend on the device."""
    there, device = whole
    here = fishr_exp(*FISHR, "device=cpu", tiny=SHORT)
    for one, other in zip(scores(there), scores(here), strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=0.05, abs=1e-6), device


def test_its_checkpoints_open_on_the_cpu(whole: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """By `load_model`, by `fishr-eval`, and to go on from."""
    outcome, _ = whole
    model = load_model(outcome.folder)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert model(torch.rand(5, 2, 8, 8)).isfinite().all()
    state = torch.load(newest_state(outcome.folder), map_location="cpu", weights_only=True)
    assert state["step"] == 6
    assert evaluate.main([str(outcome.folder), "device=cpu"]) in (None, 0), capsys.readouterr()
    written = outcome.folder / EVALUATIONS / "colored_digits" / "evaluation.json"
    assert "minus90" in written.read_text()


def test_a_run_of_a_device_goes_on_on_the_cpu(device: torch.device, fishr_exp: Command) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_before(4, patch)
        assert fishr_exp(*FISHR, f"device={device}", tiny=SHORT).status == 130
    done = fishr_exp(*FISHR, "device=cpu", tiny=SHORT)
    assert done.status == 0, done.err
    assert done.result()["last"]["step"] == 6


@pytest.mark.parametrize("way", [
    pytest.param(way, marks=pytest.mark.slow if "compile=true" in words else [])
    for way, words in WAYS.items()
])  # fmt: skip
def test_faster_ways_give_about_the_same_losses(
    way: str, device: torch.device, images: Path, fishr_exp: Command
) -> None:
    """The compiled ones are slow on the CPU, where a C++ compiler is needed, too."""
    words = (*SMALL, *FISHR, "trainer.anneal_steps=0", f"dataset.root={images}", f"device={device}")
    outcomes = [fishr_exp(*words, tiny=()), fishr_exp(*words, *WAYS[way], tiny=())]
    (plain,), (fast,) = (scores(outcome) for outcome in outcomes)
    assert fast["losses"].keys() == plain["losses"].keys()
    # A GPU takes convolutions in TF32; the penalty is of the fourth order in the gradients.
    rel = 0.05 if "precision=bf16" in WAYS[way] else 0.01
    for name, times in {"risk": 1, "penalty": 4, "objective": 2}.items():
        expected = pytest.approx(plain["losses"][name], rel=times * rel)
        assert fast["losses"][name] == expected, name
