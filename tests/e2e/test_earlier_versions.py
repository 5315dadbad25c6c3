"""Runs of the version before the second house are read, resumed, and trained to the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fishr_exp.cli import evaluate
from fishr_exp.runs.environment import processor
from tests.conftest import GOLDEN

from .conftest import Command, newest_state

EARLIER = GOLDEN / "earlier_version"
TINY = ("model.hidden=8", "epochs=3", "steps_per_epoch=5", "tracker=none")
BEFORE = torch.load(EARLIER / "weights.pt", weights_only=True)
SAME_MACHINE = (BEFORE["torch"], BEFORE["cpu"]) == (torch.__version__, processor())


def assert_weights(found: dict, name: str) -> None:
    """Equal to the last bit where torch and processor are those of the recording."""
    expected = BEFORE["weights"][name]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if SAME_MACHINE:
            assert torch.equal(found[key], value), (name, key)
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("option", [name for name in BEFORE["weights"] if name != "stopped_run"])
def test_methods_train_to_the_weights_of_the_version_before(
    option: str, fishr_exp: Command
) -> None:
    words = [f"trainer={option}", "checkpoint_every=null"]
    words += ["trainer.anneal_steps=7"] if option not in ("erm", "fishr", "fishr_domainlab") else []
    done = fishr_exp(*words, tiny=TINY)
    assert done.status == 0, done.err
    assert_weights(torch.load(newest_state(done.folder), weights_only=True)["model"], option)


def test_a_run_that_the_version_before_stopped_goes_on_to_its_end(
    fishr_exp: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was stopped in the middle of an epoch, after a reset of the optimizer, with averages."""
    words = ("trainer=fishr_domainbed", "trainer.anneal_steps=7", "checkpoint_every=4")
    name = fishr_exp(*words, tiny=TINY).folder.name
    shutil.rmtree(tmp_path / "runs")
    shutil.copytree(EARLIER / "stopped_run", tmp_path / "runs" / name)
    done = fishr_exp(*words, tiny=TINY)
    assert done.status == 0, done.err
    assert f"continuing {tmp_path / 'runs' / name} after step 8" in done.err
    assert_weights(torch.load(newest_state(done.folder), weights_only=True)["model"], "stopped_run")
    expected = [json.loads(line) for line in (EARLIER / "stopped_run_went_on_to.jsonl").open()]
    for there, here in zip(expected, done.records(), strict=True):
        assert (there["step"], there["epoch"]) == (here["step"], here["epoch"])
        assert there["losses"] == pytest.approx(here["losses"], rel=1e-4)
        for domain, parts in there["accuracy"].items():
            assert here["accuracy"][domain] == pytest.approx(parts, abs=0.02)
    (done.folder / "model.json").unlink()  # which that version did not write
    assert evaluate.main([str(done.folder)]) == 0
    assert "Test accuracies are those in result.json." in capsys.readouterr().out
