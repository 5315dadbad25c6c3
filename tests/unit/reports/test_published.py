"""The published tables agree with themselves and with each other."""

from __future__ import annotations

import pytest

from fishr_exp.reports.published import AVERAGES, AVG, Reference, method_key, published_tables

ROUNDED = 0.05 + 1e-9  # at most, of a figure with one decimal
DOMAINBED = [table for table in published_tables() if table.protocol == "domainbed"]


def name(table):
    return f"{table.source[:9]}-{table.selection}-{table.name}"


def test_everything_is_there():
    assert len(DOMAINBED) == 3 * 8 + 2
    (colored_mnist,) = [t for t in published_tables() if t.protocol == "colored_mnist"]
    assert colored_mnist.columns == ("train", "test", "gray")
    assert list(colored_mnist.rows) == ["ERM", "IRM", "V-REx", "Fishr"]
    assert all(len(t.rows) == 14 for t in DOMAINBED if t.source.startswith("DomainBed"))


@pytest.mark.parametrize("table", published_tables(), ids=name)
def test_figures_are_percentages_with_a_source(table):
    assert table.source
    assert table.error
    for figures in table.rows.values():
        assert len(figures) == len(table.columns)
        for column, figure in zip(table.columns, figures, strict=True):
            assert 0 < figure.mean < 100
            assert figure.source == table.source
            assert (figure.error is None) == (column == AVG)
            assert figure.error is None or 0 <= figure.error < 25


@pytest.mark.parametrize("table", DOMAINBED, ids=name)
def test_averages_are_the_mean_of_the_row(table):
    for method, figures in table.rows.items():
        *parts, average = (figure.mean for figure in figures)
        # The parts are rounded, too.
        assert abs(sum(parts) / len(parts) - average) <= 2 * ROUNDED, method


@pytest.mark.parametrize("selection", ["training", "oracle", "leave_one_out"])
def test_the_averages_table_repeats_each_dataset_s_average(selection):
    tables = {t.name: t for t in DOMAINBED if t.selection == selection and len(t.rows) == 14}
    averages = tables.pop(AVERAGES)
    assert (*tables, AVG) == averages.columns
    for method, figures in averages.rows.items():
        for dataset, figure in zip(tables, figures, strict=False):
            assert tables[dataset].rows[method][-1].mean == figure.mean


def test_both_sources_give_the_same_row_of_erm():
    fishr = [t for t in DOMAINBED if "Fishr" in t.rows]
    assert [t.selection for t in fishr] == ["training", "oracle"]
    for table in fishr:
        other = next(t for t in DOMAINBED if t.name == AVERAGES and t.selection == table.selection)
        assert [f[:2] for f in table.rows["ERM"]] == [f[:2] for f in other.rows["ERM"]]


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        ("ERM", "ERM"),
        ("Fishr (fishr_domainbed)", "Fishr"),
        ("V-REx", "VREx"),
        ("VREx (DomainBed)", "V-REx"),
        ("GroupDro", "GroupDRO"),
    ],
)
def test_a_name_is_found_in_every_spelling(ours, published):
    assert method_key(ours) == method_key(published)


def test_figures_are_found_by_name():
    oracle = Reference("domainbed", "oracle")
    assert oracle.figure("PACS", "ERM", "A")[:2] == (86.5, 1.0)
    assert oracle.figure("PACS", "Fishr", "A") is None  # by domain, it is not published
    assert oracle.figure("PACS", "Fishr", AVG)[:2] == (86.9, 0.2)
    assert oracle.figure(AVERAGES, "Fishr (DomainBed)", AVG)[:2] == (70.8, None)
    assert oracle.figure(AVERAGES, "LogitDecay", AVG) is None
    assert Reference("domainbed", "leave_one_out").figure("PACS", "Fishr", AVG) is None
    table2 = Reference("colored_mnist", None)
    assert table2.figure("label noise 0.25", "V-REx", "gray")[:2] == (68.6, 2.2)
    assert table2.figure("label noise 0", "erm", "test") is None
