"""Cells, verdicts, and both protocols' tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from fishr_exp.api import compose
from fishr_exp.configuration import protocol  # noqa: F401 - registers what options refer to
from fishr_exp.configuration.composing import without_hydra
from fishr_exp.configuration.options import conf_dir
from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.published import Published
from fishr_exp.reports.sheets.comparison_sheet import cells_sheet, comparison_sheet
from fishr_exp.reports.sheets.latex import to_latex
from fishr_exp.reports.sheets.sheet import to_csv, to_markdown, to_text
from fishr_exp.reports.statistics.estimates import Estimate
from fishr_exp.reports.tables.colored_mnist import (
    PRESCRIBED,
    build_colored_mnist_tables,
    departures,
)
from fishr_exp.reports.tables.comparison import Cell, over_restarts, over_trials
from fishr_exp.reports.tables.domainbed import build_domainbed_tables
from fishr_exp.runs.history import Evaluation, History
from fishr_exp.runs.identity import flatten
from fishr_exp.runs.keys import KEYS
from fishr_exp.runs.reading import read_runs

PACS = ("art_painting", "cartoon", "photo", "sketch")
ERM_ON_PACS = (84.7, 80.8, 97.2, 79.3)  # published, selected by training domains


def test_the_error_of_domainbed_and_that_of_colored_mnist():
    values = [80.0, 82.0, 87.0]
    assert over_trials(values) == (83.0, pytest.approx(statistics.pstdev(values) / 3**0.5), 3)
    assert over_restarts(values) == (83.0, pytest.approx(statistics.pstdev(values)), 3)
    for estimate in (over_trials, over_restarts):
        assert estimate([80.0]) == (80.0, None, 1)
        assert estimate([]) is None
        assert estimate([80.0, math.nan]) is None


@pytest.mark.parametrize(
    ("own", "published", "error", "verdict"),
    [
        (69.5, 69.5, 1.0, "within"),
        (70.5, 69.5, 1.0, "within"),  # at the edge
        (68.5, 69.5, 1.0, "within"),
        (70.6, 69.5, 1.0, "higher"),
        (68.4, 69.5, 1.0, "lower"),
        (70.54, 69.5, 1.0, "within"),  # printed as 70.5
        (97.97, 98.0, 0.0, "within"),  # printed as 98.0
        (97.94, 98.0, 0.0, "lower"),
        (66.6, 66.6, None, "within"),
        (66.7, 66.6, None, "higher"),
    ],
)
def test_verdicts(own, published, error, verdict):
    cell = Cell(Estimate(own, 0.1, 3), Published(published, error, "a table"))
    assert cell.verdict == verdict


def test_no_verdict_without_both_figures():
    assert Cell(Estimate(70.0, 0.1, 3)).verdict == "not published"
    assert Cell(None, Published(70.0, 1.0, "a table")).verdict is None


def history(target, trial, accuracy, hparams_seed=0, **changes):
    """A run on PACS that leaves out `target`; later hyperparameters are better by validation."""
    value = 0.5 + hparams_seed / 100
    run = History(
        path=Path(f"runs/{target}-{trial}-{hparams_seed}"),
        dataset="PACS",
        method="erm",
        trial_seed=trial,
        hparams_seed=hparams_seed,
        test_domains=frozenset([target]),
        domains=PACS,
        evaluations=(Evaluation(300, (accuracy,) * 4, (value,) * 4),),
    )
    return dataclasses.replace(run, **changes)


def pacs(trials=(0, 1, 2), **changes):
    """ERM as published, and 0.1, 0.2, 0.3 points more in trials 0, 1, 2 ..."""
    return [
        history(target, trial, (mean + (trial + 1) / 10) / 100, **changes)
        for target, mean in enumerate(ERM_ON_PACS)
        for trial in trials
    ]


def own(table, method="erm"):
    (row,) = [row for row in table.rows if row.method == method]
    return {column: cell.own for column, cell in row.cells.items()}


def test_a_table_names_its_protocol_and_what_departs_from_it():
    runs = pacs(protocol="paper_2022 0a1b2c3d")
    (table, _) = build_domainbed_tables(runs, "training")
    assert "PACS: protocol paper_2022 0a1b2c3d." in table.notes
    assert not any("depart" in note for note in table.notes)
    other = pacs(method="irm", protocol="paper_2022 ffffffff", departures=("batch_size",))
    tables = build_domainbed_tables([*runs, *other], "training")
    assert [[row.method for row in table.rows] for table in tables] == [["erm"], ["irm"]]
    for table, digest in zip(tables, ("0a1b2c3d", "ffffffff"), strict=True):
        assert table.title.startswith(f"PACS; protocol paper_2022 {digest}; selected by")
        assert f"PACS: protocol paper_2022 {digest}." in table.notes
        assert "PACS is in no average: its runs are of several protocols." in table.notes
    departs = "PACS: runs depart from that preset in batch_size."
    assert [departs in table.notes for table in tables] == [False, True]


def test_methods_are_in_the_published_order_and_averaging_is_beside_them():
    names = ["Fishr", "mylab", "ERM + SWAD", "erm", "CORAL", "Another", "CORAL + EMA"]
    departures = ("averaging", "model")
    runs = [
        run for name in names for run in pacs(method=name, protocol="p a", departures=departures)
    ]
    (table, _) = build_domainbed_tables(runs, "training")
    assert [row.method for row in table.rows] == [
        *("erm", "ERM + SWAD", "CORAL", "CORAL + EMA", "Fishr"),
        *("Another", "mylab"),
    ]
    assert "PACS: runs depart from that preset in model." in table.notes


def test_a_dataset_s_table_and_the_averages():
    table, averages = build_domainbed_tables(pacs(), "training")
    assert (table.name, table.columns) == ("PACS", ("A", "C", "P", "S", "Avg"))
    error = statistics.pstdev([0.1, 0.2, 0.3]) / 3**0.5
    assert own(table)["A"] == (pytest.approx(84.9), pytest.approx(error), 3)
    assert own(table)["Avg"] == (pytest.approx(85.7), None, 3)
    assert {c: cell.verdict for c, cell in table.rows[0].cells.items()} == dict.fromkeys(
        table.columns, "within"
    )
    assert (averages.name, averages.columns) == ("Averages", ("PACS", "Avg"))
    # The trials' averages are spread as each domain is here, as all domains move together.
    assert own(averages)["PACS"] == (pytest.approx(85.7), pytest.approx(error), 3)
    assert averages.rows[0].cells["PACS"].published[:2] == (85.5, 0.2)
    # The published average is over seven datasets, ours over one.
    assert averages.rows[0].cells["Avg"].verdict == "not published"


def test_selection_comes_before_the_mean_and_separately_in_each_cell():
    runs = [*pacs(), history(0, 1, 0.5, hparams_seed=3)]
    table, _ = build_domainbed_tables(runs, "training")
    assert own(table)["A"].mean == pytest.approx((84.8 + 50.0 + 85.0) / 3)
    assert own(table)["C"].mean == pytest.approx(81.0)
    traces = table.rows[0].cells["A"].traces
    assert [(t.trial, t.hparams_seed) for t in traces] == [(0, 0), (1, 3), (2, 0)]
    assert [t.candidates for t in traces] == [1, 2, 1]
    assert traces[1].run == Path("runs/0-1-3")


def test_missing_cells_are_missing_everywhere():
    runs = [run for run in pacs() if run.test_domains != {2}]
    table, averages = build_domainbed_tables(runs, "training")
    assert own(table)["P"] is None
    assert own(table)["Avg"] is None
    assert own(averages) == {"PACS": None, "Avg": None}
    text = to_text([comparison_sheet(table)])
    assert re.search(r"erm +3 .* X +79.5 ± 0.0 ≈ +X$", text, re.MULTILINE)
    assert "X: missing" in text


def test_a_trial_that_lacks_a_domain_is_in_no_average():
    runs = [r for r in pacs() if (r.test_domains, r.trial_seed) != ({2}, 0)]
    table, averages = build_domainbed_tables(runs, "training")
    assert own(table)["P"].n == 2
    assert "97.5 ± 0.0 (n=2) ≈" in to_text([comparison_sheet(table)])
    assert own(averages)["PACS"] == (pytest.approx(85.75), pytest.approx(0.05 / 2**0.5), 2)


def domainbeds_averages(runs):
    """DomainBed's collect_results: means over what a trial has, then numpy's mean and std."""
    found = {}
    for trial in sorted({run.trial_seed for run in runs}):
        group = [run.evaluations[0].train[min(run.test_domains)] for run in runs
                 if run.trial_seed == trial]  # fmt: skip
        found[trial] = np.mean(group)
    values = list(found.values())
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values / np.sqrt(len(values))):.1f}"


def test_the_average_of_domainbed_s_script_stands_below_by_name():
    runs = [r for r in pacs() if (r.test_domains, r.trial_seed) not in [({2}, 0), ({0}, 1)]]
    table, averages = build_domainbed_tables(runs, "training")
    assert own(averages)["PACS"].n == 1
    said = f"which gives: erm on PACS {domainbeds_averages(runs)} (3 trials)."
    assert averages.notes[-1].endswith(said)
    assert averages.notes[-1] not in table.notes
    assert not any(
        "DomainBed's script" in n for n in build_domainbed_tables(pacs(), "oracle")[1].notes
    )


def test_an_average_that_only_domainbed_s_script_has_is_given_too():
    runs = [run for run in pacs() if run.test_domains != {2}]
    averages = build_domainbed_tables(runs, "training")[1]
    assert own(averages)["PACS"] is None
    assert f"erm on PACS {domainbeds_averages(runs)} (3 trials)." in averages.notes[-1]


def test_an_accuracy_that_nobody_measured_is_missing():
    runs = pacs()
    unknown = (Evaluation(300, (math.nan,) * 4, (0.9,) * 4),)
    runs[0] = dataclasses.replace(runs[0], evaluations=unknown)
    table, averages = build_domainbed_tables(runs, "training")
    assert own(table)["A"] is None
    assert own(averages)["PACS"] is None


def test_leave_one_out_without_pairs_shows_nothing():
    table, _ = build_domainbed_tables(pacs(), "leave_one_out")
    assert set(own(table).values()) == {None}
    text = to_text([comparison_sheet(table)])
    assert re.search(r"^erm +0 +X +X +X +X +X$", text, re.M)
    assert {line["verdict"] for line in read_csv(table)} == {"missing"}


def read_csv(table):
    return list(csv.DictReader(io.StringIO(to_csv([comparison_sheet(table)]))))


def test_published_rows_on_request():
    table, averages = build_domainbed_tables(pacs(), "oracle", sources=())
    methods = [row.method for row in table.rows]
    assert methods[:3] == ["erm", "ERM", "IRM"]
    assert methods[-1] == "Fishr"  # of which only the average is published
    text = to_text([comparison_sheet(table), comparison_sheet(averages)])
    assert re.search(r"^CORAL \(published\) +– +86.6 ± 0.8 +81.8 ± 0.9 .* 87.1 ± 0.5$", text, re.M)
    assert re.search(r"^Fishr \(published\) +– +– +– +– +– +86.9 ± 0.2$", text, re.M)
    assert "X: missing" not in text
    assert {line["verdict"] for line in read_csv(table) if line["method"] == "CORAL"} == {""}
    assert len(build_domainbed_tables(pacs(), "oracle")[0].rows) == 1


def test_all_seven_datasets_have_a_published_average():
    from fishr_exp.reports.published import Reference

    reference = Reference("domainbed", "training")
    runs = []
    for dataset in reference.columns("Averages")[:-1]:
        domains = reference.columns(dataset)[:-1]
        for target in range(len(domains)):
            runs.append(
                history(target, 0, 0.666, dataset=dataset, domains=domains,
                        evaluations=(Evaluation(1, (0.666,) * 6, (0.5,) * 6),))
            )  # fmt: skip
    averages = build_domainbed_tables(runs, "training")[-1]
    assert averages.columns == reference.columns("Averages")
    assert averages.rows[0].cells["Avg"].verdict == "within"  # 66.6, without a published error


def test_a_dataset_with_other_domains_is_compared_with_nothing():
    found = (Evaluation(1, (0.855,) * 3, (0.5,) * 3),)
    runs = [history(t, 0, 0.855, domains=PACS[:3], evaluations=found) for t in range(3)]
    table, _ = build_domainbed_tables(runs, "training", sources=())
    assert table.columns == (*PACS[:3], "Avg")
    assert {cell.verdict for cell in table.rows[0].cells.values()} == {"not published"}
    assert len(table.rows) == 1


def test_repeats_are_not_counted_and_conflicts_refused():
    runs = pacs()
    again = dataclasses.replace(runs[0], path=Path("runs/again"))
    table, _ = build_domainbed_tables([*runs, again], "training")
    assert own(table)["A"].n == 3
    assert any("repeat a run: runs/again" in note for note in table.notes)
    other = dataclasses.replace(again, settings={"trainer.gamma": 10})
    with pytest.raises(ConfigError) as error:
        build_domainbed_tables([*runs, other], "training")
    assert "trainer.gamma (absent there, 10 here)" in str(error.value)
    with pytest.raises(ConfigError, match="3 domains here, and 4"):
        build_domainbed_tables(
            [*runs, history(1, 0, 0.5, hparams_seed=9, domains=PACS[:3])], "training"
        )


def test_what_a_verdict_may_not_rest_on_is_said():
    loose = [dataclasses.replace(run, in_protocol=False, done=False) for run in pacs()]
    table, _ = build_domainbed_tables(loose, "training")
    assert any("outside DomainBed's protocol" in note for note in table.notes)
    assert any("lack the file that marks them as done" in note for note in table.notes)
    table, _ = build_domainbed_tables(pacs(), "training")
    assert len(table.notes) == 2


def colored_mnist(
    factory, method, accuracies, seeds=range(10), gamma=None, noise=0.25, step=500, **changes
):
    name = method.partition("_")[0]
    target = f"fishr_exp.trainers.{name}.{name.title()}"
    trainer = {"_target_": target, "l2": PRESCRIBED["trainer.l2"]}
    if gamma is not None:
        trainer |= {"gamma": gamma, "convention": "colored_mnist", "anneal_steps": 190}
    optimizer = {"_target_": "torch.optim.Adam", "lr": PRESCRIBED["optimizer.lr"]}
    settings = {"batch_size": None, "trainer": trainer, "optimizer": optimizer, **changes}
    for seed in seeds:
        train, test, gray = (mean / 100 + (-1) ** seed / 200 for mean in accuracies)
        factory.done(
            method, gamma, seed, {"minus90": test, "gray": gray}, None, train,
            {"dataset": "colored_mnist"}, step,
            dataset={"seed": seed, "label_noise": noise},
            observer={"monitor": "last step"}, **settings,
        )  # fmt: skip


def test_colored_mnist_beside_table_2(factory):
    colored_mnist(factory, "erm", (86.4, 14.0, 72.0))
    colored_mnist(factory, "fishr_colored_mnist", (70.0, 69.5, 70.2), gamma=91257.18613115903)
    (table,) = build_colored_mnist_tables(read_runs(factory.root).done)
    assert table.columns == ("train", "test", "gray")
    methods = [row.method for row in table.rows]
    assert methods == ["ERM", "IRM", "V-REx", "Fishr"]
    erm, _, _, fishr = table.rows
    assert erm.cells["test"].own == (pytest.approx(14.0), pytest.approx(0.5), 10)
    assert [cell.verdict for cell in erm.cells.values()] == ["within", "within", "higher"]
    assert [cell.verdict for cell in fishr.cells.values()] == ["lower", "within", "within"]
    text = to_text([comparison_sheet(table)])
    assert re.search(r"^V-REx +0 +X +71.7 ± 1.5 +X +67.2 ± 1.5 +X +68.6 ± 2.2$", text, re.M)
    assert re.search(r"^ERM +10 +86.4 ± 0.5 ≈ +86.4 ± 0.2 +14.0 ± 0.5 ≈ +14.0 ± 0.7 ", text, re.M)
    lines = [line for line in to_csv([cells_sheet(table)]).splitlines() if ",ERM,test," in line]
    assert len(lines) == 10


def test_colored_mnist_that_departs_has_no_verdict_and_says_in_what(factory):
    accuracies = (71.0, 69.5, 70.2)  # as published
    colored_mnist(factory, "fishr_colored_mnist", accuracies, gamma=1.0, step=3, batch_size=64)
    colored_mnist(factory, "irm_colored_mnist", (71.0, 65.6, 66.1), gamma=91257.18613115903)
    (table,) = build_colored_mnist_tables(read_runs(factory.root).done)
    _, irm, _, fishr = table.rows
    assert {cell.verdict for cell in irm.cells.values()} == {"within"}
    assert {cell.verdict for cell in fishr.cells.values()} == {"departs"}
    text = to_text([comparison_sheet(table)])
    assert re.search(r"^Fishr batch_size=64 +10 +71.0 ± 0.5 +71.0 ± 0.9 +69.5 ", text, re.M)
    assert (
        "No verdict on Fishr batch_size=64, which departs from the published runs:"
        " steps 3, not 500; batch_size 64, not null; trainer.gamma 1, not 91257.18613115903.\n"
    ) in text
    assert "No verdict on IRM" not in text


# Where and how a run is made, how it is evaluated, and what is checked in another way.
NOT_PRESCRIBED = (
    "channels_last", "compile", "dataset", "epochs", "evaluate_train", "evaluation_batch_size",
    "loss._target_", "metrics", "model._target_", "observer", "seed", "steps_per_epoch",
    "total_steps", "trainer._target_", "trainer.batch_statistics", "trainer.engine",
    "trainer.memory_limit", "trainer.ramp_steps", "optimizer.decay_norms_and_biases", "scheduler",
    "averaging",
)  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"clip_norm": 1.0}, "clip_norm 1, not null"),
        ({"limit_samples": 100}, "limit_samples 100, not null"),
        ({"scheduler": {"_target_": "a.Schedule"}}, 'scheduler._target_ "a.Schedule", not null'),
    ],
)
def test_a_setting_that_nobody_published_has_no_verdict(factory, setting, said):
    colored_mnist(factory, "erm", (86.4, 14.0, 71.0), **setting)
    (table,) = build_colored_mnist_tables(read_runs(factory.root).done)
    assert {cell.verdict for cell in table.rows[0].cells.values()} == {"departs"}
    assert any(said in note for note in table.notes)


def test_another_statistic_of_fishr_was_not_published(factory):
    known = {"gamma": 91257.18613115903, "convention": "colored_mnist", "anneal_steps": 190}
    target = "fishr_exp.trainers.fishr.Fishr"
    for statistic in ("variance", "covariance"):
        trainer = {"_target_": target, "l2": PRESCRIBED["trainer.l2"], **known}
        trainer["statistic"] = statistic
        colored_mnist(
            factory, "fishr_colored_mnist", (71.0, 69.5, 70.2), gamma=known["gamma"],
            trainer=trainer,
        )  # fmt: skip
    (table,) = build_colored_mnist_tables(read_runs(factory.root).done)
    rows = {row.method: row.cells["test"] for row in table.rows}
    assert rows["Fishr trainer.statistic=variance"].verdict == "within"
    covariance = rows["Fishr trainer.statistic=covariance"]
    assert (covariance.published, covariance.verdict) == (None, "not published")


def test_an_average_of_weights_departs_from_colored_mnist(factory):
    accuracies = (86.4, 14.0, 71.0)  # as published
    sma = {"_target_": "fishr_exp.training.averaging.sma.Sma", "start": 100}
    colored_mnist(factory, "erm", accuracies, averaging=sma)
    (table,) = build_colored_mnist_tables(read_runs(factory.root).done)
    assert {cell.verdict for cell in table.rows[0].cells.values()} == {"departs"}
    assert 'averaging._target_ "fishr_exp.training.averaging.sma.Sma", not null.' in str(
        table.notes
    )


def test_the_experiments_and_the_records_of_colored_mnist_do_not_depart():
    words = ("experiment=colored_mnist_table2", "dataset.root=data")
    trainers = compose(*words).hydra.sweeper.params.trainer.split(",")
    records = conf_dir().parent / "docs" / "results" / "records" / "colored_mnist_table2"
    run = read_runs(records).done[0]
    compared, later = set(), {key for key in KEYS if KEYS[key].came_later}
    for trainer in trainers:
        config = without_hydra(compose(*words, f"trainer={trainer}"))
        plain = OmegaConf.to_container(config, resolve=True)
        compared |= set(flatten(plain))
        for group, node in plain.items():
            if isinstance(node, dict):
                later |= {f"{group}.{key}" for key in node.get("_neutral_", ())}
        steps = config.epochs * config.steps_per_epoch
        assert departures(dataclasses.replace(run, config=plain, step=steps)) == []
    others = {"steps", "averaging._target_", "scheduler._target_"}  # of a run that has them
    assert set(PRESCRIBED) <= compared | others  # none is misspelled
    counts_not = {key for key in KEYS if KEYS[key].bookkeeping}
    for key in compared | later:
        if {key, key.partition(".")[0]} & counts_not:
            continue
        named = {key, f"{key}._target_", key.partition(".")[0]}
        assert named & {*PRESCRIBED, *NOT_PRESCRIBED}, key  # every setting is, or is of no matter
    assert not any(departures(run) for run in read_runs(records).done)


def test_colored_mnist_without_a_published_table_leaves_the_column_empty(factory):
    colored_mnist(factory, "erm", (80.0, 20.0, 60.0), noise=0)
    colored_mnist(factory, "erm", (86.4, 14.0, 71.0))
    noisy, clean = build_colored_mnist_tables(read_runs(factory.root).done)
    assert (noisy.name, clean.name) == ("label noise 0.25", "label noise 0")
    assert [row.method for row in clean.rows] == ["ERM"]
    text = to_text([comparison_sheet(clean)])
    assert re.search(r"^ERM +10 +80.0 ± 0.5 ∘ +– +20.0 ± 0.5 ∘ +– +60.0 ± 0.5 ∘ +–$", text, re.M)


def test_colored_mnist_counts_runs_of_the_last_step_on_its_dataset_only(factory):
    colored_mnist(factory, "erm", (86.4, 14.0, 71.0), seeds=[0])
    factory.done("erm", None, 1, {"minus90": 0.9, "gray": 0.9}, labels={"dataset": "colored_mnist"})
    factory.done("erm", None, 2, {"minus90": 0.9}, observer={"monitor": "last step"})
    (table,) = build_colored_mnist_tables(read_runs(factory.root).done)
    assert table.rows[0].cells["test"].own == (pytest.approx(14.5), None, 1)


def test_colored_mnist_tells_gammas_apart(factory):
    for gamma in (1.0, 10.0):
        colored_mnist(factory, "fishr", (71.0, 69.5, 70.2), seeds=[0], gamma=gamma)
    (table,) = build_colored_mnist_tables(read_runs(factory.root).done)
    labels = [row.method for row in table.rows if row.repeats]
    assert labels == ["Fishr gamma=1", "Fishr gamma=10"]
    assert "Fishr" not in [row.method for row in table.rows]


def test_colored_mnist_takes_gamma_zero_for_erm(factory):
    colored_mnist(factory, "fishr_colored_mnist", (86.4, 14.0, 71.0), gamma=0.0)
    (table,) = build_colored_mnist_tables(read_runs(factory.root).done)
    assert [(row.method, row.repeats) for row in table.rows][:2] == [("ERM", 10), ("IRM", 0)]
    assert {cell.verdict for cell in table.rows[0].cells.values()} == {"within"}
    colored_mnist(factory, "erm", (86.4, 14.0, 71.0), seeds=[0])
    (table,) = build_colored_mnist_tables(read_runs(factory.root).done)
    assert [row.method for row in table.rows][:2] == ["ERM", "ERM (Fishr)"]


def sheets(factory):
    colored_mnist(factory, "erm", (86.4, 14.0, 72.0))
    tables = build_colored_mnist_tables(read_runs(factory.root).done)
    tables += build_domainbed_tables(pacs()[:-1], "training", sources=())
    cells = [sheet for sheet in map(cells_sheet, tables) if sheet.rows]
    return [comparison_sheet(table) for table in tables] + cells


def test_csv_has_a_line_for_each_cell(factory):
    text = to_csv(sheets(factory)[:3])
    lines = {(x["table"], x["method"], x["column"]): x for x in csv.DictReader(io.StringIO(text))}
    cell = lines["PACS", "erm", "A"]
    assert (cell["mean"], cell["n"], cell["verdict"]) == ("84.9000", "3", "within")
    assert (cell["published"], cell["published_error"]) == ("84.7", "0.4")
    assert cell["source"].startswith("DomainBed, sweep of 2020-10-06")
    assert lines["label noise 0.25", "IRM", "test"]["verdict"] == "missing"


def test_markdown_keeps_its_columns(factory):
    for block in re.findall(r"(?:^\|.*\n)+", to_markdown(sheets(factory)), re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_latex_is_in_ascii_and_keeps_its_columns(factory):
    latex = to_latex(sheets(factory))
    assert set(re.findall(r"[^\x00-\x7f]", latex)) <= {"é"}  # which pdflatex knows
    assert "[U+" not in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 5
    for columns, body in re.findall(r"begin{tabular}{(\w+)}(.*?)\\end{tabular}", latex, re.S):
        for line in body.splitlines():
            if line.endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    assert latex.count("{") - latex.count(r"\{") == latex.count("}") - latex.count(r"\}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles(factory, tmp_path):
    (tmp_path / "table.tex").write_text(to_latex(sheets(factory)))
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{table}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert not re.findall(r"^(?:Overfull \\hbox|Missing character).*", done.stdout, re.M)
