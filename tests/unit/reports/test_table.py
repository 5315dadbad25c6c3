from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishr_exp.reports.tables.table import build_tables
from fishr_exp.runs.methods import method_of
from fishr_exp.runs.reading import Run, read_runs


def tables_of(factory):
    return build_tables(read_runs(factory.root).done)


def table_of(factory):
    (table,) = tables_of(factory)
    return table


def test_means_errors_and_paired_differences(factory):
    for seed, (erm, fishr) in enumerate([(0.10, 0.60), (0.20, 0.72), (0.30, 0.78)]):
        factory.done("fishr", 10.0, seed, fishr, validation=0.7 + seed / 100)
        factory.done("erm", None, seed, erm)
    erm, fishr = table_of(factory).rows
    assert (erm.method, erm.gamma, erm.difference) == ("ERM", None, None)
    assert erm.test["minus90"] == pytest.approx((20.0, 10 / math.sqrt(3), 3))
    assert fishr.seeds == (0, 1, 2)
    assert fishr.validation == pytest.approx((71.0, 1 / math.sqrt(3), 3))
    # 50, 52 and 48 points: much less spread than either has alone
    assert fishr.difference == pytest.approx((50.0, 2 / math.sqrt(3), 3))


def test_order_erm_first_then_method_and_gamma_as_numbers(factory):
    for method, gamma in [("vrex", 2.0), ("fishr", 100.0), ("fishr", 9.0), ("erm", None)]:
        factory.done(method, gamma, 0, 0.1)
    factory.done("fishr", 0.0, 0, 0.1)
    rows = table_of(factory).rows
    assert [(row.method, row.gamma) for row in rows] == [
        ("ERM", None),
        ("Fishr", 0.0),
        ("Fishr", 9.0),
        ("Fishr", 100.0),
        ("V-REx", 2.0),
    ]


def test_what_does_not_matter_is_averaged_over(factory):
    factory.done("fishr", 1.0, 0, 0.1, device="cpu", sweep_name="a", num_workers=2)
    factory.done("fishr", 1.0, 1, 0.3, device="cuda", tracker={"uri": "x"}, resume=False)
    table = table_of(factory)
    assert len(table.rows) == 1
    assert table.setting_names == ()


def test_one_setting_in_two_spellings_is_one_row(factory):
    for seed, (root, gamma) in enumerate([("../data/mnist", 1), ("/data/mnist", 1.0)]):
        trainer = {"_target_": "fishr", "gamma": gamma}
        data = {"_target_": "mnist", "root": root, "seed": seed}
        factory.done("fishr", 1.0, seed, 0.1, trainer=trainer, dataset=data)
    table = table_of(factory)
    assert [row.seeds for row in table.rows] == [(0, 1)]
    assert table.setting_names == ()


def test_images_without_a_name_of_their_own_are_told_apart_by_their_folder(factory):
    for name in ("image_folder", "office"):
        for root in ("a", "b"):
            factory.done("erm", None, 0, 0.1, dataset={"name": name, "root": root})
    table = table_of(factory)
    assert table.setting_names == ("dataset.name", "dataset.root")
    shown = [tuple(row.settings.values()) for row in table.rows]
    assert shown == [("image_folder", "a"), ("image_folder", "b"), ("office", "–")]
    assert len(table.repeats) == 1


def test_unlike_runs_are_never_averaged_and_what_varies_is_a_column(factory):
    for batch in (128, 64):
        for seed in (0, 1):
            factory.done("erm", None, seed, batch / 1000, batch_size=batch)
            factory.done("fishr", 1.0, seed, 0.5, batch_size=batch)
    factory.done("fishr", 1.0, 0, 0.4, optimizer={"_target_": "torch.optim.SGD", "momentum": 0.9})
    table = table_of(factory)
    assert table.setting_names == ("optimizer", "batch_size")  # lr and momentum follow the class
    rows = [(row.method, *row.settings.values(), len(row.seeds)) for row in table.rows]
    assert rows == [
        ("ERM", "Adam", "64", 2),
        ("ERM", "Adam", "128", 2),
        ("Fishr", "Adam", "64", 2),
        ("Fishr", "Adam", "128", 2),
        ("Fishr", "SGD", "64", 1),
    ]
    differences = [row.difference.mean if row.difference else None for row in table.rows]
    # each with the ERM of its own batch size; there is none with SGD
    assert differences == [None, None, pytest.approx(43.6), pytest.approx(37.2), None]


def test_an_averaging_scheme_is_called_as_in_names_of_methods(factory):
    factory.done("fishr", 1.0, 0, 0.4)
    ours, own = "fishr_exp.training.averaging.sma.Sma", "own.package.Mine"
    factory.done("fishr", 1.0, 1, 0.5, averaging={"_target_": ours})
    factory.done("fishr", 1.0, 2, 0.5, averaging={"_target_": own})
    (table,) = build_tables(read_runs(factory.root).done)
    assert {row.settings["averaging"] for row in table.rows} == {"–", "SMA", "Mine"}


def test_a_setting_of_one_method_is_a_column_only_if_it_varies_within_it(factory):
    paper = {"_target_": "fishr_exp.trainers.fishr.Fishr", "gamma": 1.0, "convention": "paper"}
    factory.done("erm", None, 0, 0.1)
    factory.done("fishr", 1.0, 0, 0.1, trainer=paper)
    assert table_of(factory).setting_names == ()
    factory.done("fishr", 1.0, 0, 0.1, trainer={**paper, "convention": "domainbed"})
    table = table_of(factory)
    assert table.setting_names == ("trainer.convention",)
    assert [row.settings["trainer.convention"] for row in table.rows] == ["–", "domainbed", "paper"]
    assert all(row.difference for row in table.rows[1:])  # ERM has none of a method's settings


def test_models_in_one_table(factory):
    factory.done("erm", None, 0, 0.1)
    cnn = {"_target_": "fishr_exp.models.mnist_cnn.mnist_cnn"}
    labels = {"model": "mnist_cnn"}
    factory.done("erm", None, 0, 0.2, model=cnn, labels=labels)
    factory.done("fishr", 1.0, 0, 0.5, model=cnn, labels=labels)
    table = table_of(factory)
    assert table.model is None
    assert table.setting_names == ("model",)
    assert table.rows[2].difference == pytest.approx((30.0, None, 1))


def test_a_data_seed_that_follows_the_seed_is_no_setting_and_a_pinned_one_is(factory):
    data = {"_target_": "fishr_exp.data.datasets.digits.colored_digits"}
    for seed in (0, 1):
        factory.done("fishr", 1.0, seed, 0.1, dataset={**data, "seed": seed})
    assert [row.seeds for row in table_of(factory).rows] == [(0, 1)]
    for seed in (0, 1, 2):
        factory.done("fishr", 2.0, seed, 0.1, dataset={**data, "seed": 0})
    table = table_of(factory)
    assert table.setting_names == ("dataset.seed",)
    shown = [(row.gamma, row.settings["dataset.seed"], row.seeds) for row in table.rows]
    assert shown == [(1.0, "–", (0, 1)), (2.0, "0", (0, 1, 2))]


def test_each_dataset_and_choice_of_test_domains_has_its_table(factory):
    factory.done("erm", None, 0, {"minus90": 0.1})
    factory.done("erm", None, 0, {"gray": 0.1, "minus90": 0.1})
    factory.done("erm", None, 1, {"minus90": 0.1, "gray": 0.1})
    factory.done("erm", None, 0, {"sketch": 0.1}, labels={"dataset": "pacs"})
    tables = tables_of(factory)
    assert [(t.dataset, t.test_domains, len(t.rows)) for t in tables] == [
        ("colored_digits", ("gray", "minus90"), 1),
        ("colored_digits", ("minus90",), 1),
        ("pacs", ("sketch",), 1),
    ]
    assert tables[0].rows[0].seeds == (0, 1)
    assert tables[2].title == "pacs; test domain sketch; model mlp"


def test_a_seed_that_comes_twice_counts_once(factory):
    factory.done("fishr", 1.0, 0, 0.1)
    again = factory.done("fishr", 1.0, 0, 0.9, output_dir="elsewhere")
    table = table_of(factory)
    assert table.rows[0].test["minus90"] == pytest.approx((10.0, None, 1))
    assert [run.path for run in table.repeats] == [again.path]


def test_differences_are_over_shared_seeds_only(factory):
    factory.done("erm", None, 1, 0.2)
    factory.done("erm", None, 5, 0.9)
    for seed, accuracy in ((0, 0.9), (1, 0.3)):
        factory.done("fishr", 1.0, seed, accuracy)
    factory.done("vrex", 1.0, 7, 0.5)
    _, fishr, vrex = table_of(factory).rows
    assert fishr.difference == pytest.approx((10.0, None, 1))
    assert vrex.difference is None


def test_gamma_zero_is_the_baseline_where_no_erm_fits(factory):
    for batch in (64, 128):
        for seed, zero in enumerate([0.10, 0.20, 0.30]):
            factory.done("fishr", 0.0, seed, zero + batch / 1000, batch_size=batch)
            factory.done("fishr", 9.0, seed, zero + 0.5 + batch / 1000, batch_size=batch)
    rows = table_of(factory).rows
    assert [(row.gamma, row.difference and row.difference.mean) for row in rows] == [
        (0.0, None),
        (0.0, None),
        (9.0, pytest.approx(50.0)),
        (9.0, pytest.approx(50.0)),
    ]
    assert [row.p for row in rows] == [None, None, 0.5, 0.5]  # 0.25, twice


def test_its_own_gamma_zero_is_a_method_s_baseline_before_erm(factory):
    for method, gamma, test in [("erm", None, 0.1), ("fishr", 0.0, 0.3), ("fishr", 9.0, 0.7)]:
        factory.done(method, gamma, 0, test)
    factory.done("vrex", 9.0, 0, 0.7)
    table = table_of(factory)
    assert [
        (row.method, row.gamma, row.difference and row.difference.mean) for row in table.rows
    ] == [
        ("ERM", None, None),
        ("Fishr", 0.0, None),
        ("Fishr", 9.0, pytest.approx(40.0)),
        ("V-REx", 9.0, pytest.approx(60.0)),
    ]
    assert [curve.baseline and curve.baseline.gamma for curve in table.curves] == [0.0, None]


def test_gamma_zero_of_one_method_is_the_erm_of_others(factory):
    for method, gamma, test in (("fishr", 0.0, 0.3), ("fishr", 9.0, 0.7), ("coral", 1.0, 0.4)):
        factory.done(method, gamma, 0, test)
    factory.done("mixup", None, 0, 0.2)
    factory.done("mixup", None, 0, 0.2, batch_size=9)  # no ERM has this one
    gains = {
        (row.method, *row.settings.values()): row.difference and row.difference.mean
        for row in table_of(factory).rows
    }
    assert table_of(factory).rows[0].label == "ERM"
    assert gains == {
        ("Fishr", "64"): pytest.approx(40.0),
        ("Coral", "64"): pytest.approx(10.0),
        ("Mixup", "64"): pytest.approx(-10.0),
        ("Mixup", "9"): None,
    }
    # With two of them it is ambiguous, but for the methods themselves.
    factory.done("vrex", 0.0, 0, 0.35)
    assert {row.method for row in table_of(factory).rows if row.difference} == {"Fishr"}


def test_a_library_s_network_is_named_by_its_own_name(factory):
    model = {"_target_": "fishr_exp.models.backbone.backbone", "library": "timm", "name": "lite0"}
    factory.done("erm", None, 0, 0.3, labels={"model": "timm"}, model=model)
    assert table_of(factory).title.endswith("; model lite0")
    factory.done("erm", None, 0, 0.3, labels={"model": "timm"}, model={**model, "name": "lite1"})
    table = table_of(factory)
    assert table.model is None
    assert table.setting_names == ("model",)
    assert [row.settings["model"] for row in table.rows] == ["lite0", "lite1"]
    # Of one name in two libraries, both have to be said.
    factory.done("erm", None, 0, 0.3, labels={"model": "lite0"})
    assert table_of(factory).setting_names[0] == "model"
    assert len({tuple(row.settings.values()) for row in table_of(factory).rows}) == 3


def test_a_method_is_not_compared_with_an_erm_of_another_l2(factory):
    def done(method, gamma, l2, test):
        target = f"fishr_exp.trainers.{method}.{method.title()}"
        trainer = {"_target_": target, "l2": l2} | ({} if gamma is None else {"gamma": gamma})
        factory.done(method, gamma, 0, test, trainer=trainer)

    done("erm", None, 0.0, 0.1)
    done("fishr", 9.0, 0.001, 0.7)
    table = table_of(factory)
    assert table.setting_names == ("trainer.l2",)
    assert [row.settings["trainer.l2"] for row in table.rows] == ["0", "0.001"]
    assert [row.difference for row in table.rows] == [None, None]
    assert table.curves[0].baseline is None
    done("erm", None, 0.001, 0.2)
    assert [row.difference and row.difference.mean for row in table_of(factory).rows] == [
        None,
        None,
        pytest.approx(50.0),
    ]


def test_seeds_without_a_partner_are_named_and_left_out(factory):
    for seed in (0, 1, 2):
        factory.done("erm", None, seed, 0.01 * seed)
    for seed in (1, 2, 7):
        factory.done("fishr", 1.0, seed, 0.5 + 0.01 * seed)
    (_, row) = table_of(factory).rows
    assert row.unpaired == (0, 7)
    assert row.difference == pytest.approx((50.0, 0.0, 2))
    assert (row.paired.low, row.paired.high) == pytest.approx((50.0, 50.0))


def test_two_rows_of_erm_that_fit_leave_the_difference_open(factory):
    factory.done("fishr", 1.0, 0, 0.5)
    for smoothing in (0.0, 0.1):
        factory.done("erm", None, 0, 0.1, trainer={"_target_": "erm", "smoothing": smoothing})
    assert [row.difference for row in table_of(factory).rows] == [None, None, None]


def test_a_choice_by_the_test_domain_is_marked(factory):
    observer = {"_target_": "observer", "monitor": "accuracy/minus90/validation"}
    factory.done("erm", None, 0, 0.1, observer=observer)
    assert table_of(factory).rows[0].selected_by_test_domain


CHOICES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2),
        "method": st.sampled_from(["erm", "fishr", "vrex", "mylab.Fishr"]),
        "gamma": st.sampled_from([0, 1.0, 2.0]),
        "batch_size": st.sampled_from([32, 64, None]),
        "optimizer": st.sampled_from([{"_target_": "a.Adam", "lr": 1}, {"_target_": "b.SGD"}]),
        "data_seed": st.sampled_from([None, 0, 1]),
    }
)


TARGETS = {name: f"fishr_exp.trainers.{name}.{name.title()}" for name in ("erm", "fishr", "vrex")}


def run_of(choice) -> Run:
    erm = choice["method"] == "erm"
    gamma = None if erm else choice["gamma"]
    data_seed = choice["seed"] if choice["data_seed"] is None else choice["data_seed"]
    config = {
        "seed": choice["seed"],
        "trainer": {"_target_": TARGETS.get(choice["method"], choice["method"])}
        | ({} if erm else {"gamma": gamma}),
        "batch_size": choice["batch_size"],
        "optimizer": choice["optimizer"],
        "dataset": {"seed": data_seed},
        "test_domains": ["t"],
    }
    return Run(
        path=None,  # type: ignore[arg-type]
        config=config,
        dataset="d",
        model="m",
        method=method_of(config, None),
        gamma=gamma,
        seed=choice["seed"],
        test_domains=("t",),
        step=10,
        monitor="validation_accuracy",
        selected_by_test_domain=False,
        train_accuracy=0.5,
        validation_accuracy=0.5,
        test_accuracy={"t": 0.5},
        is_erm=choice["method"] == "erm",
        option=choice["method"],
    )


@settings(deadline=None)
@given(st.lists(CHOICES, min_size=1, max_size=12))
def test_no_run_is_lost_and_no_two_rows_look_alike(choices):
    (table,) = build_tables(map(run_of, choices))
    assert sum(len(row.seeds) for row in table.rows) + len(table.repeats) == len(choices)
    shown = [(row.label, row.gamma, *row.settings.values()) for row in table.rows]
    assert len(set(shown)) == len(shown)


def test_a_row_and_the_baseline_are_what_was_built(factory):
    """A user's own option of ERM's class is the baseline; another class under `erm` is not."""
    erm = {"_target_": "fishr_exp.trainers.erm.Erm"}
    labels = {"trainer": "plain"}
    for seed in range(3):
        factory.done("fishr", 1.0, seed, 0.5)
        factory.done("erm", None, seed, 0.2, labels=labels, trainer=erm)
        foreign = {"_target_": "mylab.methods.LogitDecay", "weight": 0.1}
        factory.done("erm", None, seed, 0.9, trainer=foreign)
    rows = {row.label: row for row in table_of(factory).rows}
    assert set(rows) == {"ERM", "Fishr", "LogitDecay"}
    assert rows["ERM"].is_baseline
    assert not rows["LogitDecay"].is_baseline
    assert rows["Fishr"].difference.mean == pytest.approx(30.0)
    assert rows["LogitDecay"].difference.mean == pytest.approx(70.0)


def test_gamma_zero_is_called_erm_and_by_its_method_where_another_row_is_too(factory):
    for gamma in (0.0, 1.0):
        factory.done("fishr", gamma, 0, 0.5)
    assert [row.label for row in table_of(factory).rows] == ["ERM", "Fishr"]
    factory.done("vrex", 0.0, 0, 0.5)
    assert [row.label for row in table_of(factory).rows] == ["ERM (Fishr)", "Fishr", "ERM (V-REx)"]


@pytest.mark.parametrize("other", ["erm", "vrex"])
def test_one_other_row_of_erm_is_enough(factory, other):
    factory.done(other, None if other == "erm" else 0.0, 0, 0.5)
    factory.done("fishr", 0.0, 0, 0.5)
    assert "ERM (Fishr)" in [row.label for row in table_of(factory).rows]


def test_one_method_under_several_options_is_one_method(factory):
    for option, convention in (("fishr", "paper"), ("fishr_domainbed", "domainbed")):
        trainer = {"_target_": TARGETS["fishr"], "gamma": 1.0, "convention": convention}
        factory.done("fishr", 1.0, 0, 0.5, trainer=trainer, labels={"trainer": option})
    rows = table_of(factory).rows
    assert [(row.label, *row.settings.values()) for row in rows] == [
        ("Fishr", "domainbed"),
        ("Fishr", "paper"),
    ]


def test_a_method_without_l2_is_compared_with_an_erm_without_it(factory):
    trainer = {"_target_": TARGETS["erm"], "l2": 0.0}
    factory.done("erm", None, 0, 0.2, trainer=trainer)
    factory.done("mine", None, 0, 0.5, trainer={"_target_": "mylab.Mine"})
    table = table_of(factory)
    assert table.setting_names == ()
    assert table.rows[1].difference.mean == pytest.approx(30.0)
    factory.done("erm", None, 0, 0.3, trainer={**trainer, "l2": 0.1})
    table = table_of(factory)
    assert [row.settings["trainer.l2"] for row in table.rows] == ["0", "0.1", "0"]
    assert table.rows[2].difference.mean == pytest.approx(30.0)


def test_a_method_without_gamma_has_an_interval_too(factory):
    for seed in range(3):
        factory.done("erm", None, seed, 0.2)
        factory.done("mldg", None, seed, 0.3 + seed / 100)
    (table,) = build_tables(read_runs(factory.root).done)
    erm, mldg = table.rows
    assert erm.paired is None
    assert (mldg.paired.low, mldg.paired.high) == (pytest.approx(10), pytest.approx(12))
    assert mldg.p == 0.25
