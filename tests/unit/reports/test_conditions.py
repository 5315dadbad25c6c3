"""Which runs `--where` keeps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.conditions import (
    histories_where,
    none_left,
    parse_conditions,
    runs_where,
)
from fishr_exp.runs.history import Histories, History
from fishr_exp.runs.reading import read_runs


@pytest.fixture
def runs(factory):
    for seed in (0, 1, 2):
        factory.done("erm", None, seed, 0.5)
        for gamma in (1.0, 100000.0):
            factory.done("fishr", gamma, seed, {"minus90": 0.5, "gray": 0.5}, batch_size=None)
    return read_runs(factory.root)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ([], 9),
        (["seed=0"], 3),
        (["seed=0,2"], 6),
        (["seed=0", "seed=2"], 6),
        (["seed=0", "trainer.gamma=1"], 1),
        (["trainer.gamma=1e5"], 3),
        (["trainer.gamma=100000.0"], 3),
        (["method=ERM"], 3),
        (["method=erm"], 0),
        (["trainer=erm,fishr"], 9),
        (["batch_size=null"], 6),
        (["batch_size=64"], 3),
        (["test_domains=[minus90,gray]"], 6),
        (["test_domains=[minus90]"], 3),
        (["test_domains=minus90"], 3),
        (["test_domains=gray"], 0),
        (["dataset=colored_digits", "model=mlp"], 9),
        (["optimizer.lr=1e-3"], 9),
        (["optimizer._target_=torch.optim.Adam"], 9),
    ],
)
def test_runs_with_the_values_are_kept(runs, words, count):
    kept = runs_where(runs, parse_conditions(words))
    assert len(kept.done) == count
    assert kept.failed == runs.failed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.gama=1"], "--where=trainer.gama=1: no run has this key; did you mean"),
        (["seed=7,8"], "--where=seed=7,8: no run has this value; there are 0, 1, 2"),
        (["batch_size=64", "trainer.gamma=1"],
         "--where=batch_size=64 trainer.gamma=1: no run meets all of these conditions"),
    ],
)  # fmt: skip
def test_what_keeps_no_run_is_explained(runs, words, said):
    conditions = parse_conditions(words)
    assert runs_where(runs, conditions).done == []
    assert str(none_left(runs.done, conditions)).startswith(said)


@pytest.mark.parametrize("word", ["seed", "=1", ""])
def test_a_word_that_is_no_condition_is_refused(word):
    with pytest.raises(ConfigError, match="must be KEY=VALUE"):
        parse_conditions([word])


def test_domainbed_s_own_runs_are_kept_by_what_they_say_of_themselves():
    run = History(
        path=Path("a"), dataset="PACS", method="ERM (DomainBed)", trial_seed=1, hparams_seed=2,
        test_domains=frozenset([0]), domains=("a", "b"), evaluations=(),
        settings={"hparams.lr": 0.001},
    )  # fmt: skip
    own = dataclasses.replace(run, source="erm")
    found = Histories([run, own])
    for words, kept in (
        (["method=ERM", "trial_seed=1", "hparams.lr=1e-3", "test_envs=[0]"], [run, own]),
        (["hparams_seed=3"], [own]),  # of our own runs the others were dropped before
    ):
        assert histories_where(found, parse_conditions(words)).runs == kept
    assert "there are 2" in str(none_left([run], parse_conditions(["hparams_seed=3"])))
