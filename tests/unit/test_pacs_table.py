"""The table of PACS with ImageNet weights: which gamma and update is selected, by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return importlib.import_module("pacs_table")


def found(*of: tuple[str, float | None, str, int, float, float]) -> pd.DataFrame:
    columns = ["row", "gamma", "test_domains", "seed", "test", "validation"]
    return pd.DataFrame(of, columns=columns)


RUNS = found(
    ("ERM", 0.0, "a", 0, 50.0, 90.0),
    ("Fishr, gamma 1", 1.0, "a", 0, 52.0, 91.0),
    ("Fishr, gamma 10", 10.0, "a", 0, 60.0, 80.0),
    ("ERM", 0.0, "b", 0, 70.0, 90.0),
    ("Fishr, gamma 1", 1.0, "b", 0, 69.0, 89.0),
    ("Fishr, gamma 10", 10.0, "b", 0, 68.0, 80.0),
    ("ERM", 0.0, "a", 1, 40.0, 90.0),  # its sweep is not complete
    ("CORAL", 1.0, "a", 0, 55.0, 95.0),
    ("ERM, averaged weights", 0.0, "a", 0, 53.0, 99.0),
    ("Fishr, gamma 1, averaged weights", 1.0, "a", 0, 99.0, 99.0),
)


def test_gamma_is_selected_for_each_seed_and_test_domain(module: ModuleType) -> None:
    rows = module.rows(RUNS)
    assert list(rows) == [
        "ERM",
        "Fishr, gamma 1",
        "Fishr, gamma 10",
        "Fishr, selected gamma",
        "Fishr, oracle's gamma",
        "CORAL",
        "ERM, averaged weights",
        "Fishr, gamma 1, averaged weights",
    ]
    assert rows["Fishr, selected gamma"] == {("a", 0): 52.0, ("b", 0): 70.0}
    assert rows["Fishr, oracle's gamma"] == {("a", 0): 60.0, ("b", 0): 70.0}
    assert module.rows(RUNS, "validation")["Fishr, oracle's gamma"] == {
        ("a", 0): 80.0,
        ("b", 0): 90.0,
    }


def test_differences_are_to_erm_of_the_seed_and_test_domain(module: ModuleType) -> None:
    lines = module.table(module.rows(RUNS)).splitlines()
    cells = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines
    }
    assert cells[""] == ["a", "b", "mean", "pairs", "Δ ERM", "95 % interval", "p"]
    assert cells["ERM"] == ["45.0 ± 5.0", "70.0", "60.0", "–", "–", "–", "–"]
    assert cells["Fishr, gamma 10"] == ["60.0", "68.0", "64.0", "2", "+4.0", "[-2.0, +10.0]", "1"]
    assert cells["Fishr, oracle's gamma"] == ["60.0", "70.0", "65.0", "–", "–", "–", "–"]
    assert cells["CORAL"] == ["55.0", "", "", "1", "+5.0", "–", "–"]


def test_differences_from_erm_with_a_new_optimizer(module: ModuleType) -> None:
    restarted = found(
        ("Fishr, gamma 1e-09", 1e-9, "a", 0, 51.0, 90.0),
        ("Fishr, gamma 1e-09", 1e-9, "b", 0, 68.0, 90.0),
    )
    lines = module.against_restarted(module.rows(RUNS), restarted).splitlines()
    cells = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines
    }
    assert list(cells)[2:] == ["ERM, new optimizer", "ERM", "Fishr, gamma 1", "Fishr, gamma 10"]
    assert cells[""][4] == "Δ"
    assert cells["ERM, new optimizer"] == ["51.0", "68.0", "59.5", "–", "–", "–", "–"]
    assert cells["ERM"][3:5] == ["2", "+0.5"]  # 50 - 51 and 70 - 68
    assert cells["Fishr, gamma 1"][3:5] == ["2", "+1.0"]


def test_the_step_is_selected_after_the_penalty_acts(module: ModuleType) -> None:
    def evaluation(name: str, step: int, validation: float, test: float) -> dict[str, object]:
        return {
            "name": name, "row": "ERM", "gamma": 0.0, "test_domains": "a", "seed": 0, "step": step,
            "validation_accuracy": validation, "accuracy/a/validation": test,
        }  # fmt: skip

    records = pd.DataFrame([
        evaluation("one", 100, 0.99, 0.1),  # too early
        evaluation("one", 150, 0.80, 0.2),
        evaluation("one", 200, 0.90, 0.3),
        evaluation("one", 250, 0.85, 0.9),
    ])  # fmt: skip
    assert module.best_step(records)[["test", "validation"]].to_numpy().tolist() == [[30, 90]]


def test_the_records_at_hand(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    records = ROOT / "docs" / "results" / "records"
    words = ["--restarted", str(records / "pacs_lite0_restarted")]
    assert module.main([str(records / "pacs_lite0"), *words]) == 0
    out = capsys.readouterr().out
    page = (ROOT / "docs" / "results" / "pacs_lite0.md").read_text()
    assert page.endswith(f"## Tables\n\n{out}")  # what `make results` writes
    assert out.count("### ") == 5
    assert out.count("| ERM ") == 5


def test_a_folder_without_runs_is_one_line(module: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no run that is done"):
        module.main([str(tmp_path)])
