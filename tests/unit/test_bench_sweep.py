"""The benchmark of sweeps: its arithmetic, its checks and its section, never the times in it."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TINY = ("tracker=none", "trainer.gamma=0,1", "seed=0", "total_steps=4", "steps_per_epoch=4",
        "trainer.anneal_steps=2", "model.hidden=8")  # fmt: skip


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return importlib.import_module("bench_sweep")


def cost(bench: ModuleType, wall: float, cpu: float = 1.0, output: str = "") -> Any:
    return bench.Cost(wall, cpu, 2**20, output)


def leave_run(sweep: Path, name: str, steps: int, shared: int = 0, accuracy: float = 0.5) -> None:
    (sweep / name).mkdir(parents=True)
    record = {"step": steps, "time": str(sweep), "seconds": 1.0, "accuracy": {"a": accuracy}}
    (sweep / name / "records.jsonl").write_text(json.dumps(record) + "\n")
    taken = {"shared": {"run": "other", "steps": shared, "seconds": 0.1}} if shared else {}
    (sweep / name / "result.json").write_text(json.dumps({"seconds": 2.0, "step": steps} | taken))


@pytest.mark.slow
def test_a_sweep_with_and_without_shared_steps_into_its_section_of_the_page(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "QUICKSTART", TINY)
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n## Sweeps\n\nforgotten\n\n## Tracking\n\nkept\n")
    bench.main(["shared", f"--markdown={page}"])
    text = page.read_text()
    assert text.startswith("# Title\n\n## Sweeps\n\nMeasured ")
    assert text.endswith("\n\n## Tracking\n\nkept\n")
    assert "forgotten" not in text
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    alone, together = (
        next(row for row in rows if f"share_steps={way}" in row) for way in ("false", "true")
    )
    assert alone[3:5] == ["2", "8 (1.00)"]
    assert together[3:5] == ["2", "6 (0.75)"]
    assert float(together[7]) > 0 < float(together[8])
    assert "quickstart: records and results, without times, are equal in all 2 runs." in text
    assert "gamma_colored_mnist is skipped" in text


@pytest.mark.slow
def test_made_up_runs_are_found_as_done_and_are_in_the_table(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "DONE", {3: (3, 1)})
    options = argparse.Namespace(counts=[3], rounds=1, before=None)
    (found,) = bench.restart(options, tmp_path)
    ways = [row[:2] for row in found.rows]
    assert ways == [["3", "no index"], ["3", "index"], ["3", "hydra/sweeper=basic"]]
    (found,) = bench.table(options, tmp_path)
    assert found.rows[0][:2] == ["3", "3 × 1"]
    assert float(found.rows[0][4]) > 10  # MiB
    # A run that is missing is made, which the benchmark does not take for a restart.
    folder = tmp_path / "done-3"
    (next(folder.glob("*/done"))).unlink()
    with pytest.raises(RuntimeError, match="not found as done"):
        bench.restart(options, tmp_path)


def test_runs_that_differ_are_counted(bench: ModuleType, tmp_path: Path) -> None:
    for way in ("alone", "together", "off", "missing"):
        leave_run(tmp_path / way, "a", 100)
        if way != "missing":
            accuracy = 0.6 if way == "off" else 0.5
            leave_run(tmp_path / way, "b", 100, 40 * (way != "alone"), accuracy)
    alone, together, off, missing = (
        bench.runs_of(tmp_path / way) for way in ("alone", "together", "off", "missing")
    )
    assert bench.steps_of(alone) == (200, 200)
    assert bench.steps_of(together) == (160, 200)
    assert "equal in all 2 runs" in bench.how_equal(alone, [together])
    assert "DIFFER in 1 runs" in bench.how_equal(alone, [together, off])
    assert "DIFFER in 1 runs" in bench.how_equal(alone, [missing])
    assert "DIFFER in 1 runs" in bench.how_equal(missing, [alone])


def test_ratios_are_those_of_the_same_round(bench: ModuleType) -> None:
    costs = {
        "one": [cost(bench, 1.0), cost(bench, 10.0), cost(bench, 2.0)],
        "other": [cost(bench, 0.5, 2.0), cost(bench, 5.0, 3.0), cost(bench, 1.5, 4.0)],
    }
    assert bench.times(costs, "one") == ["2.00", "1.00", "", ""]
    assert bench.times(costs, "other") == ["1.50", "3.00", "0.50", "3.00"]


def test_the_ways_take_turns(bench: ModuleType) -> None:
    turns: list[str] = []

    def way(name: str) -> Any:
        return lambda i: turns.append(f"{name}{i}") or cost(bench, 1.0)

    bench.in_turns({"a": way("a"), "b": way("b")}, 2)
    assert turns == ["a0", "b0", "b1", "a1"]


def test_the_verdict(bench: ModuleType) -> None:
    assert bench.verdict(9.9, 10.0, " s") == "≤ 10 s met"
    assert bench.verdict(0.61, 0.6, "") == "≤ 0.6 not met"
    assert bench.verdict(1.0, None, "") == ""


def test_submissions_are_counted_and_timed_by_the_commands_of_slurm(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "slurm"
    tools.mkdir()
    for name in ("sbatch", "sinfo"):
        (tools / name).write_text("#!/bin/sh\nsleep 0.05\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{bench.os.environ['PATH']}")
    monkeypatch.setattr(bench, "made_up", lambda count, _: (tmp_path, [str(count)]))
    arrays = iter([2, 0, 0, 0])

    def call(_: str, words: list[str], folder: Path, *, env: dict[str, str]) -> Any:
        assert words[-1] == "hydra/launcher=submitit_slurm"
        for _ in range(next(arrays)):
            bench.subprocess.run(["sbatch"], check=True, env={**bench.os.environ, **env})
        return cost(bench, 1.0)

    monkeypatch.setattr(bench, "call", call)
    (found,) = bench.slurm(argparse.Namespace(counts=[21, 720]), tmp_path / "scratch")
    assert [row[2] for row in found.rows] == ["2", "0", "0", "0"]
    assert float(found.rows[0][3]) > 0
    assert [row[3] for row in found.rows[1:]] == [""] * 3
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = bench.slurm(argparse.Namespace(counts=[21]), tmp_path)
    assert found.show("simple") == "### Slurm\n\nSkipped: there is no Slurm here."


def test_a_command_that_fails_ends_the_benchmark(bench: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no-such-folder"):
        bench.call("table", ["no-such-folder"], tmp_path)
    with pytest.raises(SystemExit):
        bench.main(["strat"])
