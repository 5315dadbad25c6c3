"""Runs of earlier versions are the same runs: names, seeds, digests; one normal form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fishr_exp.configuration import protocol
from fishr_exp.configuration.binding import run_name
from fishr_exp.configuration.options import conf_dir
from fishr_exp.configuration.starting import register_run_name
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
    ("words", "name"),
    [
        (["optimizer=sgd"], "fishr-gamma1-seed0-ba544e0a"),
        (["optimizer=adam_fine_tuning", "trainer=erm"], "erm-seed0-afc19ee5"),
        # a class without nesterov, which came later
        (["optimizer=sgd", "optimizer._target_=torch.optim.RMSprop"],
         "fishr-gamma1-seed0-a384b776"),
    ],
)  # fmt: skip
def test_keys_of_optimizers_that_came_later_change_no_name(words, name) -> None:
    config, trainer, _ = composed(*words)
    assert run_name(config, trainer, words) == name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["averaging=ema"], "fishr-gamma1-seed0-4ac4d258"),
        (["trainer=erm", "averaging=ema", "averaging.decay=0.9", "averaging.start=5"],
         "erm-seed0-48025000"),
    ],
)  # fmt: skip
def test_an_average_without_recomputed_statistics_has_the_name_that_it_had(words, name) -> None:
    config, trainer, _ = composed(*words, "averaging.batch_norm_steps=0")
    assert run_name(config, trainer) == name
    config, trainer, _ = composed(*words)
    assert run_name(config, trainer) != name


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


@pytest.mark.parametrize("spelled", ["data/", "./data", "data//", "x/../data"])
def test_a_path_that_is_spelled_otherwise_is_one_run(spelled: str, tmp_path: Path) -> None:
    config = {"seed": 0, "dataset": {"root": "data"}, "output_dir": str(tmp_path)}
    other = {**config, "dataset": {"root": spelled}}
    assert folder_name(config, "erm") == folder_name(other, "erm")
    assert settings(config) == settings(other)
    # A run of a version that took paths as they were typed keeps its folder.
    values = {"dataset.root": spelled, "seed": 0}
    earlier = tmp_path / f"erm-seed0-{identity.digest(values)}"
    earlier.mkdir()
    (earlier / "config.json").touch()
    assert folder_name(other, "erm") == earlier.name
    assert folder_name(config, "erm") != earlier.name


def test_a_single_list_is_a_list_of_one() -> None:
    one, other = ({"seed": 0, "dataset": {"lists": {"a": of}}} for of in ("a.txt", ["a.txt"]))
    assert folder_name(one, "erm") == folder_name(other, "erm")
    assert settings(one) == settings(other)


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


OWN = {"_target_": "mylab.methods.LogitDecay", "gamma": 0.1, "weight": 0.5, "square": True}


@pytest.mark.parametrize(
    ("option", "trainer", "start"),
    [
        ("logit_decay", OWN, "logit_decay-gamma0.1-weight0.5-squaretrue-seed3-"),
        # The option may be one of this package's, with another class.
        ("erm", OWN, "erm-LogitDecay-gamma0.1-weight0.5-squaretrue-seed3-"),
        ("logit_decay", {**OWN, "names": ["a"], "path": "a b/c"}, "logit_decay-gamma0.1-weight0.5"),
        ("fishr", {"_target_": "fishr_exp.trainers.fishr.Fishr", "l2": 1}, "fishr-seed3-"),
    ],
)
def test_the_settings_of_a_method_from_outside_name_its_folder(option, trainer, start) -> None:
    name = folder_name({"seed": 3, "trainer": trainer}, option)
    assert name.startswith(start)
    assert len(name.rpartition("-")[2]) == 8
    assert not {"names", "path", "/", " "} & {*name, *name.replace("-", " ").split()}


def test_many_settings_make_no_name_too_long() -> None:
    trainer = {"_target_": "mylab.Own", **{f"a_long_setting_{n}": n for n in range(50)}}
    name = folder_name({"seed": 0, "trainer": trainer}, "own")
    assert "a_long_setting_3" in name
    assert len(name) < 130
    other = folder_name({"seed": 0, "trainer": {**trainer, "a_long_setting_49": 0}}, "own")
    assert other != name  # by the digest


def test_a_folder_that_an_earlier_version_named_keeps_its_name(tmp_path: Path) -> None:
    config = {"seed": 3, "trainer": OWN, "output_dir": str(tmp_path)}
    name = folder_name(config, "logit_decay")
    earlier = f"logit_decay-gamma0.1-seed3-{name.rpartition('-')[2]}"
    (tmp_path / earlier).mkdir()
    assert folder_name(config, "logit_decay") == name  # it holds no run
    (tmp_path / earlier / "config.json").write_text("{}")
    assert folder_name(config, "logit_decay") == earlier


@pytest.mark.parametrize("value", ["", "null", "' '"])
def test_runs_need_a_folder(value: str) -> None:
    config, trainer, _ = composed(f"output_dir={value}")
    with pytest.raises(ConfigError, match="must name the folder"):
        run_name(config, trainer)
