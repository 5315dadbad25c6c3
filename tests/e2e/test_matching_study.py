"""The study of matching: its quantities by hand, from a sweep and from made-up records."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from .conftest import TINY, caller

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "matching_study.py"
SWEEP = ("-m", "trainer=fishr", "trainer.gamma=0,1,100,10000", "trainer.anneal_steps=2", "seed=0,1",
         "dataset=colored_digits")  # fmt: skip


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("matching_study", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sweep_becomes_three_figures_and_a_table(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    call = caller(runs)
    assert call(*SWEEP, "diagnostics=all", tiny=TINY).status == 0
    others = ("averaging=ema", "diagnostics=all"), ("trainer=erm", "diagnostics=all")
    assert all(call(*words, tiny=TINY).status == 0 for words in others)  # they take no part
    assert study.main([str(runs), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    names = ["matching_accuracy", "matching_over_steps", "matching_where"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{name}.{suffix}" for name in names for suffix in ("pdf", "png")
    ]
    rows = [re.split(r" *\| *", line.strip("|")) for line in out.splitlines() if "|" in line]
    assert [row[0].strip() for row in rows[2:]] == ["0 (ERM)", "1", "100", "10000"]
    assert {row[1] for row in rows[2:]} == {"2"}

    records = study.read(runs)
    assert len(records) == 8 * 2
    for _, row in records.iterrows():
        lines = (Path(row["path"]) / "records.jsonl").read_text().splitlines()
        looked = next(r for r in map(json.loads, lines) if r["step"] == row["step"])["diagnostics"]
        pair, a, b = "variance_distance{}/plus90/plus80", *(
            f"variance_norm{{}}/{domain}" for domain in ("plus90", "plus80")
        )  # fmt: skip
        rest = {
            key: (looked[key.format("_all")] ** 2 - looked[key.format("")] ** 2) ** 0.5
            for key in (pair, a, b)
        }
        for place in ("", "_all"):
            of = {key: looked[key.format(place)] for key in (pair, a, b)}
            assert row[f"distance{place}"] == pytest.approx(of[pair])
            assert row[f"relative{place}"] == pytest.approx(2 * of[pair] / (of[a] + of[b]))
        assert row["relative_rest"] == pytest.approx(2 * rest[pair] / (rest[a] + rest[b]))


def test_runs_are_compared_with_erm_of_their_seed_and_test_domain(study: ModuleType) -> None:
    rows = [
        # domain, seed, gamma, relative, relative_rest, accuracy
        ("a", 0, 0.0, 1.0, 2.0, 50.0),
        ("a", 0, 1.0, 0.5, 1.5, 54.0),
        ("b", 0, 0.0, 4.0, 8.0, 60.0),
        ("b", 0, 1.0, 1.0, 4.0, 59.0),
        ("b", 1, 1.0, 1.0, 4.0, 59.0),  # without its ERM
    ]
    columns = ["test_domains", "seed", "gamma", "relative", "relative_rest", "accuracy"]
    records = pd.DataFrame(rows, columns=columns).assign(step=9)
    earlier = records.assign(step=3, relative=7.0)
    found = study.against_erm(pd.concat([earlier, records]))
    assert list(found["ratio"]) == [1.0, 0.5, 1.0, 0.25]
    assert list(found["ratio_rest"]) == [1.0, 0.75, 1.0, 0.5]
    assert list(found["gain"]) == [0.0, 4.0, 0.0, -1.0]


def test_rank_correlations_within_a_seed_and_test_domain(study: ModuleType) -> None:
    def group(seed: int, accuracy: list[float]) -> pd.DataFrame:
        rows = {"relative": [1.0, 2.0, 3.0, 5.0][: len(accuracy)], "accuracy": accuracy}
        return pd.DataFrame(rows).assign(test_domains="a", seed=seed)

    falling, one_swap = group(0, [9.0, 7.0, 5.0, 1.0]), group(1, [1.0, 3.0, 2.0, 4.0])
    constant, short = group(2, [1.0] * 4), group(3, [1.0, 2.0, 3.0])
    found = study.correlations(pd.concat([falling, one_swap, constant, short]), "relative")
    assert found == pytest.approx([-1.0, 0.8])


def test_runs_that_cannot_be_studied_are_refused(study: ModuleType, tmp_path: Path) -> None:
    call = caller(tmp_path / "runs")
    assert call("diagnostics=true").status == 0
    with pytest.raises(SystemExit, match="no run has diagnostics=all"):
        study.main([str(tmp_path / "runs")])
    assert call("diagnostics=all", "seed=1").status == 0
    assert call("diagnostics=all", "seed=1", "optimizer.lr=0.5").status == 0
    with pytest.raises(SystemExit, match="differ in more than gamma, seed and test domain"):
        study.main([str(tmp_path / "runs")])
