from __future__ import annotations

import json
import math

import pytest

from fishr_exp.runs.history import Evaluation, place, read_histories
from fishr_exp.runs.reading import read_runs


def domainbed_line(step, test_envs=(1,), accuracies=((0.1, 0.2), (0.3, 0.4)), **args):
    """A line as DomainBed writes it; accuracies are (in, out) by environment."""
    record = {"step": step, "epoch": 0.5, "loss": 1.0, "step_time": 0.1, "mem_gb": 0.0}
    for number, (train, validation) in enumerate(accuracies):
        record |= {f"env{number}_in_acc": train, f"env{number}_out_acc": validation}
    return record | {
        "args": {
            "dataset": "RotatedMNIST",
            "algorithm": "ERM",
            "test_envs": list(test_envs),
            "trial_seed": 2,
            "hparams_seed": 7,
            "seed": 11,
            "output_dir": "sweep/abc",
            **args,
        },
        "hparams": {"lr": 0.001, "batch_size": 64},
    }


def write(folder, *lines, done=True):
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    (folder / "results.jsonl").write_text(text)
    if done:
        (folder / "done").write_text("done")


def test_an_own_run(factory):
    folder = factory.done(
        "erm", None, 4, {"b": 0.5}, labels={"dataset": "pacs"},
        protocol={"name": "domainbed", "trial_seed": 1, "hparams_seed": 3},
    )  # fmt: skip
    lines = [
        {"step": step, "accuracy": {"a": {"train": 0.1, "validation": "NaN"},
                                    "b": {"train": None, "validation": 0.4}}}
        for step in (0, 300)
    ]  # fmt: skip
    (folder.path / "records.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    found = read_histories(factory.root, read_runs(factory.root).done)
    assert not found.broken
    (run,) = found.runs
    assert run.key == ("PACS", "ERM", 1, 3, (1,))
    assert (run.domains, run.in_protocol, run.done) == (("a", "b"), True, True)
    assert [evaluation.step for evaluation in run.evaluations] == [0, 300]
    last = run.evaluations[-1]
    assert (last.train[0], last.validation[1]) == (0.1, 0.4)
    assert math.isnan(last.train[1])  # not measured
    assert math.isnan(last.validation[0])
    assert run.settings["optimizer.lr"] == 0.001
    assert not {"seed", "test_domains", "protocol.trial_seed"} & set(run.settings)


@pytest.mark.parametrize("protocol", [{}, {"protocol": None}, {"protocol": {"name": None}}])
def test_a_run_outside_the_protocol_is_the_trial_of_its_seed(protocol):
    assert place(protocol, 5) == (5, 0, False)


def test_an_imported_file(tmp_path):
    # JSON of NaN as Python writes it.
    write(tmp_path / "sweep" / "abc", domainbed_line(0),
          domainbed_line(100, accuracies=((0.5, 0.6), (0.7, math.nan))))  # fmt: skip
    (run,) = read_histories(tmp_path, []).runs
    assert run.key == ("RotatedMNIST", "ERM", 2, 7, (1,))
    assert run.path == tmp_path / "sweep" / "abc"
    assert run.evaluations[0] == Evaluation(0, (0.1, 0.3), (0.2, 0.4))
    assert run.evaluations[1].train == (0.5, 0.7)
    assert math.isnan(run.evaluations[1].validation[1])
    assert run.done
    assert run.settings == {"hparams.lr": 0.001, "hparams.batch_size": 64}


def test_an_imported_file_without_the_mark(tmp_path):
    write(tmp_path / "a", domainbed_line(0), done=False)
    (run,) = read_histories(tmp_path, []).runs
    assert not run.done


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "holds no evaluation"),
        ([domainbed_line(0), domainbed_line(0)], "holds a step twice"),
        ([domainbed_line(0), domainbed_line(1, seed=12)], "records of several runs"),
        ([{"step": 0}], "lacks 'args'"),
        ([domainbed_line(0, test_envs=[2])], "test_envs [2], but 2 domains"),
        (
            [domainbed_line(0, accuracies=[("high", 0.1)] * 2)],
            'env0_in_acc is "high", not a number',
        ),
    ],
)
def test_an_imported_file_that_is_not_as_it_should_be(tmp_path, lines, problem):
    write(tmp_path / "bad", *lines)
    write(tmp_path / "good", domainbed_line(0))
    found = read_histories(tmp_path, [])
    assert len(found.runs) == 1
    ((path, said),) = found.broken.items()
    assert path == tmp_path / "bad" / "results.jsonl"
    assert problem in said


def test_records_without_accuracies(factory):
    folder = factory.done("erm", None, 0, 0.5)
    found = read_histories(factory.root, read_runs(factory.root).done)
    assert found.broken == {folder.path / "records.jsonl": "a record lacks 'accuracy'"}


def test_methods_of_one_name_from_several_sources_are_told_apart(factory):
    write(factory.root / "theirs", domainbed_line(0, algorithm="VREx"))
    write(factory.root / "theirs too", domainbed_line(0, algorithm="ERM"))
    for option in ("vrex", "vrex_colored_mnist", "fishr_domainbed"):
        method = option.partition("_")[0]
        folder = factory.done(method, 1.0, 0, {"b": 0.5}, labels={"trainer": option})
        line = {"step": 1, "accuracy": {"b": {"train": 0.1, "validation": 0.2}}}
        (folder.path / "records.jsonl").write_text(json.dumps(line) + "\n")
    found = read_histories(factory.root, read_runs(factory.root).done)
    assert {run.method for run in found.runs} == {
        "V-REx (vrex)", "V-REx (vrex_colored_mnist)", "VREx (DomainBed)", "ERM", "Fishr",
    }  # fmt: skip


def test_gamma_zero_is_erm(factory):
    for gamma in (0.0, 1.0):
        folder = factory.done("fishr", gamma, 0, {"b": 0.5})
        line = {"step": 1, "accuracy": {"b": {"train": 0.1, "validation": 0.2}}}
        (folder.path / "records.jsonl").write_text(json.dumps(line) + "\n")
    found = read_histories(factory.root, read_runs(factory.root).done)
    assert [run.method for run in found.runs] == ["ERM", "Fishr"]


def test_a_run_that_chose_its_result_itself_has_no_other(factory):
    """The records are of the weights at each evaluation, and the result is of a mean."""
    swad = {"_target_": "fishr_exp.training.averaging.swad.Swad"}
    folder = factory.done("erm", None, 0, {"b": 0.5}, averaging=swad)
    result = folder.result()
    accuracy = {"a": {"train": 0.3, "validation": 0.6}, "b": {"train": 0.5, "validation": None}}
    result["selected"] |= {"step": 7, "only_choice": True}
    (folder.path / "result.json").write_text(json.dumps({**result, "accuracy": accuracy}))
    found = read_histories(factory.root, read_runs(factory.root).done)
    assert not found.broken
    (run,) = found.runs
    assert (run.method, run.domains, run.only_choice) == ("ERM + SWAD", ("a", "b"), True)
    (evaluation,) = run.evaluations
    assert (evaluation.step, evaluation.train, evaluation.validation[0]) == (7, (0.3, 0.5), 0.6)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (None, "ERM"),
        ("fishr_exp.training.averaging.ema.Ema", "ERM + EMA"),
        ("mylab.means.Running", "ERM + Running"),
    ],
)
def test_an_averaging_scheme_is_part_of_a_methods_name(target, name, factory):
    averaging = {"_target_": target} if target else None
    folder = factory.done("fishr", 0.0, 0, {"b": 0.5}, averaging=averaging)
    line = {"step": 1, "accuracy": {"b": {"train": 0.5, "validation": 0.5}}}
    (folder.path / "records.jsonl").write_text(json.dumps(line) + "\n")
    (run,) = read_histories(factory.root, read_runs(factory.root).done).runs
    assert run.method == name


@pytest.mark.parametrize(("total", "steps"), [(5001, 5001), (5e3, 5000), (None, None), ("", None)])
def test_the_number_of_steps_of_an_own_run(factory, total, steps):
    settings = {} if total == "" else {"total_steps": total}
    folder = factory.done("erm", None, 0, 0.5, **settings)
    line = {"step": 3, "accuracy": {"minus90": {"train": 0.1, "validation": 0.2}}}
    (folder.path / "records.jsonl").write_text(json.dumps(line) + "\n")
    found = read_histories(factory.root, read_runs(factory.root).done)
    assert not found.broken
    assert [run.steps for run in found.runs] == [steps]


@pytest.mark.parametrize(
    ("given", "done", "steps"),
    [(None, True, 5001), (15001, True, 15001), (15001, False, 15001), (None, False, None)],
)
def test_the_number_of_steps_of_an_imported_run(tmp_path, given, done, steps):
    """DomainBed counts steps from 0; a run that is not complete may have more to come."""
    write(tmp_path / "a", *(domainbed_line(s, steps=given) for s in (0, 300, 5000)), done=done)
    (run,) = read_histories(tmp_path, []).runs
    assert run.steps == steps


@pytest.mark.parametrize(
    ("label", "name"),
    [("sviro", "SVIRO"), ("camelyon17", "WILDSCamelyon"), ("fmow", "WILDSFMoW"), ("x", "x")],
)
def test_datasets_have_domainbeds_names(factory, label, name):
    folder = factory.done("erm", None, 0, 0.5, labels={"dataset": label})
    line = {"step": 3, "accuracy": {"minus90": {"train": 0.1, "validation": 0.2}}}
    (folder.path / "records.jsonl").write_text(json.dumps(line) + "\n")
    (run,) = read_histories(factory.root, read_runs(factory.root).done).runs
    assert run.dataset == name
