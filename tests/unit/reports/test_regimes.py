"""No table of DomainBed's protocol mixes protocols or numbers of steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.published import Reference
from fishr_exp.reports.sheets.comparison_sheet import comparison_sheet
from fishr_exp.reports.sheets.sheet import to_text
from fishr_exp.reports.tables.domainbed import build_domainbed_tables
from fishr_exp.reports.tables.regimes import Regime, by_regime, of_averages
from fishr_exp.runs.history import DOMAINBED, Evaluation, History

SHORT, LONG = "paper_2022 aaaaaaaa", "domainbed_15000 bbbbbbbb"


def runs(dataset="DomainNet", protocol=SHORT, steps=5001, method="ERM", accuracy=0.5, **changes):
    """One trial that leaves out each domain of a dataset in turn."""
    domains = Reference("domainbed", "training").columns(dataset)[:-1]
    evaluations = (Evaluation(steps or 1, (accuracy,) * 6, (0.5,) * 6),)
    return [
        History(
            path=Path(f"{dataset}-{protocol}-{steps}-{method}-{target}"),
            dataset=dataset, method=method, trial_seed=0, hparams_seed=0,
            test_domains=frozenset([target]), domains=domains, evaluations=evaluations,
            protocol=protocol, in_protocol=bool(protocol), steps=steps,
            **{"source": "erm", "settings": {"total_steps": steps, "model._target_": "domainbed"},
               **changes},
        )
        for target in range(len(domains))
    ]  # fmt: skip


def titles(tables):
    return [table.title.partition("; selected")[0] for table in tables]


def average(table, column="Avg"):
    return [round(row.cells[column].own.mean, 3) for row in table.rows if not row.published_only]


def test_5000_and_15000_steps_on_domain_net_are_two_tables():
    both = [*runs(accuracy=0.40), *runs(protocol=LONG, steps=15001, accuracy=0.44)]
    tables = build_domainbed_tables(both, "training")
    assert titles(tables) == [
        "DomainNet; protocol paper_2022 aaaaaaaa, 5,001 steps",
        "DomainNet; protocol domainbed_15000 bbbbbbbb, 15,001 steps",
        "Averages; protocol domainbed_15000",
        "Averages; protocol paper_2022",
    ]
    assert [average(table) for table in tables] == [[40.0], [44.0], [44.0], [40.0]]
    # The published figures are of 5,000 steps.
    verdicts = [{cell.verdict for cell in table.rows[0].cells.values()} for table in tables]
    assert "not published" not in verdicts[0]
    assert verdicts[1] == {"not published"}
    assert (tables[2].rows[0].cells["DomainNet"].verdict, average(tables[2])) == (
        "not published",
        [44.0],
    )
    assert tables[3].rows[0].cells["DomainNet"].verdict == "lower"


def test_one_protocol_of_other_steps_is_separated_too():
    both = [*runs(), *runs(steps=50, method="IRM")]
    tables = build_domainbed_tables(both, "training")
    assert titles(tables)[:2] == [
        "DomainNet; protocol paper_2022 aaaaaaaa, 50 steps",
        "DomainNet; protocol paper_2022 aaaaaaaa, 5,001 steps",
    ]
    assert [[row.method for row in table.rows] for table in tables[:2]] == [["IRM"], ["ERM"]]
    assert titles(tables)[2:] == [
        "Averages; protocol paper_2022, 50 steps",
        "Averages; protocol paper_2022, 5,001 steps",
    ]


def test_one_protocol_is_one_table_without_a_word_of_it_in_the_title():
    tables = build_domainbed_tables([*runs(), *runs("PACS")], "training")
    assert titles(tables) == ["PACS", "DomainNet", "Averages"]
    assert tables[2].columns == ("PACS", "DomainNet", "Avg")
    assert "PACS: protocol paper_2022 aaaaaaaa." in tables[2].notes


def test_the_averages_of_15000_steps_take_other_datasets_from_paper_2022():
    """On all datasets but DomainNet, the two protocols are one."""
    found = [*runs(accuracy=0.4), *runs(protocol=LONG, steps=15001, accuracy=0.44)]
    tables = build_domainbed_tables([*found, *runs("PACS", accuracy=0.8)], "training")
    long, short = tables[-2:]
    assert titles([long, short]) == [
        "Averages; protocol domainbed_15000",
        "Averages; protocol paper_2022",
    ]
    assert long.columns == short.columns == ("PACS", "DomainNet", "Avg")
    assert average(long) == [62.0]
    assert average(short) == [60.0]
    assert "PACS: protocol paper_2022 aaaaaaaa." in long.notes
    assert "DomainNet: protocol domainbed_15000 bbbbbbbb." in long.notes
    # It is not so the other way round, and not for other protocols.
    (other, _) = build_domainbed_tables(
        [*runs("PACS", protocol=LONG), *runs("VLCS", protocol=SHORT)], "training"
    )[-2:]
    assert other.columns == ("VLCS", "PACS", "Avg")
    main = [*runs("PACS", protocol="domainbed_main cccccccc"), *runs("VLCS")]
    assert [t.columns for t in build_domainbed_tables(main, "training")[-2:]] == [
        ("PACS", "Avg"),
        ("VLCS", "Avg"),
    ]


@pytest.mark.parametrize(
    ("steps", "joined"), [(5001, True), (5000, True), (None, True), (15001, False)]
)
def test_imported_runs_join_the_protocol_of_as_many_steps(steps, joined):
    imported = runs(protocol="", steps=steps, method="IRM", source=DOMAINBED, settings={})
    tables = build_domainbed_tables([*runs(), *imported], "training")
    methods = [[row.method for row in table.rows] for table in tables]
    assert methods == (2 * [["ERM", "IRM"]] if joined else 2 * [["ERM"], ["IRM"]])
    if not joined:
        assert titles(tables)[1] == "DomainNet; no protocol of ours, 15,001 steps"


def test_imported_datasets_stand_in_the_averages_of_the_only_protocol():
    imported = runs("PACS", protocol="", source=DOMAINBED, settings={})
    tables = build_domainbed_tables([*runs(), *imported], "training")
    assert titles(tables) == ["PACS", "DomainNet", "Averages"]
    longer = runs("PACS", protocol="", steps=15001, source=DOMAINBED, settings={})
    tables = build_domainbed_tables([*runs(), *longer], "training")
    assert titles(tables)[2:] == ["Averages; protocol paper_2022", "Averages; no protocol of ours"]


def test_imported_runs_between_two_protocols_are_in_neither():
    found = [*runs(), *runs(protocol="domainbed_main cccccccc")]
    imported = runs(protocol="", method="IRM", source=DOMAINBED)
    names = [regime.name for regime in by_regime([*found, *imported])]
    assert names == ["domainbed_main", "paper_2022", ""]


def test_a_dataset_of_two_digests_is_in_no_average():
    one, other, third = (Regime(f"paper_2022 {digest}", 5001) for digest in ("a", "b", "c"))
    assert of_averages({"PACS": [one, other], "VLCS": [third]}) == {
        Regime("paper_2022", 5001): {"VLCS": third}
    }


def test_conflicts_are_refused_within_a_protocol_only():
    again = runs(settings={"total_steps": 5001, "batch_size": 3})
    with pytest.raises(ConfigError, match=r"and so is .* with another"):
        build_domainbed_tables([*runs(), *again], "training")
    assert build_domainbed_tables([*runs(), *runs(protocol=LONG, steps=15001)], "training")


def text(tables):
    return to_text([comparison_sheet(table) for table in tables])


@pytest.mark.parametrize(
    ("protocol", "steps", "shown"), [(SHORT, 5001, False), (LONG, 15001, True)]
)
def test_published_figures_on_domain_net_are_of_as_many_steps(protocol, steps, shown):
    found = [r for name in ("PACS", "VLCS", "OfficeHome", "TerraIncognita") for r in runs(name)]
    found += runs(protocol=protocol, steps=steps)
    tables = build_domainbed_tables(found, "training", ["miro"])
    averages = next(t for t in tables if t.name == "Averages" and "DomainNet" in t.columns)
    printed = text([averages])
    assert (
        bool(re.search(r"^MIRO \(miro\) .* 85.4 ± 0.4 .* 44.3 ± 0.2 +65.9$", printed, re.M))
        == shown
    )
    assert bool(re.search(r"^MIRO \(miro\) .* 85.4 ± 0.4 .* – +–$", printed, re.M)) != shown
    assert re.search(r"^Fish \(miro\) .* 85.5 ± 0.3 .* – +–$", printed, re.M)  # not named
    assert f"Not shown beside {steps:,} steps on DomainNet" in printed
    # Ours are compared with what is shown.
    (row,) = [row for row in averages.rows if not row.published_only]
    assert (row.cells["Avg"].published is not None) == shown


def test_a_verdict_may_rest_on_a_named_source():
    ours = runs("PACS", method="ERM + SWAD", accuracy=0.881)
    for sources, verdict in ((None, "not published"), ((), "not published"), (["swad"], "within")):
        table = build_domainbed_tables(ours, "training", sources)[-1]
        assert table.rows[0].cells["PACS"].verdict == verdict


@pytest.mark.parametrize("origin", ["eoa", "qt_dog", "fishr"])
def test_the_warning_of_fishrs_average_stands_below_its_row(origin):
    tables = build_domainbed_tables(runs("PACS"), "training", [origin])
    for table in tables[:2]:
        assert any(row.method == "Fishr" for row in table.rows)
        (warning,) = [note for note in table.notes if "65.7" in note]
        assert "oracle" in warning
    bare = build_domainbed_tables(runs("PACS"), "training", ())
    assert all(any("65.7" in note for note in table.notes) for table in bare)
    assert not any(
        "65.7" in n for t in build_domainbed_tables(runs("PACS"), "training") for n in t.notes
    )


@pytest.mark.parametrize(
    ("settings", "row"),
    [
        ({"model._target_": "m.domainbed"}, "ERM (miro)"),
        ({"model._target_": "m.backbone", "model.name": "resnet50"}, "ERM (miro)"),
        ({"model._target_": "m.backbone", "model.name": "resnet18"}, None),
        ({"model._target_": "mylab.mine"}, None),
    ],
)
def test_a_source_s_rows_are_beside_runs_of_its_backbone_only(settings, row):
    tables = build_domainbed_tables(runs("PACS", settings=settings), "training", ["miro"])
    beside = [r.origin for t in tables if "published only" not in t.title for r in t.rows]
    assert ("miro" in beside) == (row is not None)
    apart = [t.title for t in tables if "published only" in t.title]
    assert len(apart) == (1 if row else 2)  # the RegNetY, and the ResNet-50


def test_an_average_of_runs_is_not_compared_with_the_method_of_its_runs():
    names = ["ERM", "ERM (uniform average of 20)", "ERM (restricted average of 3) + SWAD"]
    found = [run for name in names for run in runs("PACS", method=name)]
    found += runs("PACS", method="IRM")
    for table in build_domainbed_tables(found, "training", ["diwa"]):
        own = [row for row in table.rows if not row.published_only]
        assert [row.method for row in own] == [names[0], names[2], names[1], "IRM"]
        verdicts = [{cell.verdict for cell in row.cells.values()} - {None} for row in own]
        assert "lower" in verdicts[0]  # than the published ERM
        assert verdicts[1] == verdicts[2] == {"not published"}
