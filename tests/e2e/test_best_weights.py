"""The best weights are those of the step that early stopping holds for the best, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import TINY, Command, newest_state, stop_before

# The objective falls at each evaluation, so each is the best.
FALLING = ("observer.monitor=objective", "observer.mode=min", "epochs=4", *TINY[:1], *TINY[2:])


def stopped(fishr_exp: Command, patch: pytest.MonkeyPatch, step: int, runs: Path) -> Path:
    """Stop a run after so many steps; return its folder."""
    with patch.context() as here:
        stop_before(step, here)
        assert fishr_exp(f"output_dir={runs}", tiny=FALLING).status == 130
    (folder,) = runs.glob("*")
    return folder


def best_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints/best.pt", weights_only=True)


def test_weights_of_another_step_are_refused_before_the_run_goes_on(
    fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped(fishr_exp, monkeypatch, 5, tmp_path / "runs")
    path = folder / "checkpoints/best.pt"
    torch.save({**best_of(folder), "step": 9999}, path)
    again = fishr_exp(f"output_dir={tmp_path / 'runs'}", tiny=FALLING)
    assert again.status == 1
    said = f"{path} holds the weights of step 9999, and the best step of this run is 4; pass resume"
    assert said in again.err
    assert "Traceback" not in again.err
    assert again.records()[-1]["step"] == 4  # nothing was trained
    fresh = fishr_exp(f"output_dir={tmp_path / 'runs'}", "resume=false", tiny=FALLING)
    assert fresh.result()["selected"]["step"] == 8


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_run_goes_on_from_an_older_state_with_the_best_weights_of_that_time(
    how: str, fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fishr_exp(f"output_dir={tmp_path / 'whole'}", tiny=FALLING)
    assert whole.status == 0
    (expected,) = (tmp_path / "whole").glob("*")
    folder = stopped(fishr_exp, monkeypatch, 5, tmp_path / "runs")
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept == {"step-4.pt", "step-2.pt", "best.pt", "best-2.pt"}
    newest = newest_state(folder)
    if how == "gone":
        newest.unlink()
    else:
        newest.write_bytes(newest.read_bytes()[:-100])
    done = fishr_exp(f"output_dir={tmp_path / 'runs'}", tiny=FALLING)
    assert done.status == 0, done.err
    assert "after step 2" in done.err
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step-8.pt", "best.pt"}
    assert best_of(folder)["step"] == best_of(expected)["step"] == 8
    for name, value in best_of(expected)["model"].items():
        assert torch.equal(value, best_of(folder)["model"][name])


def test_a_kill_between_the_best_weights_and_the_state(
    fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fishr_exp.training.checkpoint import Checkpoints

    real = Checkpoints.save

    def save_or_die(self: Checkpoints, state: dict[str, Any]) -> None:
        if state["step"] == 4:
            raise KeyboardInterrupt
        real(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_or_die)
        assert fishr_exp(f"output_dir={tmp_path / 'runs'}", tiny=FALLING).status == 130
    (folder,) = (tmp_path / "runs").glob("*")
    assert best_of(folder)["step"] == 4
    assert newest_state(folder).name == "step-2.pt"
    done = fishr_exp(f"output_dir={tmp_path / 'runs'}", tiny=FALLING)
    assert done.status == 0, done.err
    assert done.result()["selected"]["step"] == 8
