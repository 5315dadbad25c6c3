from __future__ import annotations

import json

import pytest

from fishr_exp.runs.reading import read_runs


def test_reads_runs_at_any_depth_and_counts_the_others(factory, tmp_path):
    done = factory.done("fishr", 10.0, 1, {"minus90": 0.6, "gray": 0.7})
    started = factory.start({"seed": 2})
    failed = factory.start({"seed": 3})
    failed.fail("loss is NaN")
    runs = read_runs(tmp_path)
    assert [run.path for run in runs.done] == [done.path]
    assert (runs.failed, runs.unfinished, runs.broken) == ([failed.path], [started.path], {})
    assert len(runs) == 3
    run = runs.done[0]
    assert (run.method, run.gamma, run.seed, run.model) == ("Fishr", 10.0, 1, "mlp")
    assert run.test_domains == ("minus90", "gray")
    assert run.test_accuracy == {"minus90": 0.6, "gray": 0.7}
    assert (run.train_accuracy, run.validation_accuracy) == (0.8, 0.7)
    assert (run.monitor, run.selected_by_test_domain) == ("validation_accuracy", False)


def test_the_folder_itself_may_be_a_run(factory):
    folder = factory.done("erm", None, 0, 0.1)
    assert [run.path for run in read_runs(folder.path).done] == [folder.path]


def test_a_result_that_was_cut_off_before_its_marker_is_unfinished(factory):
    folder = factory.done("erm", None, 0, 0.1)
    (folder.path / "done").unlink()
    assert read_runs(factory.root).unfinished == [folder.path]


def test_copies_of_config_and_result_are_no_runs(factory):
    folder = factory.done("erm", None, 0, 0.1)
    copy = factory.root / "artifacts"
    copy.mkdir()
    for name in ("config.json", "result.json"):
        (copy / name).write_bytes((folder.path / name).read_bytes())
    assert len(read_runs(factory.root)) == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda result: result.pop("labels"), "lacks 'labels'"),
        (lambda result: result["test_accuracy"].update(minus90=None), "no accuracy of minus90"),
        (lambda result: result.update(labels=3), "labels is 3, not an object"),
    ],
)
def test_a_broken_result_is_named_and_does_not_stop_the_others(factory, change, problem):
    broken, whole = (factory.done("erm", None, seed, 0.1) for seed in (0, 1))
    path = broken.path / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))
    runs = read_runs(factory.root)
    assert [run.path for run in runs.done] == [whole.path]
    assert problem in runs.broken[broken.path]


@pytest.mark.parametrize("marked", [True, False])
def test_a_result_that_is_no_json_is_named(factory, marked):
    folder = factory.done("erm", None, 0, 0.1)
    (folder.path / "result.json").write_text("{")
    if not marked:
        (folder.path / "done").unlink()
    problem = read_runs(factory.root).broken[folder.path]
    assert "result.json" in problem
    assert "cannot be read" in problem
    assert "output_dir" not in problem


def test_without_train_accuracy(factory):
    factory.done("erm", None, 0, 0.1, train=None, validation=None)
    run = read_runs(factory.root).done[0]
    assert (run.train_accuracy, run.validation_accuracy) == (None, None)


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_runs(tmp_path / "none")
