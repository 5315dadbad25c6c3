"""How minibatches are drawn, in a run: resuming, sizes by domain, names, and one-line errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Command, stop_before
from .test_averaging import same
from .test_schedules import SMALL, states

CASES = {
    "with replacement": ("sampling=with_replacement", "batch_size=4000"),
    "class by class": ("sampling=class_balanced",),
    "sizes by domain": ("batch_size={plus90:8,plus80:32}",),
    "one whole domain": ("batch_size={plus90:8,plus80:null}",),
    "all of it": ("sampling=class_balanced", "batch_size={plus90:8,plus80:32,minus90:4}"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if "whole" in name or "by" in name else ())
        for name in CASES
    ],
)
def test_a_run_that_was_stopped_comes_to_the_same_bits(
    name: str, fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fishr_exp(*CASES[name], f"output_dir={tmp_path / 'whole'}", tiny=SMALL)
    assert whole.status == 0, whole.err
    (expected,) = (tmp_path / "whole").glob("*")
    with monkeypatch.context() as patch:
        stop_before(7, patch)
        assert fishr_exp(*CASES[name], tiny=SMALL).status == 130
    done = fishr_exp(*CASES[name], "num_workers=1", tiny=SMALL)
    assert done.status == 0, done.err
    assert "after step 7" in done.err
    assert same(states(expected), states(done.folder))


def test_an_epoch_is_as_long_as_the_shortest_domain_that_fills_a_minibatch(
    fishr_exp: Command,
) -> None:
    words = ("sampling=with_replacement", "batch_size={plus90:64,plus80:4000}", "epochs=1")
    done = fishr_exp(*words, "model.hidden=8", "tracker=none", tiny=())
    assert done.status == 0, done.err
    counts = done.result()["counts"]
    assert counts["plus80"]["train"] < 4000
    assert done.records()[0]["step"] == counts["plus90"]["train"] // 64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sampling=random"],
         "sampling=random: choose from permutation, with_replacement, class_balanced"),
        (["sampling=with_replacement", "batch_size=null"],
         "sampling=with_replacement: a minibatch of domain plus90 is the whole domain: nothing is "
         "drawn; pass batch_size=NUMBER, or leave it out"),
        (["batch_size={plus90:8}"],
         "batch_size={plus90: 8}: has no size for the training domain plus80; add plus80: NUMBER"),
        (["batch_size={plus90:8,plus80:8,photo:8}"],
         "batch_size={plus90: 8, plus80: 8, photo: 8}: there is no domain photo; choose from "
         "plus90, plus80, minus90"),
        (["batch_size={plus90:8,plus80:1}"],
         "batch_size=1: a minibatch needs at least 2 samples of each domain, as variances do; "
         "choose 2 or more, or null for the whole domain"),
        (["batch_size=many"], "batch_size=many: must be a number, null or {DOMAIN:NUMBER,...}"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(words: list[str], said: str, fishr_exp: Command) -> None:
    done = fishr_exp(*words, tiny=SMALL)
    assert done.status == 2
    assert f"fishr-exp: {said}" in done.err
    assert len(done.err.splitlines()) == 1
