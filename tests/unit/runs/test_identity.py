"""Runs of earlier versions are the same runs: names, seeds, digests; one normal form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fishr_exp.cli.run import register_run_name
from fishr_exp.configuration import protocol
from fishr_exp.configuration.binding import conf_dir, run_name
from fishr_exp.core.errors import ConfigError
from fishr_exp.runs import identity
from fishr_exp.runs.identity import compared, differences, folder_name, settings

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "earlier_version"
RECORDS = Path(__file__).resolve().parents[3] / "docs" / "results" / "records"


def composed(*words: str):
    register_run_name()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", list(words), return_hydra_config=True)
        choices = config.hydra.runtime.choices
        own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        standing = protocol.standing(own, choices) if own.get("protocol") else {}
    return own, str(choices.trainer), standing


@pytest.mark.parametrize(
    "known", json.loads((GOLDEN / "names.json").read_text()), ids=lambda known: known["name"]
)
def test_a_command_line_names_the_run_that_it_named_in_the_version_before(known) -> None:
    config, trainer, standing = composed(*known["words"])
    assert run_name(config, trainer) == known["name"]
    assert config.seed == known["seed"]
    assert standing.get("digest") == known.get("digest")


@pytest.mark.parametrize(
    "path", sorted(RECORDS.glob("*/*/config.json")), ids=lambda path: path.parent.name
)
def test_recorded_runs_keep_their_names_and_seeds(path: Path) -> None:
    config = json.loads(path.read_text())
    result = json.loads((path.parent / "result.json").read_text())
    assert folder_name(config, result["labels"]["trainer"]) == path.parent.name
    assert settings(config)["seed"] == result["seed"]


def test_spelling_makes_no_other_run() -> None:
    config = {
        "seed": 1, "test_domains": ["0"], "trainer": {"gamma": 1, "scope": [1, {"a": 2}]},
        "dataset": {"domains": ["0", "1"], "angles": [0, 15]},
    }  # fmt: skip
    spelled = {
        "seed": 1.0, "test_domains": [0], "trainer": {"gamma": 1.0, "scope": [1.0, {"a": 2.0}]},
        "dataset": {"domains": [0, 1], "angles": [0.0, 15.0]},
    }  # fmt: skip
    assert folder_name(config, "fishr") == folder_name(spelled, "fishr")
    assert settings(config) == settings(spelled)
    assert compared(config) == compared(spelled)
    assert differences(settings(config), identity.flatten(spelled)) == ""
    assert differences(settings(config), settings({**config, "seed": 2})) == (
        "seed (1 there, 2 here)"
    )
    assert settings({"a": 1e300})["a"] == 1e300


def test_a_domain_named_by_a_number_is_one_run_and_one_seed() -> None:
    words = ["dataset=rotated_mnist", "dataset.root=x", "protocol=paper_2022", "trainer=erm"]
    number, text = (composed(*words, f"test_domains={given}") for given in ("[0,15]", "['15','0']"))
    assert number[0].seed == text[0].seed
    assert number[2] == text[2]
    one, other = (composed("dataset=rotated_digits", f"test_domains={d}") for d in ("[0]", "['0']"))
    assert run_name(*one[:2]) == run_name(*other[:2])


def test_a_part_that_moves_keeps_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before, trainer, _ = composed("trainer=erm")
    name = run_name(before, trainer)
    monkeypatch.setitem(identity._IDS, "elsewhere.Method", before.trainer._target_)
    moved = OmegaConf.merge(before, {"trainer": {"_target_": "elsewhere.Method"}})
    assert run_name(moved, trainer) == name
    assert settings({"trainer": {"_target_": "mylab.Own"}})["trainer._target_"] == "mylab.Own"


def test_a_key_that_came_later_is_left_out_at_its_neutral_value() -> None:
    before = {"seed": 0, "trainer": {"_target_": "mylab.Own", "gamma": 1.0}}
    later = {"_target_": "mylab.Own", "gamma": 1.0, "power": 2.0, "_neutral_": {"power": 2}}
    assert settings(before) == settings({"seed": 0, "trainer": later})
    changed = settings({"seed": 0, "trainer": {**later, "power": 3.0}})
    assert changed["trainer.power"] == 3
    assert not any("_neutral_" in key for key in changed)
    assert "total_steps" not in settings({"total_steps": None})


@pytest.mark.parametrize("value", ["", "null", "' '"])
def test_runs_need_a_folder(value: str) -> None:
    config, trainer, _ = composed(f"output_dir={value}")
    with pytest.raises(ConfigError, match="must name the folder"):
        run_name(config, trainer)
