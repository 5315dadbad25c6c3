"""Schedules of the learning rate in a run: records, resuming, shared steps, and one-line errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .conftest import Command, newest_state, stop_before
from .test_averaging import same

STEPS = ("epochs=null", "total_steps=12", "steps_per_epoch=3", "checkpoint_every=1")
SMALL = ("model.hidden=8", "tracker=none", "evaluate_train=false", *STEPS)
LATE = ("trainer.anneal_steps=5", "trainer.ema_decay=0.9")  # Fishr makes a new optimizer there
CASES = {
    "cosine": ("scheduler=cosine", *LATE),
    "warm-up, per evaluation": (
        "scheduler=warmup_cosine", "scheduler.warmup_steps=2", "scheduler.per=evaluation", *LATE,
    ),
    "steps": ("scheduler=step", "scheduler.step_size=2", "scheduler.per=step", *LATE),
    "plateau": (
        "scheduler=plateau", "scheduler.monitor=loss/plus90/validation", "scheduler.patience=0",
        "+scheduler.threshold=0.9", *LATE,
    ),
    "one cycle": (
        "scheduler=step", "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR",
        "+scheduler.max_lr=0.01", "scheduler.per=step", *LATE,
    ),
    "milestones": (
        "scheduler=step", "scheduler._target_=torch.optim.lr_scheduler.MultiStepLR",
        "+scheduler.milestones=[1,3]", *LATE,
    ),
    "two players": ("scheduler=cosine", "trainer=dann", "trainer.discriminator_steps=2"),
    "groups": (
        "scheduler=cosine", "optimizer=adamw", "optimizer.classifier_lr_factor=10",
        "optimizer.decay_norms_and_biases=false", "clip_norm=0.5", *LATE,
    ),
    "classifier first": ("scheduler=cosine", "trainer=erm_plus_plus", "trainer.classifier_steps=5"),
}  # fmt: skip


def states(folder: Path) -> list[dict]:
    paths = [folder / "checkpoints" / "best.pt", newest_state(folder)]
    found = [torch.load(path, weights_only=True) for path in paths if path.exists()]
    for state in found:
        for key in ("seconds", "waited"):
            state.pop(key, None)
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(  # around the new optimizer, and an evaluation
    "step", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (4, 6, 10))]
)
def test_a_run_that_was_stopped_comes_to_the_same_bits(
    name: str, step: int, fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fishr_exp(*CASES[name], f"output_dir={tmp_path / 'whole'}", tiny=SMALL)
    assert whole.status == 0, whole.err
    (expected,) = (tmp_path / "whole").glob("*")
    with monkeypatch.context() as patch:
        stop_before(step, patch)
        assert fishr_exp(*CASES[name], tiny=SMALL).status == 130
    done = fishr_exp(*CASES[name], tiny=SMALL)
    assert done.status == 0, done.err
    assert f"after step {step}" in done.err
    assert same(states(expected), states(done.folder))
    rates = [record["learning_rate"] for record in done.records()]
    assert len(rates) == 4
    assert len(set(rates)) > 1


def test_runs_that_share_steps_come_to_the_bits_of_runs_made_alone(
    fishr_exp: Command, tmp_path: Path
) -> None:
    words = ("scheduler=cosine", "trainer.anneal_steps=5", "trainer.gamma=1,100")
    shared = fishr_exp("-m", *words, f"output_dir={tmp_path / 'shared'}", tiny=SMALL)
    alone = fishr_exp("-m", *words, "share_steps=false", tiny=SMALL)
    assert (shared.status, alone.status) == (0, 0), shared.err + alone.err
    folders = sorted((tmp_path / "shared").glob("fishr-*"))
    assert sum((folder / "shared.json").exists() for folder in folders) == len(folders) - 1
    for folder in folders:
        assert same(states(folder), states(tmp_path / "runs" / folder.name))


def test_the_rate_that_is_recorded_is_that_of_the_last_update(fishr_exp: Command) -> None:
    done = fishr_exp("trainer=erm", "scheduler=step", "scheduler.step_size=1", tiny=SMALL)
    rates = [record["learning_rate"] for record in done.records()]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-5, 1e-6])
    assert "lr 0.0001" in done.err


def test_a_damaged_state_of_the_schedule_is_passed_over(
    fishr_exp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("scheduler=cosine", "trainer=erm")
    with monkeypatch.context() as patch:
        stop_before(8, patch)
        stopped = fishr_exp(*words, tiny=SMALL)
    path = newest_state(stopped.folder)
    state = torch.load(path, weights_only=True)
    state["schedules"]["model"]["scheduler"]["last_epoch"] = "eight"
    torch.save(state, path)
    done = fishr_exp(*words, tiny=SMALL)
    assert done.status == 0
    assert "its state of the scheduler is of another one" in done.err
    assert "continuing from the one before, step-7.pt" in done.err


@pytest.mark.parametrize(
    "words", [("scheduler.step_size=4",), ("scheduler.step_size=12", "scheduler.per=step")]
)
def test_a_rate_that_never_changes_is_said(words: tuple[str, ...], fishr_exp: Command) -> None:
    done = fishr_exp("trainer=erm", "scheduler=step", *words, tiny=SMALL)
    assert done.status == 0
    per = "12 steps" if len(words) > 1 else "4 evaluations"
    assert f"{words[0]}: the learning rate never changes in the {per} of this run" in done.err
    smaller = words[0].replace("4", "3").replace("12", "11")
    done = fishr_exp("trainer=erm", "scheduler=step", smaller, *words[1:], tiny=SMALL)
    assert "never changes" not in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scheduler=plateau", "scheduler.per=step"],
         "scheduler.per=step: ReduceLROnPlateau looks at what an evaluation gives; pass "
         "scheduler.per=evaluation"),
        (["scheduler=plateau", "scheduler.monitor=null"],
         "scheduler.monitor=null: ReduceLROnPlateau must look at something; pass "
         "scheduler.monitor=validation_loss"),
        (["scheduler=plateau", "scheduler.monitor=accuracy/minus90/validation"],
         "scheduler.monitor=accuracy/minus90/validation: a test domain has no part in training; "),
        (["scheduler=plateau", "scheduler.monitor=validation_accuracy"],
         "scheduler.mode=min: validation_accuracy is better the higher it is; pass "
         "scheduler.mode=max"),
        (["scheduler=plateau", "scheduler.monitor=loss"],
         "scheduler.monitor=loss: no evaluation gives it; choose from validation_accuracy, "),
        (["scheduler=plateau", "holdout_fraction=0", "observer=last_step"],
         "scheduler.monitor=validation_loss: no evaluation gives it; choose from "),
        (["scheduler=step", "+scheduler.monitor=validation_loss"],
         "scheduler.monitor=validation_loss: StepLR looks at no quantity; leave it out"),
        (["scheduler=step", "scheduler.step_size=0"],
         "scheduler=StepLR: cannot be used (integer modulo by zero); check its keys"),
        (["scheduler=plateau", "scheduler.factor=2"], "scheduler={monitor: validation_loss, "),
        (["scheduler=warmup_cosine", "scheduler.warmup_steps=12"],
         "scheduler.warmup_steps=12: must be 0 or more, and less than the 12 of the whole run"),
        (["scheduler=cosine", "scheduler.per=epoch"],
         "scheduler.per=epoch: choose from step, evaluation"),
        (["scheduler.per=step"], "scheduler.per=step: scheduler=none has no keys"),
        (["scheduler=step", "scheduler._target_=torch.optim.SGD"],
         "scheduler._target_=torch.optim.SGD: is not what an option of scheduler builds and no "
         "scheduler of torch.optim.lr_scheduler"),
    ],
)  # fmt: skip
def test_what_does_nothing_or_cannot_be_is_one_line(
    words: list[str], said: str, fishr_exp: Command
) -> None:
    done = fishr_exp(*words, tiny=SMALL)
    assert done.status == 2
    assert f"fishr-exp: {said}" in done.err
    assert len(done.err.splitlines()) == 1


def test_clipped_runs_differ_and_a_large_norm_changes_no_bit(
    fishr_exp: Command, tmp_path: Path
) -> None:
    done = {
        norm: fishr_exp("trainer=fishr", *norm, f"output_dir={tmp_path / str(number)}", tiny=SMALL)
        for number, norm in enumerate([(), ("clip_norm=1e9",), ("clip_norm=0.01",)])
    }
    weights = []
    for number in range(3):
        (folder,) = (tmp_path / str(number)).glob("fishr-*")
        weights.append(torch.load(newest_state(folder), weights_only=True)["model"])
    assert all(outcome.status == 0 for outcome in done.values())
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan"])
def test_a_norm_that_clips_everything_or_nothing_is_refused(value: str, fishr_exp: Command) -> None:
    done = fishr_exp(f"clip_norm={value}", tiny=SMALL)
    assert done.status == 2
    said = "must be more than 0; write a number, or null to leave the gradients as they are"
    assert done.err.splitlines() == [f"fishr-exp: clip_norm={float(value)}: {said}"]


@pytest.mark.parametrize(
    ("kind", "key"), [("OneCycleLR", "+scheduler.max_lr=0.01"), ("CyclicLR", "+scheduler.max_lr=1")]
)
def test_one_rate_for_all_is_refused_where_some_have_a_factor(
    fishr_exp: Command, kind: str, key: str
) -> None:
    words = ["scheduler=step", f"scheduler._target_=torch.optim.lr_scheduler.{kind}", key]
    words += ["scheduler.per=step", "+scheduler.base_lr=0.1"] if kind == "CyclicLR" else []
    words += ["scheduler.per=step", "optimizer=sgd", "optimizer.momentum=0.9"]
    done = fishr_exp(*words, "optimizer.classifier_lr_factor=10")
    assert done.status == 2
    assert f"scheduler={kind}: sets one learning rate for all parameters" in done.err
    assert fishr_exp(*words).status == 0


@pytest.mark.parametrize("word", ["+scheduler.lr_lambda=abc", "+scheduler.last_epoch=5"])
def test_what_only_pytorch_looks_at_is_one_line(fishr_exp: Command, word: str) -> None:
    kind = "LambdaLR" if "lambda" in word else "StepLR"
    target = f"scheduler._target_=torch.optim.lr_scheduler.{kind}"
    done = fishr_exp("scheduler=step", target, word)
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert "scheduler" in done.err
