"""The study of matching: its quantities by hand, from a sweep and from made-up records."""

from __future__ import annotations

import importlib
import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Model
from fishr_exp.gradient_variance import per_sample_losses

from .conftest import TINY, caller

SWEEP = ("-m", "trainer=fishr", "trainer.gamma=0,1,100,10000", "trainer.anneal_steps=2", "seed=0,1",
         "dataset=colored_digits")  # fmt: skip


@pytest.fixture(scope="module")
def scripts() -> SimpleNamespace:
    names = ("measure", "study")
    return SimpleNamespace(**{n: importlib.import_module(f"matching_{n}") for n in names})


def test_a_sweep_becomes_three_figures_and_a_table(
    scripts: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    call = caller(runs)
    assert call(*SWEEP, tiny=TINY).status == 0
    for word in ("averaging=ema", "trainer=erm", "trainer=vrex"):  # they take no part
        assert call(word, tiny=TINY).status == 0
    few = ["--classifier", "100", "--others", "50"]
    assert scripts.measure.main(["measure", str(runs), *few]) == 0
    file = runs / "matching.jsonl"
    before = file.read_text()
    assert len(before.splitlines()) == 8  # the newest state of each
    assert {json.loads(line)["others"]["samples"] for line in before.splitlines()} == {50}
    assert scripts.measure.main(["measure", str(runs), *few]) == 0  # nothing is left to measure
    assert file.read_text() == before

    assert scripts.measure.main(["noise", str(runs), "--classifier", "200"]) == 0
    noise = [json.loads(line) for line in (runs / "noise.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in noise] == 2 * [16, 32, 64, 100]
    text = scripts.study.describe_noise(runs)
    assert "mean over ERM's 2 runs" in text
    for row in re.findall(r"\| +(\d+) \| +([\d.]+) \| +([\d.]+) \|", text):
        of = [line for line in noise if line["samples"] == int(row[0])]
        for value, key in zip(row[1:], ("within", "between"), strict=True):
            assert float(value) == pytest.approx(sum(line[key] for line in of) / 2, abs=0.0051)
    assert scripts.study.main([str(runs), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    names = ["matching_accuracy", "matching_over_steps", "matching_where"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{name}.{suffix}" for name in names for suffix in ("pdf", "png")
    ]
    rows = [re.split(r" *\| *", line.strip("|")) for line in out.splitlines() if "|" in line]
    assert [row[0].strip() for row in rows[2:]] == ["0 (ERM)", "1", "100", "10000"]
    assert {row[1] for row in rows[2:]} == {"2"}


def test_squares_by_hand(scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts.measure, "AT_ONCE", 2)
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    model = Model(featurizer, nn.Linear(4, 3)).double().eval()
    samples = {
        name: (torch.randn(8, 3).double(), torch.randint(3, (8,))) for name in ("a", "b", "c")
    }

    def variance(parameters: list[nn.Parameter], name: str, half: slice) -> torch.Tensor:
        x, y = (of[half] for of in samples[name])
        rows = []
        for i in range(len(y)):
            (loss,) = per_sample_losses(model(x[i : i + 1]), y[i : i + 1])
            grads = torch.autograd.grad(loss, parameters)
            rows.append(torch.cat([grad.flatten() for grad in grads]))
        parts = torch.stack(rows).split(2)  # AT_ONCE
        return torch.stack([part.var(0) for part in parts]).mean(0)

    for place, part in (("classifier", model.classifier), ("others", model.featurizer)):
        parameters = list(part.parameters())
        one, two = (
            {name: variance(parameters, name, half) for name in samples}
            for half in (slice(4), slice(4, 8))
        )
        expected = {name: float(one[name] @ two[name]) for name in samples}
        for a, b in (("a", "b"), ("a", "c"), ("b", "c")):
            expected[f"{a}/{b}"] = float((one[a] - one[b]) @ (two[a] - two[b]))
        found = scripts.measure.squares(model, samples, place)
        assert found == pytest.approx(expected, rel=1e-9)


def test_equal_domains_have_no_distance_on_average(scripts: SimpleNamespace) -> None:
    """The plain distance of two samples of one domain is far from 0; this one is not."""
    torch.manual_seed(1)
    model = Model(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 3)).double().eval()

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(16, 3).double(), torch.randint(3, (16,))

    found = [
        scripts.measure.squares(model, {"a": draw(), "b": draw()}, "classifier") for _ in range(300)
    ]
    distances, sizes = (torch.tensor([of[key] for of in found]).double() for key in ("a/b", "a"))
    error = distances.std() / len(found) ** 0.5
    assert distances.mean().abs() < 3 * error
    assert error < 0.02 * sizes.mean()


def test_plain_distances_by_hand(scripts: SimpleNamespace) -> None:
    torch.manual_seed(2)
    classifier = nn.Linear(3, 3).double()
    samples = {name: (torch.randn(8, 3).double(), torch.randint(3, (8,))) for name in ("a", "b")}

    def variance(name: str, half: slice) -> torch.Tensor:
        x, y = (of[half] for of in samples[name])
        model = Model(nn.Identity(), classifier)
        rows = []
        for i in range(len(y)):
            (loss,) = per_sample_losses(model(x[i : i + 1]), y[i : i + 1])
            grads = torch.autograd.grad(loss, list(classifier.parameters()))
            rows.append(torch.cat([grad.flatten() for grad in grads]))
        return torch.stack(rows).var(0, unbiased=False)

    halves = [(slice(0, 2), slice(2, 4)), (slice(4, 6), slice(6, 8))]
    v = [[variance(name, half) for half in pair] for pair in halves for name in ("a", "b")]
    size = torch.stack([of.square().sum() for pair in v for of in pair]).mean()
    within = torch.stack([(one - two).square().sum() for one, two in v]).mean()
    between = torch.stack([(v[i][0] - v[i + 1][0]).square().sum() for i in (0, 2)]).mean()
    found = scripts.measure.plain_distances(classifier, samples, 2)
    assert found == pytest.approx(
        (float((within / size).sqrt()), float((between / size).sqrt())), rel=1e-9
    )


def test_checkpoints_are_kept_as_they_appear(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = tmp_path / "run" / "checkpoints"
    states.mkdir(parents=True)
    monkeypatch.setattr(scripts.measure, "PAUSE", 0.02)
    ended = threading.Event()
    thread = threading.Thread(target=scripts.measure.keep, args=(tmp_path, ended))
    thread.start()
    (states / "step-50.pt").write_text("50")
    until = time.monotonic() + 30
    kept = tmp_path / "run" / "kept" / "step-50.pt"
    while not kept.exists() and time.monotonic() < until:
        time.sleep(0.01)
    ended.set()
    thread.join()
    (states / "step-50.pt").unlink()
    (states / "step-100.pt").write_text("100")
    (states / "best.pt").write_text("best")
    found = scripts.measure.states(tmp_path / "run")
    assert {step: path.read_text() for step, path in found.items()} == {50: "50", 100: "100"}


def test_distance_size_and_relative_distance(scripts: SimpleNamespace) -> None:
    squares = {"samples": 8, "a": 4.0, "b": 9.0, "c": 5.0, "a/b": 1.0, "a/c": 3.0, "b/c": -1.0}
    found = scripts.study.summary(squares)
    assert found == pytest.approx(
        {"distance": 1.0, "size": 6**0.5, "relative": 1 / 6**0.5}, rel=1e-12
    )
    assert scripts.study.summary({"a": 1.0, "b": 1.0, "a/b": -0.5})["distance"] == 0


def test_runs_are_compared_with_erm_of_their_seed_and_test_domain(scripts: SimpleNamespace) -> None:
    rows = [
        # domain, seed, gamma, relative, relative_others, accuracy, validation
        ("a", 0, 0.0, 1.0, 2.0, 50.0, 80.0),
        ("a", 0, 1.0, 0.5, 1.5, 54.0, 71.0),
        ("b", 0, 0.0, 4.0, 8.0, 60.0, 80.0),
        ("b", 0, 1.0, 1.0, 4.0, 59.0, 69.0),
        ("b", 1, 1.0, 1.0, 4.0, 59.0, 80.0),  # without its ERM
    ]
    columns = ["test_domains", "seed", "gamma", "relative", "relative_others", "accuracy",
               "validation"]  # fmt: skip
    records = pd.DataFrame(rows, columns=columns).assign(step=9)
    earlier = records.assign(step=3, relative=7.0)
    found = scripts.study.against_erm(pd.concat([earlier, records]))
    assert list(found["ratio"]) == [1.0, 0.5, 1.0, 0.25]
    assert list(found["ratio_others"]) == [1.0, 0.75, 1.0, 0.5]
    assert list(found["gain"]) == [0.0, 4.0, 0.0, -1.0]
    assert list(found["collapsed"]) == [False, False, False, True]


def test_means_over_the_steps_are_of_the_same_runs(scripts: SimpleNamespace) -> None:
    """A run that took over steps has those of ERM; one that was measured late takes no part."""
    rows = [("erm", 0.0, step, 1.0) for step in (50, 100, 150, 200)]
    rows += [("branch", 1.0, step, 2.0) for step in (150, 200)]
    rows += [("late", 10.0, 200, 3.0)]
    columns = ["name", "gamma", "step", "distance"]
    measured = pd.DataFrame(rows, columns=columns).assign(test_domains="a", seed=0)
    other = [("other erm", 0.0, step, 1.0) for step in (50, 100, 150, 200)]
    without = pd.DataFrame(other, columns=columns).assign(test_domains="b", seed=0)
    found = scripts.study.at_all_steps(pd.concat([measured, without]))
    of = found[found["name"] == "branch"]
    assert list(of["step"]) == [50, 100, 150, 200]
    assert list(of["distance"]) == [1.0, 1.0, 2.0, 2.0]
    assert set(of["gamma"]) == {1.0}
    assert set(found["name"]) == {"erm", "branch"}
    # Another seed, of which only the last step was measured.
    last = [("last erm", 0.0, 200, 5.0), ("last", 1.0, 200, 6.0)]
    second = pd.DataFrame(last, columns=columns).assign(test_domains="a", seed=1)
    assert scripts.study.at_all_steps(pd.concat([measured, without, second])).equals(found)
    # Another test domain with as many gammas, one of which the first one lacks.
    more = pd.DataFrame([("other", 3.0, 150, 2.0), ("other", 3.0, 200, 2.0)], columns=columns)
    more = more.assign(test_domains="b", seed=0)
    found = scripts.study.at_all_steps(pd.concat([measured, without, more]))
    assert set(found["gamma"]) == {0.0}
    assert set(found["name"]) == {"erm", "other erm"}


def test_rank_correlations_within_a_seed_and_test_domain(scripts: SimpleNamespace) -> None:
    def group(seed: int, accuracy: list[float]) -> pd.DataFrame:
        rows = {"relative": [1.0, 2.0, 3.0, 5.0][: len(accuracy)], "accuracy": accuracy}
        return pd.DataFrame(rows).assign(test_domains="a", seed=seed)

    falling, one_swap = group(0, [9.0, 7.0, 5.0, 1.0]), group(1, [1.0, 3.0, 2.0, 4.0])
    constant, short = group(2, [1.0] * 4), group(3, [1.0, 2.0, 3.0])
    found = scripts.study.correlations(pd.concat([falling, one_swap, constant, short]), "relative")
    assert found == pytest.approx([-1.0, 0.8])


def test_correlations_are_told_without_collapsed_networks_too(scripts: SimpleNamespace) -> None:
    values = pd.DataFrame({
        "gamma": [0.0, 1.0, 2.0, 3.0, 9.0], "accuracy": [1.0, 2.0, 3.0, 4.0, 0.0],
        "collapsed": [False] * 4 + [True],
    })  # fmt: skip
    rows = values.assign(test_domains="a", seed=0, gain=0.0)
    for key in ("distance", "size", "relative", "relative_others"):
        rows[key] = [1.0, 2.0, 3.0, 4.0, 5.0]
    text = scripts.study.describe(rows)
    assert text.count("mean +0.00, from +0.00 to +0.00, over 1 choice of") == 2
    assert text.count("without the 1 run whose network collapsed") == 2
    assert text.count("mean +1.00") == 2
    text = scripts.study.describe(rows[~rows["collapsed"]])
    assert "collapsed" not in text
    assert "| relative distance, other parameters |" in re.sub(" +", " ", text)
    rows["relative_others"] = [1.0, 2.0, 3.0, 4.0, float("nan")]
    text = scripts.study.describe(rows)
    assert "| relative distance, other parameters (4 runs) |" in re.sub(" +", " ", text)
    assert "nan" not in text


def test_runs_that_cannot_be_studied_are_refused(
    scripts: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = caller(tmp_path / "runs")
    assert call().status == 0
    with pytest.raises(SystemExit, match=r"has no matching\.jsonl"):
        scripts.study.main([str(tmp_path / "runs")])
    assert call("optimizer.lr=0.5").status == 0
    scripts.measure.main(["measure", str(tmp_path / "runs"), "--others", "0"])
    assert "others" not in (tmp_path / "runs" / "matching.jsonl").read_text()
    with pytest.raises(SystemExit, match="differ in more than gamma, seed and test domain"):
        scripts.study.main([str(tmp_path / "runs")])
    with pytest.raises(SystemExit):
        scripts.measure.main(["measure", str(tmp_path / "runs"), "--others", "3"])
    for state in (tmp_path / "runs").glob("*/checkpoints/step-*.pt"):
        state.unlink()
    assert scripts.measure.main(["measure", str(tmp_path / "runs")]) == 0  # all is measured
    (tmp_path / "runs" / "matching.jsonl").unlink()
    for what, expected in (
        ("measure", "no checkpoint is left in its runs"),
        ("noise", "holds no run of ERM (gamma 0)"),
    ):
        with pytest.raises(SystemExit):
            scripts.measure.main([what, str(tmp_path / "runs")])
        assert capsys.readouterr().err.endswith(f"runs: {expected}\n")
