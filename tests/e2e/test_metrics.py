"""`metrics=[...]`: what is recorded and monitored, and `fishr-table --metric`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fishr_exp.cli import table

from .conftest import Command

MORE = "metrics=[macro_f1,accuracy,loss,worst_class,balanced_accuracy]"


def test_what_is_asked_for_is_recorded_monitored_and_in_the_result(fishr_exp: Command) -> None:
    run = fishr_exp("trainer=erm", MORE, "observer.monitor=validation_macro_f1")
    assert run.status == 0, run.err
    names = ["accuracy", "loss", "macro_f1", "worst_class", "balanced_accuracy"]
    for record in run.records():
        assert [key for key in record if key in names] == names
        means = [record[f"validation_{name}"] for name in names[2:]]
        assert all(0 <= mean <= 1 for mean in means)
        assert record["worst_class"]["minus90"]["train"] <= record["accuracy"]["minus90"]["train"]
    result = run.result()
    best = max(run.records(), key=lambda record: record["validation_macro_f1"])
    assert result["selected"]["monitor"] == "validation_macro_f1"
    assert result["selected"]["step"] == best["step"]
    assert set(result["test_macro_f1"]) == set(result["counts"]) - {"plus90", "plus80"}


def test_the_default_is_the_run_of_before(fishr_exp: Command) -> None:
    run = fishr_exp("trainer=erm")
    keys = "step epoch seconds_per_step seconds_waiting_per_step learning_rate losses accuracy loss"
    keys += " train_accuracy validation_accuracy train_loss validation_loss seconds time"
    assert [*run.records()[0]] == keys.split()
    again = fishr_exp("trainer=erm", "metrics=[loss,accuracy]")
    assert again.folder == run.folder
    assert "done already" in again.err
    other = fishr_exp("trainer=erm", "metrics=[accuracy]")
    assert other.folder.name.startswith("erm-seed0-")
    assert other.folder != run.folder
    assert "validation_loss" not in other.records()[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["observer.monitor=validation_macro_f1"],
            "observer.monitor=validation_macro_f1: no evaluation gives it; choose from objective,"
            " risk, train_accuracy",
        ),
        (
            ["observer.monitor=worst_class/plus90/validation"],
            "or pass 'metrics=[accuracy,loss,worst_class]'",
        ),
        (
            ["averaging=swad", "metrics=[accuracy]"],
            "no evaluation gives validation_loss; pass 'metrics=[accuracy,loss]'",
        ),
        (["metrics=[acuracy]"], "metrics=[acuracy]: acuracy is no metric; choose from accuracy"),
        (["metrics=accuracy"], "metrics=accuracy: "),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str, fishr_exp: Command) -> None:
    run = fishr_exp("trainer=erm", *words)
    assert run.status == 2
    assert says in run.err
    assert len(run.err.splitlines()) == 1


def test_a_table_of_another_metric(
    fishr_exp: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fishr_exp("trainer=erm", MORE)
    without = fishr_exp("trainer=erm", "seed=1").folder
    root = str(tmp_path / "runs")
    assert table.main([root, "--metric", "macro_f1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("colored_digits; test domain minus90; model mlp; macro F1\n")
    assert "Macro F1 in %, mean ± standard error over seeds; one seed has no error." in out
    assert f"Not counted: 1 run has no macro_f1: {without}; run them with 'metrics=[" in out
    (row,) = csv.DictReader((tmp_path / "runs/table/table-macro_f1.csv").open())
    assert row["metric"] == "macro_f1"
    expected = 100 * run.result()["test_macro_f1"]["minus90"]
    assert float(row["test_minus90_mean"]) == pytest.approx(expected, abs=1e-4)
    assert float(row["validation_mean"]) == pytest.approx(
        100 * run.result()["validation_macro_f1"], abs=1e-4
    )
    assert (tmp_path / "runs/table/figure-macro_f1.png").exists()
    assert not (tmp_path / "runs/table/table.csv").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--metric", "macro_f1"], "no run recorded it; the runs have accuracy; run them with"),
        (["--metric", "loss"], "--metric=loss: tables are in percent, and a loss is not"),
        (["--metric", "macro_f1", "--protocol", "domainbed"], "of a protocol are of accuracy"),
    ],
)
def test_a_metric_that_a_table_cannot_have_is_one_line(
    words: list[str], says: str, fishr_exp: Command, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fishr_exp("trainer=erm", "epochs=1")
    assert table.main([str(tmp_path / "runs"), *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1
