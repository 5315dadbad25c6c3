"""The benchmark of all methods: what it measures, and its arithmetic, never the times in it."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from fishr_exp.configuration.options import conf_dir


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return importlib.import_module("bench_methods")


def test_every_option_is_measured_or_a_preset(bench: ModuleType) -> None:
    known = {path.stem for path in (conf_dir() / "trainer").glob("*.yaml")}
    assert {*bench.options(), *bench.PRESETS, "fishr"} == known
    assert set(bench.DOMAINBED) <= set(bench.options())
    assert set(bench.ADD_LITTLE) <= set(bench.options())


@pytest.mark.slow
def test_methods_are_timed_beside_erm(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    tables, figures = bench.run(["mlp"], ["coral", "dann"], None, 2)
    assert set(figures["mlp"]) == {"coral", "dann"}
    for row in figures["mlp"].values():
        assert row["ours"] > 0 < row["times_erm"]
        assert row["domainbed"] is row["gain"] is None
    assert "| trainer" in tables
    assert "mlp coral" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "workload", "times_erm", "gain", "said"),
    [
        ("coral", "resnet18", 1.04, 1.2, "≤ 1.1 × ERM met, not slower"),
        ("coral", "resnet18", 1.2, 0.9, "≤ 1.1 × ERM not met, slower"),
        ("coral", "mlp", 1.2, 0.99, "equal"),
        ("sam", "resnet18", 2.0, None, ""),
    ],
)
def test_the_verdict(
    bench: ModuleType, option: str, workload: str, times_erm: float, gain: float | None, said: str
) -> None:
    row = {"times_erm": times_erm, "gain": gain}
    assert bench.verdict(option, workload, row) == said
