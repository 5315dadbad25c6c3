from __future__ import annotations

import csv
import io

import pytest

from fishr_exp.reports.sheets.latex import to_latex_notes
from fishr_exp.reports.sheets.sheet import FORMATS, escape_markdown, to_csv, to_text
from fishr_exp.reports.sheets.table_sheet import show_gammas, table_sheet
from fishr_exp.reports.tables.table import build_tables
from fishr_exp.runs.reading import read_runs


def sheets(factory):
    return [table_sheet(table) for table in build_tables(read_runs(factory.root).done)]


SUFFIX = {"text": "txt", "markdown": "md", "latex": "tex", "csv": "csv"}


def sweep(factory) -> None:
    """A gamma sweep with its baseline; the last gamma has one seed only."""
    factory.sweep([0.0, 1.0, 100.0])
    factory.done("fishr", 91257.18613115903, 0, 0.695, validation=0.71, train=0.712)


def odd(factory) -> None:
    """Two tables: names to escape, mixed settings, no ERM, a choice by the test domain."""
    names = {"R&D_100%": 0.6, "a|b {$}^~\\": 0.7}
    for seed in (0, 1):
        for batch in (8, None):
            accuracies = {name: a + seed / 100 for name, a in names.items()}
            labels = {"dataset": "my_data#1"}
            factory.done("fishr", 1e-5, seed, accuracies, batch_size=batch, labels=labels)
    observer = {"_target_": "observer", "monitor": "accuracy/minus90/validation"}
    factory.done("erm", None, 0, 0.5, train=None, observer=observer)
    factory.done("fishr", 10.0, 0, 0.25, observer=observer)
    factory.done("fishr", 10.0, 1, 0.3, train=None, observer=observer)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("scene", [sweep, odd])
def test_golden(factory, golden, scene, name):
    scene(factory)
    golden(f"table_{scene.__name__}.{SUFFIX[name]}", FORMATS[name](sheets(factory)))
    if name == "latex":
        golden(f"table_{scene.__name__}-notes.tex", to_latex_notes(sheets(factory)))


def test_csv_gives_numbers_that_a_program_reads(factory):
    sweep(factory)
    odd(factory)
    lines = list(csv.DictReader(io.StringIO(to_csv(sheets(factory)))))
    line = next(line for line in lines if line["gamma"] == "91257.18613115903")
    assert float(line["test_minus90_mean"]) == 69.5
    assert (line["test_minus90_se"], line["test_minus90_n"]) == ("", "1")
    assert float(line["validation_mean"]) == 71.0
    erm = next(line for line in lines if line["method"] == "ERM" and line["seeds"] == "0 1 2")
    difference = float(line["test_minus90_mean"]) - 100 * 0.1615  # about: paired, at seed 0
    assert float(line["delta_erm_mean"]) == pytest.approx(difference, abs=3)
    assert (erm["gamma"], erm["delta_erm_mean"], erm["delta_erm_n"]) == ("", "", "0")
    assert {line["dataset"] for line in lines} == {"colored_digits", "my_data#1"}


def test_repeats_are_named(factory):
    factory.done("erm", None, 0, 0.5)
    again = factory.done("erm", None, 0, 0.5)
    text = to_text(sheets(factory))
    assert f"Not counted, since their row already has the seed: {again.path}." in text


@pytest.mark.parametrize(
    ("gammas", "texts"),
    [
        ([0.0, 0.1, 1.0, 1000.0], ["0", "0.1", "1", "1000"]),
        ([1e-5, 1e6], ["1e-5", "1e6"]),
        ([91257.18613115903, 1.0], ["91257", "1"]),
        ([91257.18, 91257.19], ["91257.18", "91257.19"]),
        ([1.0, 1.0], ["1", "1"]),
        ([0.30000000000000004, 0.3], ["0.30000000000000004", "0.3"]),
        ([1e100], ["1e100"]),
    ],
)
def test_gammas_are_short_and_told_apart(gammas, texts):
    shown = show_gammas(gammas)
    assert [shown[gamma] for gamma in gammas] == texts


def test_escapes():
    assert escape_markdown("a_b|c*d&e%") == r"a\_b\|c\*d\&e%"
