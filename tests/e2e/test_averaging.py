"""Averages of weights along a run: what is evaluated, what is kept, and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import update_bn

from .conftest import TINY, Command, newest_state, stop_before

SCHEMES = {
    "ema": ("averaging=ema", "averaging.decay=0.5"),
    "sma": ("averaging=sma", "averaging.start=3"),
    "swad": ("averaging=swad", "averaging.n_converge=2", "averaging.n_tolerance=3"),
    "swad, as published": (
        "averaging=swad", "averaging.n_converge=2", "averaging.n_tolerance=3",
        "averaging.convention=published",
    ),
}  # fmt: skip
STEPS = ("epochs=null", "total_steps=12", "steps_per_epoch=2", "checkpoint_every=1")
SMALL = (*TINY[:1], *TINY[3:], *STEPS, "trainer=erm")


def same(one: object, other: object) -> bool:
    """Whether two checkpoints hold the same bits."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)  # type: ignore[arg-type]
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)  # type: ignore[attr-defined, index]
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))  # type: ignore[arg-type]
    return one == other


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(  # counted from 0: in the middle of epochs, and between
    "step", [7, *(pytest.param(step, marks=pytest.mark.slow) for step in (5, 10))]
)
def test_a_run_that_was_stopped_comes_to_the_same_bits(
    name: str, step: int, fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fishr_exp(*SCHEMES[name], f"output_dir={tmp_path / 'whole'}", tiny=SMALL)
    assert whole.status == 0, whole.err
    (expected,) = (tmp_path / "whole").glob("*")
    with monkeypatch.context() as patch:
        stop_before(step, patch)
        assert fishr_exp(*SCHEMES[name], tiny=SMALL).status == 130
    done = fishr_exp(*SCHEMES[name], tiny=SMALL)
    assert done.status == 0, done.err
    assert f"after step {step}" in done.err
    for path in ("checkpoints/best.pt", f"checkpoints/{newest_state(expected).name}"):
        one, other = (torch.load(f / path, weights_only=True) for f in (expected, done.folder))
        for state in (one, other):
            state.pop("seconds", 0), state.pop("waited", 0)
        assert same(one, other)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_stop_in_the_last_evaluation(
    name: str, fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps are made, and the weights of the result may be written."""
    from fishr_exp.runs.records import PARTS
    from fishr_exp.training.prepared import Prepared

    words = (*SCHEMES[name], "evaluate_train=false")
    whole = fishr_exp(*words, f"output_dir={tmp_path / 'whole'}", tiny=SMALL)
    assert whole.status == 0, whole.err
    real = Prepared.count

    def count(self, model, parts, signals):  # type: ignore[no-untyped-def]
        if parts == PARTS:
            raise KeyboardInterrupt
        return real(self, model, parts, signals)

    with monkeypatch.context() as patch:
        patch.setattr(Prepared, "count", count)
        assert fishr_exp(*words, tiny=SMALL).status == 130
    done = fishr_exp(*words, tiny=SMALL)
    assert done.status == 0, done.err
    (expected,) = (tmp_path / "whole").glob("*")
    path = "checkpoints/best.pt"
    assert same(*(torch.load(f / path, weights_only=True) for f in (expected, done.folder)))


def test_swad_gives_its_mean_and_early_stopping_does_nothing(fishr_exp: Command) -> None:
    """The losses fall: no evaluation improves the objective, and yet all steps are made."""
    done = fishr_exp(
        *SCHEMES["swad"], "observer.monitor=objective", "observer.mode=max", "observer.patience=1",
        "optimizer.lr=0.01", "averaging.tolerance_ratio=100", tiny=SMALL,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "stopped early" not in done.err
    assert [record["step"] for record in done.records()] == [2, 4, 6, 8, 10, 12]
    selected = done.result()["selected"]
    assert (selected["monitor"], selected["only_choice"]) == ("SWAD", True)
    assert not selected["uses_test_domain"]
    best, last = done.checkpoint("best"), done.checkpoint("last")
    assert best["step"] == selected["step"]
    assert not torch.equal(
        best["model"]["classifier.weight"], last["model"]["classifier.weight"]
    )  # of the last step


def test_swad_does_not_select_by_a_test_domain_that_is_monitored(fishr_exp: Command) -> None:
    words = ("observer.monitor=accuracy/minus90/validation", "total_steps=2")
    warned = [
        "selects by a test domain" in fishr_exp(*words, *more, tiny=SMALL).err
        for more in ((), SCHEMES["swad"])
    ]
    assert warned == [True, False]


def test_swad_ends_a_training_whose_valley_is_over(fishr_exp: Command) -> None:
    words = (
        "averaging.n_converge=1", "averaging.n_tolerance=1", "averaging.tolerance_ratio=0",
        "optimizer.lr=0.03", "total_steps=80", "steps_per_epoch=10",
    )  # fmt: skip
    done = fishr_exp("averaging=swad", *words, tiny=SMALL)
    assert done.status == 0, done.err
    assert "SWAD: the valley of the validation loss has ended" in done.err
    assert done.records()[-1]["step"] < 80
    assert done.result()["last"]["step"] == done.records()[-1]["step"]
    again = fishr_exp("averaging=swad", *words, tiny=SMALL)
    assert "done already" in again.err


def test_swad_needs_a_validation_loss(fishr_exp: Command) -> None:
    words = ("holdout_fraction=0", "observer=last_step")
    outcome = fishr_exp("averaging=swad", *words, tiny=SMALL)
    assert outcome.status == 2
    assert "averaging=SWAD: no evaluation gives validation_loss; keep a part for" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not outcome.folder.exists()


def test_the_last_steps_weights_are_the_best_ones_where_they_are_the_result(
    fishr_exp: Command,
) -> None:
    done = fishr_exp("observer=last_step", tiny=SMALL)
    assert done.checkpoint("best")["step"] == done.result()["selected"]["step"] == 12
    weights = (done.checkpoint(name)["model"] for name in ("best", "last"))
    assert same(*weights)


@pytest.mark.parametrize("frozen", [pytest.param(True, marks=pytest.mark.slow), False])
def test_batch_norm_statistics_of_the_mean(
    frozen: bool, fishr_exp: Command, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the next minibatches where BatchNorm learns; training and resuming do not notice."""
    from fishr_exp.training import prepared as module

    seen: list[torch.Tensor] = []
    real = module.recompute_statistics

    def noting(model, norms, inputs, autocast):  # type: ignore[no-untyped-def]
        kept = list(inputs)
        seen.extend(kept)
        real(model, norms, kept, autocast)
        stats = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
        # PyTorch's own comes to the same: this network drops nothing.
        update_bn(kept, model)
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in stats.items())

    monkeypatch.setattr(module, "recompute_statistics", noting)
    words = (
        "dataset=image_folder", f"dataset.root={images}", "test_domains=[sketch]", "trainer=erm",
        "dataset.image_size=32", "model=resnet18", f"model.freeze_bn={str(frozen).lower()}",
        "batch_size=2", "epochs=null", "total_steps=2", "steps_per_epoch=1", "tracker=none",
        "optimizer.lr=0.01", "observer=last_step", "num_workers=0",
    )  # fmt: skip
    plain = fishr_exp(*words, tiny=())
    assert plain.status == 0, plain.err
    trained = plain.checkpoint("last")["model"]
    done = fishr_exp(*words, "averaging=sma", "averaging.start=1", "averaging.batch_norm_steps=3",
                     tiny=())  # fmt: skip
    assert done.status == 0, done.err
    assert len(seen) == (0 if frozen else 6)  # twice three minibatches
    assert same(done.checkpoint("last")["model"], trained)
    means = {k: v for k, v in done.checkpoint("best")["model"].items() if "running_mean" in k}
    moved = [not torch.equal(means[k], trained[k]) for k in means]
    assert all(moved) if not frozen else not any(moved)


def test_an_average_that_never_begins_is_warned_of(fishr_exp: Command) -> None:
    outcome = fishr_exp("averaging=sma", "averaging.start=5")
    assert outcome.status == 0
    assert "averaging.start=5: no weights are averaged in the 4 steps of this run" in outcome.err
    assert "no weights" not in fishr_exp("averaging=sma", "averaging.start=4").err
