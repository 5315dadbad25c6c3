"""One command runs every method, one table has every row; so also after a stop in the middle."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fishr_exp.cli import table as table_cli

from .conftest import Command, caller, stop_before

SHORT = ("-m", "experiment=zoo_quickstart", "tracker=none", "total_steps=6", "steps_per_epoch=3")
FEW = "trainer=erm,group_dro,dann,mldg"


def rows(folder: Path) -> list[dict[str, str]]:
    assert table_cli.main([str(folder)]) == 0
    with (folder / "table" / "table.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("methods", [pytest.param([], marks=pytest.mark.slow), [FEW]])
def test_every_method_has_a_row(fishr_exp: Command, tmp_path: Path, methods: list[str]) -> None:
    outcome = fishr_exp(*SHORT, *methods, tiny=())
    assert outcome.status == 0, outcome.err
    done = [path for path in (tmp_path / "runs").iterdir() if (path / "done").exists()]
    found = rows(tmp_path / "runs")
    assert len(found) == len({row["method"] for row in found}) == len(done)
    assert found[0]["method"] == "ERM"
    assert all(row["test_minus90_n"] == "1" for row in found)
    assert all(row["delta_erm_n"] == "1" for row in found[1:])  # all are compared with ERM


def test_a_stopped_sweep_gives_the_same_table(tmp_path: Path) -> None:
    whole = caller(tmp_path / "whole")(*SHORT, FEW, tiny=())
    assert whole.status == 0, whole.err
    with pytest.MonkeyPatch.context() as patch:
        stop_before(5, patch)
        assert caller(tmp_path / "parts")(*SHORT, FEW, tiny=()).status == 130
    again = caller(tmp_path / "parts")(*SHORT, FEW, tiny=())
    assert again.status == 0, again.err
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
