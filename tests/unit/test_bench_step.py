"""The benchmark's tables: their shape and their arithmetic, never the times in them."""

from __future__ import annotations

import copy
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_methods
import bench_step as bench
import pytest
import timed_steps
import torch

NATIVE, BACKPACK = "fishr classifier native", "fishr classifier backpack"


def test_writes_one_table_a_workload_with_erm_as_the_unit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    files = {kind: tmp_path / f"bench.{kind}" for kind in ("json", "markdown")}
    options = [f"--{kind}={path}" for kind, path in files.items()]
    try:
        bench.main(["mlp", "--scale", "0.001", "--rounds", "2", *options, "--contenders", NATIVE])
    finally:
        torch.set_num_threads(threads)

    printed = capsys.readouterr().out
    assert "2 × 25 samples of 2×14×14" in printed
    assert "threads: 1" in printed
    assert f"torch {torch.__version__}" in printed

    rows = json.loads(files["json"].read_text())["workloads"]["mlp"]["contenders"]
    assert list(rows) == ["erm", NATIVE]
    assert rows["erm"]["ratio"] == rows["erm"]["time"] == 1
    assert all(len(row["milliseconds"]) == 2 for row in rows.values())
    if sys.platform == "linux":
        assert rows["erm"]["memory"] == 1
        assert rows[NATIVE]["peak"] > 0

    page = files["markdown"].read_text()
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert "time ≤ 1.1" in table[3]
    assert len({line.count("|") for line in table}) == 1


def test_ratios_are_paired_by_round() -> None:
    times = {
        "erm": {0: 1.0, 1: 10.0, 2: 2.0},
        NATIVE: {0: 1.5, 1: 15.0, 2: 3.0},
        BACKPACK: {0: 4.5, 2: 9.0},
    }
    rows = bench.summarise(times, {"erm": 100, NATIVE: 150, BACKPACK: None})
    assert [rows[name]["time"] for name in times] == [1, 1.5, 4.5]
    assert rows[NATIVE]["ratio"] == 3.0 / 2.0
    assert rows[NATIVE]["speed-up"] is None
    assert rows[BACKPACK]["speed-up"] == 3
    assert rows[NATIVE]["memory"] == 1.5
    assert rows[BACKPACK]["memory"] is None
    assert bench.in_words(rows) == []


def test_every_way_of_backpack_is_compared_with_native_in_words() -> None:
    ways = {name: {0: 10.0 * i} for i, name in enumerate(timed_steps.RIVALS, 1)}
    times = {"erm": {0: 1.0}, "fishr all native": {0: 4.0}, **ways}
    (sentence,) = bench.in_words(bench.summarise(times, dict.fromkeys(times)))
    assert "2.5 times as long as it comes" in sentence
    assert "5.0 times as long with its fast convolutions" in sentence
    assert "10.0 times as long by sums of squares with its fast convolutions" in sentence


@pytest.mark.parametrize("workload", ["mlp", "cnn_minibatch"])
def test_backpack_by_hand_has_the_objective_of_fishr(workload: str) -> None:
    torch.manual_seed(0)
    small = replace(timed_steps.WORKLOADS[workload], samples=3)
    model, batch = small.model("cpu").double(), small.batch("cpu")
    batch = replace(batch, x=batch.x.double())
    totals, gradients = [], []
    for name in ("fishr all native", "fishr all backpack fast squares"):
        objective = timed_steps.CONTENDERS[name]().objective(model, batch, 0)
        totals.append(objective.total)
        gradients.append(torch.autograd.grad(objective.total, [*model.parameters()]))
        assert objective.logs["penalty"] > 1e-3
    torch.testing.assert_close(totals[1], totals[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_bf16_computes_the_objective_under_autocast() -> None:
    torch.manual_seed(0)
    workload = replace(timed_steps.WORKLOADS["mlp"], samples=8)
    model, batch = workload.model("cpu"), workload.batch("cpu")
    for name in ("erm", "fishr classifier native", "fishr all native"):
        plain = timed_steps.CONTENDERS[name]().objective(model, batch, 0).total.item()
        bf16 = timed_steps.Platform(precision="bf16")
        contender = timed_steps.Contender(name, copy.deepcopy(model), batch, bf16)
        with contender.autocast():
            rounded = contender.method.objective(model, batch, 0).total.item()
        assert rounded != plain
        assert rounded == pytest.approx(plain, rel=0.05)
        assert contender.timed_step() > 0


def test_a_compiled_featurizer_changes_no_objective_and_no_update() -> None:
    torch.manual_seed(0)
    workload = replace(timed_steps.WORKLOADS["cnn_without_norm"], samples=4)
    model, batch = workload.model("cpu"), workload.batch("cpu")
    for name in ("erm", "fishr classifier native", "fishr all native"):
        updated = []
        for compiler in (None, "aot_eager"):
            platform = timed_steps.Platform(compiler=compiler)
            contender = timed_steps.Contender(name, copy.deepcopy(model), batch, platform)
            is_compiled = contender.model.featurizer._compiled_call_impl is not None
            assert is_compiled == (compiler is not None and name in timed_steps.COMPILED)
            contender.step()
            updated.append([*contender.model.parameters()])
        torch.testing.assert_close(*updated, rtol=1e-4, atol=1e-6)


def test_slow_contenders_take_part_in_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"erm": 1.0, "fishr all native": 4.0, "fishr all backpack": 21.0}
    monkeypatch.setattr(timed_steps.Contender, "timed_step", lambda self: seconds[self.name])
    workload = replace(timed_steps.WORKLOADS["mlp"], samples=2)
    for sparing, counts in ((True, [30, 6, 2]), (False, [30, 30, 30])):
        times, _ = timed_steps.measure_times(
            workload, [*seconds], 30, timed_steps.Platform(), sparing=sparing
        )
        assert [len(own) for own in times.values()] == counts


def test_bars_bound_time_and_memory_above_and_the_speed_up_below() -> None:
    bars = {f"{NATIVE} time": 1.1, f"{NATIVE} memory": 2.0, f"{NATIVE} speed-up": 4.0}
    row = {"time": 1.2, "memory": 2.0, "speed-up": 4.5}
    verdict = "time ≤ 1.1 not met, memory ≤ 2 met, speed-up ≥ 4 met"
    assert bench.judge(NATIVE, row, bars) == verdict
    assert bench.judge("erm", row, bars) == ""
    assert bench.judge(NATIVE, row | {"memory": None}, bars).count("met") == 2


def test_a_contender_that_refuses_is_a_line_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: 1)  # one byte of free memory
    workload = replace(timed_steps.WORKLOADS["mlp"], samples=2)
    names = ["erm", "fishr all backpack"]
    times, refusals = timed_steps.measure_times(workload, names, 2, timed_steps.Platform())
    assert list(times) == ["erm"]
    page = bench.render(bench.summarise(times, {"erm": 1}), refusals, {}, "github")
    assert "| fishr all backpack" in page
    assert "fishr all backpack refuses: per-sample gradients" in page


def test_domainbeds_own_class_takes_part_on_small_minibatches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates: list[str] = []

    class Checkout:
        def __init__(self, path: str) -> None:
            assert path == "checkout"

        def update(self, option: str, workload: Any, batch: Any) -> Any:
            assert (workload.samples, workload.num_classes, batch.sizes) == (64, 2, (64, 64, 64))
            assert bench_methods.build(workload, (2, 14, 14)).classifier.in_features == 390
            return lambda: updates.append(option)

    monkeypatch.setattr(bench_methods, "Checkout", Checkout)
    names = ["erm", timed_steps.DOMAINBED]
    assert timed_steps.WORKLOADS["mnist_cnn"].contenders(names) == ["erm"]
    workload = timed_steps.WORKLOADS["mlp_minibatch"]
    platform = timed_steps.Platform(domainbed="checkout")
    times, refusals = timed_steps.measure_times(workload, workload.contenders(names), 2, platform)
    assert refusals == {}
    assert [*times[timed_steps.DOMAINBED]] == [0, 1]
    assert updates == ["fishr_domainbed"] * 5  # three warm up


def test_every_bar_belongs_to_a_contender() -> None:
    for workload in timed_steps.WORKLOADS.values():
        for bar in workload.bars:
            name, _, quantity = bar.rpartition(" ")
            assert name in timed_steps.CONTENDERS
            assert quantity in ("time", "memory", "speed-up")
            assert workload.contenders([name]) == [name]
