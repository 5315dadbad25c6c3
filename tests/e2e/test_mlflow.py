"""MLflow mirrors the run folder: all of it, once, and never at the cost of the run."""

from __future__ import annotations

import contextlib
import datetime
import io
import itertools
import json
import logging
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fishr_exp.cli import sync as sync_cli
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.mirror import unreachable
from fishr_exp.tracking.mlflow import MlflowMirror

from .conftest import Command, Outcome, caller, process
from .test_runs import stop_before

TRACKED = ("model.hidden=8", "epochs=2", "steps_per_epoch=2")
AWAY = "http://127.0.0.1:9"  # nobody listens there


class Tracked:
    """One database for all tests here: making one takes seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder}/mlflow.db"

    def command(self, runs: str, experiment: str) -> Command:
        call = caller(self.folder / runs)
        tracker = (f"tracker.tracking_uri={self.uri}", f"tracker.experiment={experiment}")
        return lambda *words, tiny=TRACKED: call(*words, tiny=(*tiny, *tracker))

    def runs(self, experiment: str) -> list[Any]:
        client = self.client()
        found = client.get_experiment_by_name(experiment)
        runs = client.search_runs([found.experiment_id]) if found else []
        return sorted(runs, key=lambda run: run.info.start_time)

    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def steps(self, run: Any, metric: str) -> list[int]:
        return [m.step for m in self.client().get_metric_history(run.info.run_id, metric)]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    return Tracked(tmp_path_factory.mktemp("tracked"))


def test_a_sweep_is_mirrored_in_flat_runs(tracked: Tracked) -> None:
    outcome = tracked.command("sweep", "sweep")("-m", "trainer.gamma=0,10", "tracker.sweep=both")
    assert outcome.status == 0
    said = [line for line in outcome.err.splitlines() if "mlflow" in line.lower()]
    assert all(line.startswith("MLflow shows the runs: mlflow ui") for line in said)
    assert len(said) <= 1  # once in a process
    runs = tracked.runs("sweep")
    assert [run.data.params["trainer.gamma"] for run in runs] == ["0", "10"]
    for run, folder in zip(runs, sorted((tracked.folder / "sweep").glob("fishr-*")), strict=False):
        assert run.info.status == "FINISHED"
        assert run.info.run_name == folder.name
        assert run.data.tags["sweep"] == "both"
        assert run.data.tags["folder"] == str(folder)
        assert "mlflow.parentRunId" not in run.data.tags
        for key, value in {
            "dataset": "colored_digits", "trainer": "fishr", "trainer.convention": "paper",
            "model.hidden": "8", "optimizer.lr": "0.001", "seed": "0", "epochs": "2",
            "test_domains": "['minus90']", "batch_size": "64", "steps_per_epoch": "2",
        }.items():  # fmt: skip
            assert run.data.params[key] == value

        records = [json.loads(line) for line in (folder / "records.jsonl").open()]
        for name in ("risk", "penalty", "objective"):
            history = tracked.client().get_metric_history(run.info.run_id, name)
            assert [(m.step, m.value) for m in history] == [
                (record["step"], record["losses"][name]) for record in records
            ]
        for domain in ("plus90", "plus80", "minus90"):
            assert tracked.steps(run, f"accuracy/{domain}/validation") == [2, 4]
        for name in ("epoch", "learning_rate", "seconds_per_step", "validation_accuracy"):
            assert tracked.steps(run, name) == [2, 4]
        result = json.loads((folder / "result.json").read_text())
        assert run.data.metrics["test_accuracy/minus90"] == result["test_accuracy"]["minus90"]

        artifacts = {item.path for item in tracked.client().list_artifacts(run.info.run_id)}
        assert artifacts == {"config.json", "environment.json", "result.json"}
        copy = tracked.folder / "mlflow_artifacts" / run.info.run_id / "artifacts" / "result.json"
        assert json.loads(copy.read_text()) == result


def test_the_jobs_of_a_sweep_share_a_name(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default it is the time at which the sweep was started, not that of the job."""
    seconds = itertools.count()

    class Clock:  # a second passes whenever somebody looks
        @staticmethod
        def now() -> datetime.datetime:
            return datetime.datetime(2022, 7, 17) + datetime.timedelta(seconds=next(seconds))

    monkeypatch.setattr("hydra.core.utils.datetime", Clock)
    assert tracked.command("named", "named")("-m", "seed=0,1,2").status == 0
    names = [run.data.tags["sweep"] for run in tracked.runs("named")]
    assert len(names) == 3
    assert len(set(names)) == 1
    assert names[0].startswith("2022-07-17_00-00-")


def test_a_failed_run_is_marked_failed(tracked: Tracked) -> None:
    words = ("trainer.gamma=1e300", "trainer.anneal_steps=4", "epochs=5")
    outcome = tracked.command("failed", "failed")(*words)
    assert outcome.status == 1
    (run,) = tracked.runs("failed")
    assert run.info.status == "FAILED"
    assert "not finite at step 4" in run.data.tags["error"]
    assert tracked.steps(run, "objective") == [2, 4]
    assert "test_accuracy/minus90" not in run.data.metrics


def test_a_stopped_run_goes_on_as_the_same_run(tracked: Tracked) -> None:
    command = tracked.command("stopped", "stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_before(5, patch)
        assert command("epochs=4").status == 130
    (run,) = tracked.runs("stopped")
    assert run.info.status == "KILLED"
    assert tracked.steps(run, "objective") == [2, 4]
    # Other workers are no other settings, but another parameter.
    assert command("epochs=4", "evaluation_batch_size=256", "device=cpu").status == 0
    (run,) = tracked.runs("stopped")
    assert run.info.status == "FINISHED"
    assert tracked.steps(run, "objective") == [2, 4, 6, 8]
    assert tracked.steps(run, "accuracy/plus90/train") == [2, 4, 6, 8]


def test_a_failed_run_that_is_mended_is_no_longer_marked(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tracked.command("mended", "mended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "finish", lambda *_: 1 / 0)
        assert command().status == 1
    (run,) = tracked.runs("mended")
    assert run.info.status == "FAILED"
    assert "ZeroDivisionError" in run.data.tags["error"]
    assert command("retry_failed=true").status == 0
    (run,) = tracked.runs("mended")
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    assert tracked.steps(run, "objective") == [2, 4]


def test_a_server_that_is_away_costs_a_warning_and_is_caught_up(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # it would wait between the tries
    command = tracked.command("away", "away")
    away = f"tracker.tracking_uri={AWAY}"
    first = command(away)
    assert first.status == 0
    assert first.result()["status"] == "done"
    warnings = [line for line in first.err.splitlines() if line.startswith("warning: MLflow")]
    assert len(warnings) == 1
    assert f"MLflow at {AWAY} failed" in warnings[0]
    assert str(first.folder) in warnings[0]
    assert len(first.err.splitlines()) == 6  # two epochs, three of the result

    # Given again while it is away, the done run is skipped, with a warning; then it is there.
    again = command(away)
    assert again.status == 0
    assert "done already" in again.err
    assert again.err.count("MLflow at") == 1
    assert tracked.runs("away") == []
    back = command()
    assert "done already" in back.err
    assert "failed" not in back.err
    (run,) = tracked.runs("away")
    assert run.info.status == "FINISHED"
    assert tracked.steps(run, "objective") == [2, 4]
    assert run.data.metrics["test_accuracy/minus90"] == first.result()["test_accuracy"]["minus90"]

    # And once it has all, MLflow is left alone.
    monkeypatch.setattr(MlflowMirror, "_connect", lambda _: 1 / 0)  # would log a warning
    last = command()
    assert last.err.splitlines()[-1] == (
        f"done already: {first.folder} (resume=false runs it again)"
    )
    assert "failed" not in last.err


def test_a_run_has_its_own_times_whenever_it_is_sent(tracked: Tracked) -> None:
    command = tracked.command("times", "times")
    before = time.time()
    sent = command("trainer=erm")
    after = time.time()
    later = caller(tracked.folder / "times later")(tiny=(*TRACKED, "tracker=none"))
    ended = time.time()
    time.sleep(1.5)
    arguments = ["--tracking-uri", tracked.uri, "--experiment", "times later"]
    assert sync(later.folder, *arguments).status == 0
    for name, outcome, first, last in (
        ("times", sent, before, after), ("times later", later, after, ended)
    ):  # fmt: skip
        (run,) = tracked.runs(name)
        start, end = run.info.start_time / 1000, run.info.end_time / 1000
        assert first - 0.01 <= start < outcome.records()[0]["time"]
        assert outcome.records()[-1]["time"] - 0.01 <= end <= last + 0.01
        assert end - start == pytest.approx(outcome.result()["seconds"], abs=0.5)


def test_what_keeps_books_is_a_tag(tracked: Tracked) -> None:
    outcome = tracked.command("books", "books")("trainer=erm")
    (run,) = tracked.runs("books")
    for key in ("output_dir", "resume", "sweep_name", "tracker.experiment", "device"):
        assert key in run.data.tags
        assert key not in run.data.params
    assert run.data.params["seed"] == "0"
    assert run.data.tags["mlflow.user"] == (outcome.folder / "config.json").owner()
    assert run.data.tags["mlflow.source.name"] == "fishr-exp"  # the pages cut it at a slash
    assert run.data.tags["mlflow.note.content"].startswith("`fishr-exp model.hidden=8")
    assert len(run.data.tags["mlflow.source.git.commit"]) >= 40
    means = outcome.result()["test_accuracy"].values()
    assert run.data.metrics["test_accuracy"] == pytest.approx(sum(means) / len(means))


def test_tags_of_the_user_are_one_tag_by_which_runs_are_found(tracked: Tracked) -> None:
    command = tracked.command("words", "words")
    command("trainer=erm", "tags=[pilot,two words]")
    command("trainer=erm", "seed=1")
    runs = {run.data.params["seed"]: run.data.tags for run in tracked.runs("words")}
    assert runs["0"]["tags"] == "pilot, two words"
    assert "tags" not in runs["1"]


def test_a_deleted_experiment_is_told_with_what_helps(tracked: Tracked) -> None:
    command = tracked.command("deleted", "deleted")
    command("trainer=erm")
    client = tracked.client()
    number = client.get_experiment_by_name("deleted").experiment_id
    client.delete_experiment(number)
    refused = command("trainer=erm", "seed=1")
    assert refused.status == 0
    assert f"mlflow experiments restore --experiment-id {number} restores it" in refused.err
    assert "tracker.experiment=NAME" in refused.err
    client.restore_experiment(number)
    assert sync(refused.folder.parent).status == 0
    assert len(tracked.runs("deleted")) == 2


@pytest.mark.parametrize("given", ["outputs/mlruns", "some.db", "sqlite://some.db", "/tmp/x"])
def test_a_path_in_place_of_an_address(fishr_exp: Command, given: str) -> None:
    outcome = fishr_exp(f"tracker.tracking_uri={given}", tiny=TRACKED)
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert f"tracker.tracking_uri={given}: is not an address of MLflow" in line
    assert "pass tracker.tracking_uri=sqlite:///" in line
    assert not list(outcome.folder.parent.glob("*"))


def test_an_empty_variable_of_mlflow_is_none(
    fishr_exp: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.chdir(tmp_path)
    assert fishr_exp("trainer=erm", tiny=TRACKED).status == 0
    assert (tmp_path / "outputs" / "mlflow.db").exists()


def test_mlflows_own_variables_are_honored(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by variables")
    assert caller(tracked.folder / "variables")(tiny=TRACKED).status == 0
    assert len(tracked.runs("by variables")) == 1


def test_a_run_without_tracker_is_mirrored_later(tracked: Tracked) -> None:
    command = tracked.command("later", "later")
    folder = caller(tracked.folder / "later")(tiny=(*TRACKED, "tracker=none")).folder
    assert not (folder / "tracking.json").exists()
    assert command().folder == folder
    (run,) = tracked.runs("later")
    assert (run.info.status, tracked.steps(run, "risk")) == ("FINISHED", [2, 4])


@pytest.mark.slow
def test_a_lost_database_is_filled_anew(tmp_path: Path, fishr_exp: Command) -> None:
    """The runs' own notes that MLflow has all of it are worth nothing then."""
    database = tmp_path / "mlflow.db"
    sweep = ("-m", "seed=0,1", f"tracker.tracking_uri=sqlite:///{database}")
    assert fishr_exp(*sweep, tiny=TRACKED).status == 0
    database.unlink()
    # In a process of its own: MLflow keeps a database open that it has used.
    said = process(*sweep, *TRACKED, f"output_dir={tmp_path / 'runs'}").communicate()[1]
    assert said.count("done already") == 2
    assert "2 runs: 0 trained, 2 sent to the tracker again" in said
    assert "MLflow at" not in said
    client = MlflowClient(f"sqlite:///{database}")
    runs = client.search_runs([client.get_experiment_by_name("fishr-exp").experiment_id])
    assert sorted(run.data.params["seed"] for run in runs) == ["0", "1"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        assert len(client.get_metric_history(run.info.run_id, "risk")) == 2


@pytest.mark.slow
def test_two_processes_make_the_database_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    both = [
        process(*TRACKED, f"seed={seed}", f"tracker.tracking_uri={uri}", f"output_dir={tmp_path}",
                stderr=subprocess.STDOUT)
        for seed in (0, 1)
    ]  # fmt: skip
    said = [run.communicate()[0] for run in both]
    assert [run.returncode for run in both] == [0, 0], said
    assert "MLflow at" not in "".join(said)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("fishr-exp").experiment_id])
    assert sorted(run.data.params["seed"] for run in runs) == ["0", "1"]
    assert {run.info.status for run in runs} == {"FINISHED"}


def sync(*words: object) -> Outcome:
    """Call `fishr-sync`."""
    out, err = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(err)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(out):
            status = sync_cli.main([str(word) for word in words])
    finally:
        logging.getLogger().removeHandler(handler)
    return Outcome(status, out.getvalue(), err.getvalue(), Path(str(words[0])))


def test_runs_are_sent_by_hand_once_with_the_status_they_have(tracked: Tracked) -> None:
    runs = tracked.folder / "by_hand"
    command = caller(runs)
    untracked = (*TRACKED, "tracker=none")
    assert command(tiny=untracked).status == 0
    assert command("seed=1", "trainer.gamma=1e300", tiny=untracked).status == 1
    with pytest.MonkeyPatch.context() as patch:
        stop_before(3, patch)
        assert command("seed=2", tiny=untracked).status == 130
    going_on = RunFolder(command("seed=3", tiny=untracked).folder)
    going_on.acquire()

    without = sync(runs)
    assert without.status == 0
    assert without.out == (
        f"4 runs under {runs}: 3 without a tracker (pass --tracking-uri), 1 running\n"
    )
    words = (runs, "--tracking-uri", tracked.uri, "--experiment", "by_hand")
    first = sync(*words)
    assert (first.status, first.out) == (0, f"4 runs under {runs}: 3 sent, 1 running\n")
    there = {run.data.params["seed"]: run for run in tracked.runs("by_hand")}
    ends = {seed: run.info.status for seed, run in there.items()}
    assert ends == {"0": "FINISHED", "1": "FAILED", "2": "KILLED"}
    assert [tracked.steps(there[seed], "risk") for seed in "02"] == [[2, 4], [2]]
    assert "not finite" in there["1"].data.tags["error"]
    assert there["0"].data.tags["sweep"] == "by_hand"
    assert there["0"].data.params["trainer"] == "fishr"

    going_on.close()
    assert sync(*words).out == f"4 runs under {runs}: 3 complete already, 1 sent\n"
    assert sync(runs).out == f"4 runs under {runs}: 4 complete already\n"
    # The stopped run goes on as the same run.
    assert tracked.command("by_hand", "by_hand")("seed=2").status == 0
    assert len(tracked.runs("by_hand")) == 4
    (gone_on,) = [run for run in tracked.runs("by_hand") if run.data.params["seed"] == "2"]
    assert (gone_on.info.status, tracked.steps(gone_on, "risk")) == ("FINISHED", [2, 4])


def test_what_cannot_be_sent_is_said_once(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    unreachable.discard(AWAY)  # as in a process of its own
    runs = tracked.folder / "nowhere"
    caller(runs)("-m", "seed=0,1,2", tiny=(*TRACKED, "tracker=none"))
    away = sync(runs, "--tracking-uri", AWAY)
    assert (away.status, away.out) == (1, f"3 runs under {runs}: 3 not sent\n")
    assert away.err.count("MLflow at") == 1
    # A spoilt run does not keep the others from being sent.
    spoilt = min(runs.glob("fishr-*"))
    (spoilt / "config.json").write_text("{")
    others = sync(runs, "--tracking-uri", tracked.uri, "--experiment", "nowhere")
    assert (others.status, others.out) == (1, f"3 runs under {runs}: 1 not sent, 2 sent\n")
    assert f"fishr-sync: {spoilt}: " in others.err
    assert len(tracked.runs("nowhere")) == 2


def test_a_run_sent_to_a_second_server_stays_one_run_on_the_first(
    tracked: Tracked, tmp_path: Path
) -> None:
    command = tracked.command("second", "second")
    folder = command().folder
    elsewhere = f"sqlite:///{tmp_path}/mlflow.db"
    assert sync(folder, "--tracking-uri", elsewhere).status == 0
    assert command().status == 0  # back on the first, where it is found by its tag
    (run,) = tracked.runs("second")
    assert tracked.steps(run, "risk") == [2, 4]
    assert tracked.steps(run, "test_accuracy/minus90") in ([2], [4])


def test_a_thread_that_was_given_up_leaves_the_folder_alone(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come back hours later, when the folder is another process's."""
    folder = caller(tracked.folder / "late")(tiny=(*TRACKED, "tracker=none")).folder
    config = json.loads((folder / "config.json").read_text())
    mirror = MlflowMirror(RunFolder(folder), tracked.uri, "late", "late")
    mirror.patience = 0.2
    answer, really = threading.Event(), mirror._find_run

    def slowly(client: Any) -> None:
        answer.wait()
        really(client)

    monkeypatch.setattr(mirror, "_find_run", slowly)
    mirror.start(config, {})
    mirror.finish("FINISHED")
    assert mirror.error == "not done in 0.2 s"
    noted = (folder / "tracking.json").read_bytes()
    answer.set()
    assert mirror._thread
    mirror._thread.join()
    assert (folder / "tracking.json").read_bytes() == noted
    # It has made a run before it gave up: that one is found and filled.
    assert [run.info.status for run in tracked.runs("late")] == ["RUNNING"]
    assert sync(folder).out == f"1 runs under {folder}: 1 sent\n"
    (run,) = tracked.runs("late")
    assert (run.info.status, tracked.steps(run, "risk")) == ("FINISHED", [2, 4])
