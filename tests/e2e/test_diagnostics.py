from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fishr_exp.cli import diagnostics as diagnostics_cli

from .conftest import Command, newest_state


@pytest.mark.parametrize(
    "trainer",
    [
        ["trainer=fishr", "trainer.gamma=100", "trainer.anneal_steps=2"],
        ["trainer=fishr_domainbed", "trainer.anneal_steps=3"],
        ["trainer=fishr", "trainer.scope=all"],
        ["trainer=erm"],
        ["trainer=irm"],
        ["trainer=vrex"],
    ],
    ids=" ".join,
)
def test_a_run_is_the_same_to_the_last_bit(
    fishr_exp: Command, tmp_path: Path, trainer: list[str]
) -> None:
    plain = fishr_exp(*trainer, f"output_dir={tmp_path / 'plain'}", "hydra.run.dir=${output_dir}/r")
    looked = fishr_exp(
        *trainer,
        "diagnostics=true",
        f"output_dir={tmp_path / 'runs'}",
        "hydra.run.dir=${output_dir}/r",
    )
    assert (plain.status, looked.status) == (0, 0)
    one, other = (
        torch.load(newest_state(tmp_path / name / "r"), weights_only=True)
        for name in ("plain", "runs")
    )
    flat_one, flat_other = ([*_tensors(state)] for state in (one, other))
    assert len(flat_one) > 5
    assert all(torch.equal(a, b) for a, b in zip(flat_one, flat_other, strict=True))
    found = [set(record["diagnostics"]) for record in looked.records()]
    variances = {"variance_norm/plus90", "variance_norm/plus80", "variance_distance/plus90/plus80"}
    penalty = set() if "trainer=erm" in trainer else {"penalty_share", "gradient_cosine"}
    assert found == [variances | penalty] * 2


def _tensors(state):
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)


def test_asked_for_or_not_it_is_the_same_run(fishr_exp: Command) -> None:
    first = fishr_exp("diagnostics=true").folder
    for word in ("diagnostics=false", "diagnostics=all"):
        assert "done already" in (again := fishr_exp(word)).err
        assert again.folder == first


def test_over_all_parameters_if_asked_for(fishr_exp: Command) -> None:
    assert "true, false or all" in fishr_exp("diagnostics=every").err
    ran = fishr_exp("diagnostics=all")
    for record in ran.records():
        found = record["diagnostics"]
        assert found["variance_norm_all/plus90"] > found["variance_norm/plus90"]
        assert found["variance_distance_all/plus90/plus80"] > 0
    assert diagnostics_cli.main([str(ran.folder)]) == 0


def test_a_network_that_cannot_be_looked_at_is_trained_all_the_same(fishr_exp: Command) -> None:
    outcome = fishr_exp("trainer=mtl", "diagnostics=all")
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("diagnostics: no gradient variances over all: ") == 1
    assert "couples samples" in outcome.err
    names = [{name.partition("/")[0] for name in r["diagnostics"]} for r in outcome.records()]
    assert names == [{"variance_norm", "variance_distance"}] * len(names)


def test_they_are_drawn(fishr_exp: Command, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fishr_exp("diagnostics=true", "epochs=3").folder
    assert diagnostics_cli.main([str(folder)]) == 0
    files = [folder / f"diagnostics.{suffix}" for suffix in ("pdf", "png")]
    assert capsys.readouterr().out.split() == [str(file) for file in files]
    assert files[0].read_bytes().startswith(b"%PDF")
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_a_run_without_any_is_refused(
    fishr_exp: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fishr_exp().folder
    for place, said in ((folder, "diagnostics=true"), (tmp_path / "no", "is not a run folder")):
        assert diagnostics_cli.main([str(place)]) == 2
        assert said in (err := capsys.readouterr().err)
        assert len(err.splitlines()) == 1
