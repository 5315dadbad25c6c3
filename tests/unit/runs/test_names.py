from __future__ import annotations

import json

import pytest

from fishr_exp.runs.names import OF_CHECKPOINTS, UNFINISHED, is_new, is_of_a_run, named

CONFIG = {"seed": 0, "test_domains": ["a"], "trainer": {"gamma": 1.0}}


@pytest.mark.parametrize(
    "name", ["best.pt", "best-12.pt", "step-3.pt", ".step-3.pt.7.tmp", ".config.json.7.tmp"]
)
def test_the_names_of_a_run_s_files(tmp_path, name: str) -> None:
    (tmp_path / name).touch()
    assert len(named(tmp_path, OF_CHECKPOINTS) + named(tmp_path, UNFINISHED)) == 1


@pytest.mark.parametrize(
    "name",
    [
        "best-model.pt",
        "step-two.pt",
        "step-3.pt.bak",
        "my_best.pt",
        ".draft.tmp",
        ".result.json.tmp",
    ],
)
def test_the_names_of_others(tmp_path, name: str) -> None:
    (tmp_path / name).touch()
    assert not named(tmp_path, OF_CHECKPOINTS) + named(tmp_path, UNFINISHED)


def test_a_folder_in_the_place_of_a_file_is_not_named(tmp_path) -> None:
    (tmp_path / "step-3.pt").mkdir()
    assert not named(tmp_path, OF_CHECKPOINTS)
    assert not named(tmp_path / "none", OF_CHECKPOINTS)


@pytest.mark.parametrize(
    ("config", "ours"),
    [
        (CONFIG, True),
        ({"mine": 1}, False),
        ({"seed": 1, "trainer": {"max_epochs": 3}}, False),
        ({**CONFIG, "trainer": "fishr"}, False),
    ],
)
def test_a_configuration_says_whose_it_is(tmp_path, config, ours: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_of_a_run(tmp_path) == ours


@pytest.mark.parametrize(
    ("environment", "ours"), [('{"versions": {"fishr-exp": "0.1"}}', True), ("{}", False)]
)
def test_of_a_damaged_configuration_the_environment_says_it(tmp_path, environment, ours) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "environment.json").write_text(environment)
    assert is_of_a_run(tmp_path) == ours


def test_what_may_lie_in_a_new_folder(tmp_path) -> None:
    (tmp_path / "records.jsonl").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".hydra").mkdir()
    for name in (".lock", "fishr-exp.log", "~draft"):
        (tmp_path / name).touch()
    assert all(map(is_new, tmp_path.iterdir()))
    (tmp_path / "records.jsonl").write_text("{}")
    (tmp_path / "checkpoints" / "best.pt").touch()
    (tmp_path / ".hydra" / "config.yaml").write_text("lr: 0.1\n")
    (tmp_path / "result.json").touch()
    found = {path.name for path in tmp_path.iterdir() if not is_new(path)}
    assert found == {"records.jsonl", "checkpoints", ".hydra", "result.json"}
    (tmp_path / ".hydra" / "config.yaml").write_text("")  # another process writes it now
    assert is_new(tmp_path / ".hydra")
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 0\ntest_domains: [a]\n")
    assert is_new(tmp_path / ".hydra")
