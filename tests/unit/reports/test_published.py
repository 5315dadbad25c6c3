"""The published tables agree with themselves and with each other."""

from __future__ import annotations

import pytest

from fishr_exp.reports.published import (
    AVERAGES,
    AVG,
    DEFAULT,
    DOMAIN_NET,
    Reference,
    method_key,
    sources,
)

TABLES = [table for source in sources().values() for table in source.tables]
ROUNDED = 0.05 + 1e-9  # at most, of a figure with one decimal
IN_DOMAINBED = [table for table in TABLES if table.protocol == "domainbed"]
DOMAINBED = [table for table in IN_DOMAINBED if table.origin in DEFAULT]
OTHERS = [table for table in IN_DOMAINBED if table.origin not in DEFAULT]
FIVE = ("PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet")


def name(table):
    return (
        f"{table.origin}-{table.selection}-{table.name}-{table.backbone}-{next(iter(table.rows))}"
    )


def test_everything_is_there():
    assert len(DOMAINBED) == 3 * 8 + 2
    (colored_mnist,) = [t for t in TABLES if t.protocol == "colored_mnist"]
    assert colored_mnist.columns == ("train", "test", "gray")
    assert list(colored_mnist.rows) == ["ERM", "IRM", "V-REx", "Fishr"]
    assert all(len(t.rows) == 14 for t in DOMAINBED if t.source.startswith("DomainBed"))


@pytest.mark.parametrize("table", TABLES, ids=name)
def test_figures_are_percentages_with_a_source(table):
    assert table.source
    assert table.error
    for figures in table.rows.values():
        for column, figure in zip(table.columns, figures, strict=True):
            if figure is None:  # of another selection
                assert (table.origin, column) in [("eoa", AVG), ("qt_dog", AVG)]
                continue
            assert 0 < figure.mean < 100
            assert figure.source == table.source
            assert figure.conditions == table.conditions
            assert column != AVG or figure.error is None
            assert figure.error is not None or column == AVG or table in OTHERS
            assert figure.error is None or 0 <= figure.error < 25


@pytest.mark.parametrize("table", [t for t in IN_DOMAINBED if t.columns[-1] == AVG], ids=name)
def test_averages_are_the_mean_of_the_row(table):
    for method, figures in table.rows.items():
        *parts, average = (figure and figure.mean for figure in figures)
        # The parts are rounded, too.
        assert average is None or abs(sum(parts) / len(parts) - average) <= 2 * ROUNDED, method


def test_every_source_of_domainbeds_protocol_says_what_its_figures_are_of():
    named = [source for source in sources().values() if source.protocol == "domainbed"]
    assert [source.name for source in named] == [
        *("domainbed", "fishr", "diwa", "eoa", "gmoe"),
        *("miro", "qt_dog", "rdm", "ridg", "sagm", "swad"),
    ]
    for source in named:
        assert source.about
        assert not source.about.endswith(".")
        assert all(note.endswith(".") for note in source.notes)
        for table in source.tables:
            assert table.selection in {"training", "oracle", "leave_one_out", "unknown"}
            assert table.backbone
            assert table.start
            assert table.domain_net_steps in {None, 5001, 15000, 15001}
    assert {t.selection for t in OTHERS if t.origin in ("ridg", "gmoe")} == {"unknown"}


def test_rows_that_several_papers_print_are_the_same_in_each():
    """MIRO's table repeats SWAD's figures; EoA's and QT-DoG's repeat Fishr's."""
    miro, swad = (Reference("domainbed", "training", [name]) for name in ("miro", "swad"))
    for method in ("ERM", "ERM + SWAD"):
        for column in (*FIVE, AVG):
            figures = [r.figure(AVERAGES, method, column).mean for r in (miro, swad)]
            assert figures[0] == figures[1]
    fishr = Reference("domainbed", "training")
    for origin in ("eoa", "qt_dog"):
        repeated = Reference("domainbed", "training", [origin])
        for column in FIVE:
            there, here = (r.figure(AVERAGES, "Fishr", column) for r in (fishr, repeated))
            assert there[:2] == here[:2]


@pytest.mark.parametrize("origin", ["eoa", "qt_dog"])
def test_fishrs_oracle_average_is_in_no_row_of_training_selection(origin):
    assert Reference("domainbed", "training", [origin]).figure(AVERAGES, "Fishr", AVG) is None
    by_selection = {
        selection: [
            Reference("domainbed", selection).figure(AVERAGES, "Fishr", c).mean for c in FIVE
        ]
        for selection in ("training", "oracle")
    }
    means = {key: sum(of) / len(of) for key, of in by_selection.items()}
    # What the papers print, 65.7, is the oracle's.
    assert means == {
        "training": pytest.approx(64.0, abs=0.05),
        "oracle": pytest.approx(65.7, abs=0.05),
    }
    warning = next(note for note in sources()[origin].notes if "Fishr" in note)
    assert all(part in warning for part in ("64.0", "65.7", "oracle"))


def test_the_tables_of_rdm_agree_with_its_averages():
    for selection in ("training", "oracle"):
        tables = {t.name: t for t in OTHERS if (t.origin, t.selection) == ("rdm", selection)}
        averages = tables.pop(AVERAGES)
        assert tuple(tables) == averages.columns
        for column, figure in zip(averages.columns, averages.rows["RDM"], strict=True):
            assert tables[column].rows["RDM"][-1].mean == figure.mean


def test_figures_on_domain_net_are_found_for_their_number_of_steps_only():
    def found(column, **conditions):
        of = Reference("domainbed", "training", ["miro"], **conditions)
        figure = of.figure(AVERAGES, "MIRO", column)
        return figure and figure.mean

    assert found(DOMAIN_NET) == 44.3
    assert found(DOMAIN_NET, steps=15000) == found(DOMAIN_NET, steps=15001) == 44.3
    assert found(DOMAIN_NET, steps=5001) is None
    assert found(AVG, steps=5001) is None  # DomainNet is in it
    assert found("PACS", steps=5001) == 85.4
    assert found("PACS", backbone="resnet50") == 85.4
    assert found("PACS", backbone="regnet_y_16gf") == 97.4
    assert found("PACS", backbone="resnet18") is None
    fish = Reference("domainbed", "training", ["miro"], steps=5001)
    assert fish.figure(AVERAGES, "Fish", "PACS").mean == 85.5
    assert fish.figure(AVERAGES, "Fish", DOMAIN_NET) is None  # not named
    assert Reference("domainbed", "training", steps=15001).figure(DOMAIN_NET, "ERM", "clip") is None
    assert (
        Reference("domainbed", "training", steps=5001).figure(DOMAIN_NET, "ERM", "clip").mean
        == 58.1
    )


@pytest.mark.parametrize("selection", ["training", "oracle", "leave_one_out"])
def test_the_averages_table_repeats_each_dataset_s_average(selection):
    tables = {t.name: t for t in DOMAINBED if t.selection == selection and len(t.rows) == 14}
    averages = tables.pop(AVERAGES)
    assert (*tables, AVG) == averages.columns
    for method, figures in averages.rows.items():
        for dataset, figure in zip(tables, figures, strict=False):
            assert tables[dataset].rows[method][-1].mean == figure.mean


def test_both_sources_give_the_same_row_of_erm():
    fishr = [t for t in DOMAINBED if t.origin == "fishr"]
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
