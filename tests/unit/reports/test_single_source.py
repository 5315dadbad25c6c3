"""Tables of runs that were trained on one domain, worked out by hand."""

from __future__ import annotations

import csv
import io
import re

import pytest

from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.sheets.latex import to_latex
from fishr_exp.reports.sheets.sheet import to_csv, to_markdown, to_text
from fishr_exp.reports.sheets.single_source_sheet import single_source_sheets
from fishr_exp.reports.tables.single_source import build_single_source_tables
from fishr_exp.runs.reading import read_runs

DOMAINS = ("9", "10", "art")  # in the order of numbers


def run(factory, method, seed, source, accuracies, gamma=None, **changes):
    """A run that was trained on `source`; accuracies in the others, in percent."""
    others = [domain for domain in DOMAINS if domain != source]
    test = {d: value / 100 for d, value in zip(others, accuracies, strict=True)}
    factory.done(method, gamma, seed, test, training=(source,), **changes)


def both(factory, method="erm", gamma=None, lift=0.0, seeds=(0, 1)):
    """Seed 1 is 2 points above seed 0; the means over the others are 30, 50 and 70, plus lift."""
    for seed in seeds:
        more = 2 * seed + lift
        run(factory, method, seed, "9", (20 + more, 40 + more), gamma)
        run(factory, method, seed, "10", (45 + more, 55 + more), gamma)
        run(factory, method, seed, "art", (80 + more, 60 + more), gamma)


def table_of(factory):
    (table,) = build_single_source_tables(read_runs(factory.root).done)
    return table


def text(factory):
    return to_text(single_source_sheets(table_of(factory)))


def test_a_cell_is_the_mean_over_the_other_domains(factory):
    both(factory)
    table = table_of(factory)
    assert table.domains == table.sources == DOMAINS
    assert table.title == "colored_digits; trained on one domain, tested on the others; model mlp"
    (row,) = table.rows
    assert {d: of.accuracy[:2] for d, of in row.sources.items()} == {
        "9": (pytest.approx(31), pytest.approx(1)),
        "10": (pytest.approx(51), pytest.approx(1)),
        "art": (pytest.approx(71), pytest.approx(1)),
    }
    assert row.mean == (pytest.approx(51), pytest.approx(1), 2)
    assert row.difference is None
    assert row.sources["art"].test["9"].mean == pytest.approx(81)
    out = text(factory)
    assert re.search(r"^ERM +2 +31.0 ± 1.0 +51.0 ± 1.0 +71.0 ± 1.0 +51.0 ± 1.0$", out, re.M)
    assert re.search(r"^method +trained on +seeds +9 +10 +art$", out, re.M)
    assert re.search(r"^ERM +10 +2 +46.0 ± 1.0 +– +56.0 ± 1.0$", out, re.M)


def test_the_difference_to_erm_is_paired_by_seed(factory):
    both(factory)
    both(factory, "irm", 100.0, lift=3.0, seeds=(1, 2))
    table = table_of(factory)
    erm, irm = table.rows
    assert erm.difference is None
    assert irm.difference == (pytest.approx(3), None, 1)  # seed 1 alone is in both
    out = text(factory)
    assert re.search(r"^IRM +100 +2 .* \+3.0 \(n=1\)$", out, re.M)
    assert "Δ ERM: difference of the mean to ERM, in points, paired by seed." in out


def test_a_mean_is_over_the_seeds_that_all_source_domains_have(factory):
    both(factory)
    run(factory, "erm", 2, "9", (90, 90))
    (row,) = table_of(factory).rows
    assert row.seeds == (0, 1, 2)
    assert row.sources["9"].accuracy.n == 3
    assert row.mean == (pytest.approx(51), pytest.approx(1), 2)
    assert re.search(r"^ERM +3 +50.7 ± 19.7 +51.0 ± 1.0 \(n=2\)", text(factory), re.M)


def test_a_source_domain_without_a_run_is_missing(factory):
    both(factory)
    run(factory, "irm", 0, "9", (30, 40), 100.0)
    out = text(factory)
    assert re.search(r"^IRM +100 +1 +35.0 +X +X +X$", out, re.M)
    assert "X: missing, since a run is missing." in out
    assert not re.search(r"^IRM +100 +10 ", out, re.M)


def test_settings_and_gammas_are_rows(factory):
    both(factory)
    both(factory, "irm", 1.0)
    both(factory, "irm", 10.0)
    for source in DOMAINS:
        run(factory, "erm", 0, source, (10, 20), batch_size=8)
    rows = [(row.label, row.gamma, dict(row.settings)) for row in table_of(factory).rows]
    assert rows == [
        ("ERM", None, {"batch_size": "8"}),
        ("ERM", None, {"batch_size": "64"}),
        ("IRM", 1.0, {"batch_size": "64"}),
        ("IRM", 10.0, {"batch_size": "64"}),
    ]
    assert [row.difference is not None for row in table_of(factory).rows] == [False] * 2 + [
        True
    ] * 2


def test_other_runs_are_not_counted(factory):
    both(factory)
    factory.done("erm", None, 5, {"art": 0.9}, training=("9", "10"))  # of several domains
    factory.done("erm", None, 6, {"art": 0.9}, training=("9",))  # without domain 10
    again = factory.done("erm", None, 0, {"10": 0.9, "art": 0.9}, training=("9",))
    table = table_of(factory)
    assert table.rows[0].seeds == (0, 1)
    assert [run.seed for run in table.partial] == [6]
    out = text(factory)
    assert f"Not counted, since their row already has the seed: {again.path}." in out
    assert "Not counted, since they are not tested on all other domains: " in out


def test_a_checkpoint_selected_by_a_test_domain_is_marked(factory):
    for source in DOMAINS:
        monitor = "accuracy/art/validation"
        run(factory, "erm", 0, source, (10, 20), observer={"monitor": monitor})
    assert re.search(r"^ERM\* +1 ", text(factory), re.M)
    assert "*: checkpoint selected by a test domain" in text(factory)


def test_no_run_of_one_domain_is_said_with_the_command(factory):
    factory.done("erm", None, 0, 0.5)
    with pytest.raises(ConfigError, match="experiment=single_source_digits"):
        build_single_source_tables(read_runs(factory.root).done)


def test_all_formats_hold_the_numbers(factory):
    both(factory)
    both(factory, "irm", 100.0, lift=3.0)
    sheets = single_source_sheets(table_of(factory))
    lines = {
        (line["method"], line["trained_on"], line["tested_on"]): line
        for line in csv.DictReader(io.StringIO(to_csv(sheets)))
    }
    assert lines["ERM", "9", "others"]["mean"] == "31.0000"
    assert lines["ERM", "art", "9"]["mean"] == "81.0000"
    assert lines["IRM", "each", "others"]["mean"] == "54.0000"
    assert lines["IRM", "each", "others, difference to ERM"]["mean"] == "3.0000"
    assert len(lines) == 2 * (3 + 6 + 1) + 1
    assert "| IRM" in to_markdown(sheets)
    latex = to_latex(sheets)
    assert r"\label{tab:colored-digits-single-source}" in latex
    assert r"\label{tab:colored-digits-single-source-pairs}" in latex
