"""Runs in DomainBed's protocol, shrunk: the presets' networks and images are too large here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fishr_exp.data.splits import Split
from fishr_exp.training import prepare as prepare_module

from .conftest import Command, Outcome
from .test_runs import compare_with_a_stopped_run

SMALL = ("protocol=paper_2022", "dataset=colored_digits", "model=mlp", "model.hidden=8",
         "tracker=none", "total_steps=5", "steps_per_epoch=2", "trainer=erm")  # fmt: skip
DEPARTURES = ["model", "steps_per_epoch", "total_steps"]


def protocol_of(outcome: Outcome) -> dict[str, Any]:
    return json.loads((outcome.folder / "config.json").read_text())["protocol"]


def test_the_last_epoch_may_be_shorter(fishr_exp: Command, tmp_path: Path) -> None:
    whole = compare_with_a_stopped_run(fishr_exp, tmp_path, 4, [], tiny=SMALL)
    assert [(r["step"], r["epoch"]) for r in whole.records()] == [(2, 1), (4, 2), (5, 3)]
    assert whole.result()["last"]["step"] == 5


def test_a_run_says_where_it_departs_from_its_preset(fishr_exp: Command) -> None:
    shrunk = fishr_exp(tiny=SMALL)
    assert shrunk.status == 0, shrunk.err
    said = "warning: departs from protocol=paper_2022 in: model, steps_per_epoch, total_steps"
    assert said in shrunk.err.splitlines()
    found = protocol_of(shrunk)
    assert (found["trial_seed"], found["hparams_seed"]) == (0, 0)
    assert found["departures"] == DEPARTURES
    again = fishr_exp(tiny=SMALL)
    assert "done already" in again.err
    slow = fishr_exp("optimizer.lr=1e-6", "protocol.hparams_seed=1", tiny=SMALL)
    assert protocol_of(slow)["departures"] == ["model", "optimizer.lr", *DEPARTURES[1:]]
    assert protocol_of(slow)["digest"] != found["digest"]


def test_the_digest_names_the_protocol_and_not_the_run(fishr_exp: Command) -> None:
    runs = ([], ["protocol.hparams_seed=1"], ["protocol.trial_seed=1"], ["num_workers=1"],
            ["trainer=fishr_domainbed", "trainer.gamma=3"], ["test_domains=[plus80]"])  # fmt: skip
    found = [protocol_of(fishr_exp(*words, tiny=SMALL)) for words in runs]
    assert len({protocol["digest"] for protocol in found}) == 1
    assert [p["departures"] == DEPARTURES for p in found] == [True] * 4 + [False, True]
    for words in (["batch_size=8"], ["holdout_fraction=0.3"], ["observer=last_step"]):
        assert protocol_of(fishr_exp(*words, tiny=SMALL))["digest"] != found[0]["digest"]


def test_what_a_method_has_of_its_own_is_no_other_protocol(fishr_exp: Command) -> None:
    """Neither the batch size in ARM's ranges, which is 8 on images, nor averaging."""
    of = [protocol_of(fishr_exp(*words, tiny=SMALL))
          for words in ([], ["trainer=arm"], ["averaging=ema"])]  # fmt: skip
    assert len({protocol["digest"] for protocol in of}) == 1
    assert ["batch_size" in protocol["departures"] for protocol in of] == [False] * 3
    assert "averaging" in of[2]["departures"]


def test_the_splits_are_the_trials(fishr_exp: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    real = prepare_module.split

    def noted(domain: Any, fraction: float, seed: int) -> Split:
        seeds.append(seed)
        return real(domain, fraction, seed)

    monkeypatch.setattr(prepare_module, "split", noted)
    for words in ([], ["trainer=irm"], ["protocol.hparams_seed=4"], ["test_domains=[plus90]"]):
        fishr_exp("protocol.trial_seed=3", *words, tiny=SMALL)
    assert seeds == 4 * 3 * [3]


def test_a_sweep_in_the_protocol(fishr_exp: Command, tmp_path: Path) -> None:
    outcome = fishr_exp("-m", "trainer=erm,fishr_domainbed", "test_domains=[plus90],[plus80]",
                        "protocol.hparams_seed=range(2)", tiny=SMALL[:-1])  # fmt: skip
    assert outcome.status == 0, outcome.err
    done = [json.loads(p.read_text()) for p in (tmp_path / "runs").glob("*/config.json")]
    assert len(done) == 8
    assert len({config["seed"] for config in done}) == 8
    rates = {(c["protocol"]["hparams_seed"], c["optimizer"]["lr"]) for c in done}
    assert len(rates) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["epochs=3"], "epochs=3: exactly one of epochs and total_steps (=5) must be given"),
        (["protocol.trial_seed=x"], "protocol.trial_seed=x: must be a whole number"),
        (["trainer=fishr", "protocol.hparams_seed=1"], "trainer=fishr: search=domainbed has no"),
        (["search=domainbed"], "search=domainbed: draws by a protocol's seeds; add protocol=NAME"),
        (["model=domainbed"], "model=domainbed: has networks for images of 28x28 and 224x224"),
    ],
)
def test_a_mistake(fishr_exp: Command, words: list[str], said: str) -> None:
    changed = {word.split("=")[0] for word in words}
    if "model=domainbed" in words:
        changed |= {"model.hidden"}
    if "search" in changed:
        changed |= {"protocol", "total_steps"}
    tiny = tuple(word for word in SMALL if word.split("=")[0] not in changed)
    outcome = fishr_exp(*words, tiny=tiny)
    assert outcome.status == 2
    assert [line for line in outcome.err.splitlines() if line.startswith(f"fishr-exp: {said}")]
