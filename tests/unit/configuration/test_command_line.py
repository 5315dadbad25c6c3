"""Overrides and flags in any order."""

from __future__ import annotations

import pytest

from fishr_exp.configuration.command_line import arranged


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["a=1", "-m", "b=1,2"], ["-m", "a=1", "b=1,2"]),
        (["a=1", "--config-dir", "conf", "b=2"], ["--config-dir", "conf", "a=1", "b=2"]),
        (["a=1", "--config-dir=conf", "~b", "-cn", "x=y"],
         ["--config-dir=conf", "-cn", "x=y", "a=1", "~b"]),
        (["a=1", "--info", "defaults"], ["a=1", "--info", "defaults"]),
        ([], []),
    ],
)  # fmt: skip
def test_flags_come_first(typed: list[str], expected: list[str]) -> None:
    assert arranged(typed) == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("output_dir=~/runs", 'output_dir="~/runs"'), ("+a.b=~", '+a.b="~"'),
     ('output_dir="~/runs"', 'output_dir="~/runs"'), ("~seed", "~seed"), ("a=b~/c", "a=b~/c")],
)  # fmt: skip
def test_a_path_in_the_home_folder_is_quoted(typed: str, expected: str) -> None:
    assert arranged([typed]) == [expected]


@pytest.mark.parametrize(
    ("typed", "said"),
    [(["--foo"], "unrecognized arguments: --foo; fishr-exp --hydra-help"),
     (["a=1", "--config-dir"], "expected one argument"),
     (["--cfg", "jop"], "invalid choice: 'jop'")],
)  # fmt: skip
def test_a_wrong_flag_is_one_line(typed: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        arranged(typed)
    assert len(str(caught.value).splitlines()) == 1
