"""Targets of a user's own: what is told where one cannot be imported, or does not fit."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fishr_exp.configuration.binding import part
from fishr_exp.configuration.permissions import allowed_targets, permissions_of
from fishr_exp.core.errors import ConfigError


@pytest.fixture(autouse=True)
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text("class Method:\n    def __init__(self, weight): ...\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "needs.py").write_text("import absent_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("theirs", "broken", "needs"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("theirs.Methd", ["theirs.Methd: cannot be imported", "did you mean theirs.Method?"]),
        ("theirs.Other", ["has no attribute", "pass trainer=NAME"]),
        ("absent_package.Method", ["install absent_package, or name the folder that contains it:",
                                   "PYTHONPATH=. for the current folder"]),
        ("needs.Method", ["install absent_package"]),
        ("broken.Method", ["ZeroDivisionError", "HYDRA_FULL_ERROR=1 shows where"]),
        ("Method", ["write MODULE.CLASS, or pass trainer=NAME"]),
        ("theirs.Method", ["theirs.Method: does not take loss, which every run gives to its",
                           "add loss to it"]),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_built_is_one_line(target: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        part({"_target_": target, "weight": 1}, "trainer", ["theirs", "absent_package", "needs",
                                                           "broken", "Method"])  # fmt: skip
    for word in words:
        assert word in str(caught.value)


def test_various_keywords_are_no_keys_and_take_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "various.py").write_text("def net(width=1, **others): return width, others\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    build = part({"_target_": "various.net", "depth": 3}, "model", ["various"])
    assert build is not None
    assert build(input_shape=(1,), num_classes=2) == (
        1, {"depth": 3, "input_shape": (1,), "num_classes": 2},
    )  # fmt: skip


def test_a_network_may_know_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sized.py").write_text("def net(num_classes, width=1): return num_classes, width\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    build = part({"_target_": "sized.net", "width": 5}, "model", ["sized"])
    assert build is not None
    assert build(input_shape=(1,), num_classes=2) == (2, 5)


def test_one_name_may_be_given_as_a_text() -> None:
    with permissions_of(names="mine.part"):
        assert allowed_targets("mine.part") == ["mine.part"]
        with pytest.raises(ConfigError, match="a file cannot allow this"):
            allowed_targets("m")


def test_targets_can_be_allowed_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FISHR_EXP_ALLOW_TARGETS", "one.part, other")
    with permissions_of(["allow_targets=[mine]", "seed=3"]):
        assert allowed_targets(["mine", "other"]) == ["one.part", "other", "mine"]
    with permissions_of([]):
        assert allowed_targets() == ["one.part", "other"]
        with pytest.raises(ConfigError, match="a file cannot allow this"):
            allowed_targets(["mine"])
    assert os.environ["FISHR_EXP_ALLOW_TARGETS"] == "one.part, other"
    assert allowed_targets() == []
