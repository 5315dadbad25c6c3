"""A sweep pays for what differs: shared steps, only what is missing, all mistakes first."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fishr_exp.configuration.sweeping import launching
from fishr_exp.configuration.sweeping.runs import SweptRun
from fishr_exp.runs.run_folder import RunFolder

from .conftest import Outcome, caller, newest_state, process, stop_before
from .test_runs import differences, without_seconds

TINY = ("model.hidden=8", "steps_per_epoch=4", "total_steps=14", "trainer.anneal_steps=6",
        "tracker=none", "batch_size=16")  # fmt: skip
SWEEP = ("-m", "trainer.gamma=1,100", "seed=0,1")
ALONE = "share_steps=false"


def trees(runs: Path) -> dict[str, Any]:
    """All that the runs of a sweep leave, by folder, without times and where steps came from."""

    def result(path: Path) -> dict[str, Any]:
        return {k: v for k, v in json.loads(path.read_text()).items() if k != "shared"}

    return {
        path.name: [
            without_seconds([json.loads(line) for line in (path / "records.jsonl").open()]),
            without_seconds(result(path / "result.json")),
            *(
                torch.load(state, weights_only=True)
                for state in (newest_state(path), path / "checkpoints/best.pt")
                if state.exists()
            ),
        ]
        for path in sorted(runs.iterdir())
        if (path / "config.json").exists()
    }


def shared(runs: Path) -> dict[str, dict[str, Any] | None]:
    return {
        path.parent.name: json.loads(path.read_text()).get("shared")
        for path in sorted(runs.glob("*/result.json"))
    }


def assert_equal_sweeps(one: Path, other: Path) -> None:
    left, right = trees(one), trees(other)
    assert left.keys() == right.keys()
    for name in left:
        states = zip(left[name], right[name], strict=True)
        assert [d for a, b in states for d in differences(a, b)] == [], name


# --- shared steps ------------------------------------------------------------------------------

METHODS = {
    "fishr": ("trainer.ema_decay=0.9",),
    "fishr as in DomainBed": ("trainer.convention=domainbed", "averaging=ema"),
    "slow: fishr, watched": ("diagnostics=true", "observer=last_step"),
    "irm": ("trainer=irm",),
    "slow: coral": ("trainer=coral", "averaging=swad", "averaging.n_converge=1"),
    "slow: trm": ("trainer=trm",),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith("slow") else ())
        for name in METHODS
    ],
)
def test_runs_that_share_steps_are_those_made_alone_to_the_last_bit(
    name: str, tmp_path: Path
) -> None:
    together = caller(tmp_path / "together")(*SWEEP, *METHODS[name], tiny=TINY)
    assert together.status == 0, together.err
    alone = caller(tmp_path / "alone")(*SWEEP, *METHODS[name], ALONE, tiny=TINY)
    assert alone.status == 0, alone.err
    assert_equal_sweeps(tmp_path / "together", tmp_path / "alone")
    took_over = [of for of in shared(tmp_path / "together").values() if of]
    # Two branches of each seed; of IRM, whose weight is 1 before, gamma 0 shares nothing.
    assert len(took_over) == (2 if name == "irm" else 4)
    assert {of["steps"] for of in took_over} == {6}
    assert all(of is None for of in shared(tmp_path / "alone").values())
    assert not (tmp_path / "together" / ".trunks").exists()


def test_the_seconds_of_a_branch_are_its_own(tmp_path: Path) -> None:
    outcome = caller(tmp_path)("-m", "trainer.gamma=1", "trainer.gamma=0,1", tiny=TINY)
    assert outcome.status == 0, outcome.err
    assert "the first 6 steps are taken over from fishr-gamma0" in outcome.err
    (branch,) = [path.parent for path in tmp_path.glob("*/result.json") if "gamma1" in str(path)]
    result = RunFolder(branch).result_of_done()
    records = RunFolder(branch).records()
    lead = result["shared"]["run"]
    taken = [r for r in RunFolder(tmp_path / lead).records() if r["step"] <= 6]
    assert records[: len(taken)] == taken
    assert result["shared"]["seconds"] >= taken[-1]["seconds"]
    whole = result["seconds"] + result["shared"]["seconds"]
    assert whole >= records[-1]["seconds"] > 0
    assert "2 trained (1 of them with shared steps, which saved about" in outcome.err


def test_a_damaged_trunk_costs_its_steps_only(tmp_path: Path) -> None:
    words = ("-m", "trainer.gamma=0,1,100", "seed=0")
    with pytest.MonkeyPatch.context() as patch:
        stop_before(9, patch)  # of the baseline, which has left the trunk
        assert caller(tmp_path / "a")(*words, tiny=TINY).status == 130
    (state,) = (tmp_path / "a" / ".trunks").glob("*/state.pt")
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    again = caller(tmp_path / "a")(*words, tiny=TINY)
    assert again.status == 0, again.err
    assert "the shared steps are trained again" in again.err
    assert caller(tmp_path / "b")(*words, ALONE, tiny=TINY).status == 0
    assert_equal_sweeps(tmp_path / "a", tmp_path / "b")
    assert len([of for of in shared(tmp_path / "a").values() if of]) == 1


def test_what_was_not_taken_over_to_the_end_is_not_told(tmp_path: Path) -> None:
    words = ("-m", "trainer.gamma=0,1", "seed=0")
    with pytest.MonkeyPatch.context() as patch:
        stop_before(9, patch)
        assert caller(tmp_path)(*words, tiny=TINY).status == 130

    def cut_off(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fishr_exp.training.checkpoint.Checkpoints.save", cut_off)
        assert caller(tmp_path)("trainer.gamma=1", "seed=0", tiny=TINY).status == 130
    assert list(tmp_path.glob("fishr-gamma1-*/shared.json"))
    again = caller(tmp_path)(*words, ALONE, tiny=TINY)
    assert again.status == 0, again.err
    assert set(shared(tmp_path).values()) == {None}
    assert not (tmp_path / ".trunks").exists()


def test_records_that_lack_an_evaluation_are_not_taken_over(tmp_path: Path) -> None:
    words = ("-m", "trainer.gamma=0,1", "seed=0")
    with pytest.MonkeyPatch.context() as patch:
        stop_before(9, patch)
        assert caller(tmp_path)(*words, tiny=TINY).status == 130
    (state,) = (tmp_path / ".trunks").glob("*/state.pt")
    found = torch.load(state, weights_only=True)
    torch.save({**found, "records": []}, state)
    again = caller(tmp_path)(*words, tiny=TINY)
    assert again.status == 0, again.err
    assert "its records are not those of its evaluations" in again.err


def test_other_data_are_not_gone_on_from(tmp_path: Path) -> None:
    words = ("-m", "trainer.gamma=0,1", "seed=0")
    with pytest.MonkeyPatch.context() as patch:
        stop_before(9, patch)
        assert caller(tmp_path)(*words, tiny=TINY).status == 130
    (state,) = (tmp_path / ".trunks").glob("*/state.pt")
    found = torch.load(state, weights_only=True)
    found["data"] = dict.fromkeys(found["data"], "1797 images, digest other")
    torch.save(found, state)
    again = caller(tmp_path)(*words, tiny=TINY)
    assert again.status == 0, again.err
    assert "it is of other data" in again.err
    assert set(shared(tmp_path).values()) == {None}


def test_a_trunk_whose_run_fails_costs_the_others_nothing_but_the_saving(tmp_path: Path) -> None:
    words = ("-m", "trainer.gamma=0,1,100", "seed=0")
    real = "fishr_exp.training.loop.optimizer_step"
    from fishr_exp.core.errors import TrainingError
    from fishr_exp.training import loop

    step = loop.optimizer_step

    def fails(trainer: Any, *rest: Any) -> Any:
        if trainer.gamma == 0 and rest[3] == 3:
            raise TrainingError("no luck")
        return step(trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, fails)
        broken = caller(tmp_path / "a")(*words, tiny=TINY)
    assert broken.status == 1
    assert "no luck" in broken.err
    assert len(list((tmp_path / "a").glob("*/done"))) == 2
    assert [of["steps"] for of in shared(tmp_path / "a").values() if of] == [6]
    again = caller(tmp_path / "a")(*words, "retry_failed=true", tiny=TINY)
    assert again.status == 0, again.err
    assert caller(tmp_path / "b")(*words, ALONE, tiny=TINY).status == 0
    assert_equal_sweeps(tmp_path / "a", tmp_path / "b")


def test_from_scratch_shares_nothing(tmp_path: Path) -> None:
    words = ("-m", "trainer.gamma=0,1", "resume=false")
    outcome = caller(tmp_path)(*words, tiny=TINY)
    assert outcome.status == 0, outcome.err
    assert set(shared(tmp_path).values()) == {None}
    again = caller(tmp_path)(*words, tiny=TINY)
    assert "2 runs: 2 trained" in again.err
    assert again.err.count("evaluating all domains") == 2


def test_only_the_shared_steps_are_made_where_that_is_asked_for(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_before(3, patch)
        assert caller(tmp_path)("-m", "trainer.gamma=0,1", "seed=0", tiny=TINY).status == 130
    one = caller(tmp_path)("trainer.gamma=0", "seed=0", "share_steps=only", tiny=TINY)
    assert one.status == 0, one.err
    assert "the steps that it shares with other runs are trained" in one.err
    assert RunFolder(one.folder).state == "running"
    assert newest_state(one.folder).name == "step-6.pt"
    again = caller(tmp_path)("-m", "trainer.gamma=0,1", "seed=0", tiny=TINY)
    assert again.status == 0, again.err
    assert sorted(of is None for of in shared(tmp_path).values()) == [False, True]


def test_several_processes_make_the_shared_steps_first(tmp_path: Path) -> None:
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    outcome = process(*SWEEP, *TINY, *parallel, f"output_dir={tmp_path / 'a'}")
    err = outcome.communicate()[1]
    assert outcome.returncode == 0, err
    assert "6 runs: 6 trained (4 of them with shared steps" in err
    lines = re.findall(r"\[(\d)/6\] fishr gamma=", err)  # after what a library began, perhaps
    assert lines == [*"123456"], err
    assert caller(tmp_path / "b")(*SWEEP, ALONE, tiny=TINY).status == 0
    assert_equal_sweeps(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "a" / ".trunks").exists()


# --- only what is missing ------------------------------------------------------------------------


def composed(patch: pytest.MonkeyPatch) -> list[object]:
    """Count the configurations of runs that are composed."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    real, count = ConfigLoaderImpl.load_sweep_config, []

    def load(self: Any, *given: Any) -> Any:
        count.append(given)
        return real(self, *given)

    patch.setattr(ConfigLoaderImpl, "load_sweep_config", load)
    return count


def test_a_done_sweep_is_recognized_without_composing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = caller(tmp_path)
    assert call(*SWEEP, tiny=TINY).status == 0
    before = trees(tmp_path)
    monkeypatch.setattr("fishr_exp.cli.run.job", lambda _: pytest.fail("a job was launched"))
    count = composed(monkeypatch)
    again = call(*SWEEP, tiny=TINY)
    assert again.status == 0, again.err
    assert "6 runs: 0 trained, 6 done before" in again.err
    assert count == []
    (tmp_path / ".composed.json").write_text("{")  # damaged: made again
    assert call(*SWEEP, tiny=TINY).status == 0
    assert len(count) == 6
    assert differences(trees(tmp_path), before) == []


def test_each_configuration_is_composed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = composed(monkeypatch)
    assert caller(tmp_path)(*SWEEP, tiny=TINY).status == 0
    assert len(count) == 6


def test_a_run_that_is_missing_is_made(tmp_path: Path) -> None:
    call = caller(tmp_path)
    assert call(*SWEEP, tiny=TINY).status == 0
    lost = next(tmp_path.glob("fishr-gamma100-seed1-*"))
    shutil.rmtree(lost)
    again = call(*SWEEP, tiny=TINY)
    assert again.status == 0, again.err
    assert "6 runs: 1 trained, 5 done before" in again.err
    assert (lost / "done").exists()


def test_all_mistakes_are_found_before_the_first_run_starts(tmp_path: Path) -> None:
    words = ("-m", "trainer.gamma=1,-3,100", "trainer.ema_decay=0.9,7", "seed=0")
    outcome = caller(tmp_path)(*words, tiny=TINY)
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 2
    assert "trainer.gamma=-3.0: " in outcome.err
    assert "trainer.ema_decay=7.0: " in outcome.err
    assert "(in: trainer.gamma=-3 trainer.ema_decay=0.9" in outcome.err
    assert not list(tmp_path.glob("fishr-*"))
    hurried = caller(tmp_path)(*words, "check_first=false", tiny=TINY)
    assert hurried.status == 2
    assert len(list(tmp_path.glob("*/done"))) == 3
    assert hurried.err.count("trainer.ema_decay=7.0: ") >= 3


@pytest.mark.parametrize(
    "word",
    ["batch_size=16,-1", "holdout_fraction=0.2,2", "optimizer.lr=0.1,-1", "precision=fp32,x"],
)
def test_what_needs_no_data_is_found_first(word: str, tmp_path: Path) -> None:
    outcome = caller(tmp_path)("-m", word, "trainer=erm", tiny=(*TINY[:3], *TINY[4:5]))
    assert outcome.status == 2
    assert f"fishr-exp: {word.partition('=')[0]}=" in outcome.err
    assert outcome.announced == ""


def test_a_damaged_folder_stops_no_other_run(tmp_path: Path) -> None:
    call = caller(tmp_path)
    words = ("-m", "trainer.gamma=0,1,2", ALONE)
    assert call(*words, tiny=TINY).status == 0
    damaged, lost = next(tmp_path.glob("*gamma1-*")), next(tmp_path.glob("*gamma2-*"))
    (damaged / "done").unlink()
    (damaged / "result.json").write_text("{")
    shutil.rmtree(lost)
    again = call(*words, tiny=TINY)
    assert again.status == 2
    assert "result.json" in again.err
    assert (lost / "done").exists()


def test_a_failed_run_is_named_and_not_started_again(tmp_path: Path) -> None:
    from fishr_exp.core.errors import TrainingError

    def fails(*_: Any) -> Any:
        raise TrainingError("no luck")

    words = ("-m", "trainer.gamma=0,1", ALONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fishr_exp.training.loop.optimizer_step", fails)
        assert caller(tmp_path)(*words, tiny=TINY).status == 1
    again = caller(tmp_path)(*words, tiny=TINY)
    assert again.status == 1
    assert "2 runs: 0 trained, 2 failed" in again.err
    assert "retry_failed=true" in again.err
    assert (
        "check_first=maybe: must be true or false"
        in caller(tmp_path)(*words, "check_first=maybe", tiny=TINY).err
    )
    assert "must be true, false or only" in caller(tmp_path)("share_steps=maybe", tiny=TINY).err
    assert again.announced == ""  # nothing was launched
    once_more = caller(tmp_path)(*words, "retry_failed=true", tiny=TINY)
    assert once_more.status == 0
    assert "2 runs: 2 trained" in once_more.err


def test_a_mistake_that_is_found_late_is_said_once(tmp_path: Path, images: Path) -> None:
    """Runs on other data are started."""
    words = ("-m", "dataset=image_folder", "test_domains=[sketch]", "dataset.image_size=8", ALONE,
             "model=mlp", "trainer=erm,fishr", "seed=0,1", "batch_size=4")  # fmt: skip
    outcome = caller(tmp_path / "runs")(*words, "dataset.root=/nowhere")
    assert outcome.status == 2
    assert outcome.err.count("dataset.root=/nowhere: ") == 1
    assert "3 more runs have the same setting, and will not be started" in outcome.err
    assert "4 runs: 0 trained, 1 failed, 3 without a result" in outcome.err
    outcome = caller(tmp_path / "runs")(*words, f"dataset.root=/nowhere,{images}")
    assert outcome.status == 2
    assert "8 runs: 4 trained, 1 failed, 3 without a result" in outcome.err
    assert len(list((tmp_path / "runs").glob("*/done"))) == 4
    for word, group in (("model=resnet18 model.weights_file=package:absent", "model.weights_file"),
                        ("test_domains=[absent]", "test_domains")):  # fmt: skip
        outcome = caller(tmp_path / group)(*words, f"dataset.root={images}", *word.split(), tiny=())
        assert outcome.err.count(f"fishr-exp: {group}=") == 2, outcome.err  # of ERM, and of Fishr
        assert outcome.err.count("1 more run has the same setting, and will not be started") == 2
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    waves = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.sweeper.max_batch_size=2")
    outcome = caller(tmp_path / "waves")(*words, "dataset.root=/nowhere", *waves)
    assert "2 more runs have the same setting, and will not be started" in outcome.err
    assert "4 runs: 0 trained, 2 failed, 2 without a result" in outcome.err


def test_a_sweep_makes_shared_steps_first_by_itself(tmp_path: Path) -> None:
    outcome = caller(tmp_path)("-m", "trainer.gamma=0,1", "share_steps=only", tiny=TINY)
    assert outcome.status == 2
    assert "share_steps=only: is for one run" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["${hydra.job.num}", "${hydra.job.override_dirname}"])
def test_folders_that_are_named_by_hydra_stay_what_they_are(name: str, tmp_path: Path) -> None:
    words = ("-m", "trainer.gamma=0,1", f"hydra.sweep.subdir=run{name}")
    words = (*words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *TINY)
    out = f"hydra.sweep.dir={tmp_path}"
    first = process(*words, "seed=0", out)
    assert first.communicate()[1].count("[2/2]") == 1
    shutil.rmtree(min(tmp_path.glob("run*")))
    again = process(*words, "seed=0", out)
    err = again.communicate()[1]
    assert again.returncode == 0, err
    assert "2 runs: 1 trained, 1 done before" in err
    assert len(list(tmp_path.glob("run*/done"))) == 2
    assert not list(tmp_path.glob("*sweep_position*"))


def test_options_that_say_whether_to_resume_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    for name, resume in (("fresh", "false"), ("again", "true")):
        text = f"# @package _global_\nresume: {resume}\nseed: {3 if name == 'fresh' else 4}\n"
        (tmp_path / "conf" / "experiment" / f"{name}.yaml").write_text(text)
    words = ("-m", f"--config-dir={tmp_path / 'conf'}", "experiment=fresh,again", "trainer.gamma=1")
    assert caller(tmp_path / "runs")(*words, tiny=TINY).status == 0
    again = caller(tmp_path / "runs")(*words, tiny=TINY)
    assert "2 runs: 1 trained, 1 done before" in again.err


# --- the order, and what is said ------------------------------------------------------------------


def test_baselines_come_first_then_each_gamma_before_more_seeds(tmp_path: Path) -> None:
    words = ("-m", "trainer.gamma=1,10", "seed=0,1,2", "total_steps=1", "steps_per_epoch=1")
    outcome = caller(tmp_path)(*words, tiny=(*TINY[:1], *TINY[3:]))
    assert outcome.status == 0, outcome.err
    said = re.findall(r"^\[(\d)/9\] fishr gamma=(\d+) seed=(\d) ", outcome.err, re.MULTILINE)
    assert [int(place) for place, _, _ in said] == [*range(1, 10)]
    order = [(int(gamma), int(seed)) for _, gamma, seed in said]
    baselines = [(0, 0), (0, 1), (0, 2)]
    assert order == [*baselines, (1, 0), (10, 0), (1, 1), (10, 1), (1, 2), (10, 2)]


def test_a_line_for_each_run_says_what_it_came_to_and_what_is_left(tmp_path: Path) -> None:
    outcome = caller(tmp_path)("-m", "trainer.gamma=0,1", tiny=TINY)
    line = (
        r"\[1/2\] fishr gamma=0 seed=0 \[minus90\]: test \d+\.\d %, validation \d+\.\d %, "
        r"\d+(\.\d)? s; about .* left"
    )
    assert re.search(line, outcome.err), outcome.err
    assert f"table: fishr-table {tmp_path}" in outcome.err


def made_by(outcome: subprocess.Popen[str]) -> str:
    out, err = outcome.communicate(timeout=300)
    assert outcome.returncode == 0, err
    return out + err


def test_two_commands_share_the_runs_to_the_end(tmp_path: Path) -> None:
    words = (*SWEEP, *TINY, "total_steps=60", "steps_per_epoch=20", f"output_dir={tmp_path}")
    first = process(*words)
    while not list(tmp_path.glob("*/environment.json")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second = process(*words)
    said = [made_by(first), made_by(second)]
    assert sum(text.count("evaluating all domains") for text in said) == 6
    assert all("6 runs: " in text for text in said)
    made = [int(re.search(r"6 runs: (\d) trained", text)[1]) for text in said]
    assert sum(made) == 6
    assert len(list(tmp_path.glob("*/done"))) == 6


def test_a_run_that_another_command_makes_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done when the job of this command looks into its folder."""
    others = tmp_path / "others"
    assert caller(others)("-m", "trainer.gamma=0,1", tiny=TINY).status == 0
    attempt = launching._attempt

    def too_late(runs: Sequence[SweptRun], *rest: Any) -> list[SweptRun]:
        for run in runs:
            if run.is_baseline:
                shutil.copytree(others / run.folder.name, run.folder)
        return attempt(runs, *rest)

    monkeypatch.setattr(launching, "_attempt", too_late)
    outcome = caller(tmp_path / "runs")("-m", "trainer.gamma=0,1", tiny=TINY)
    assert outcome.status == 0, outcome.err
    assert "2 runs: 1 trained, 1 trained by another command" in outcome.err


def test_the_position_in_the_sweep_is_told_to_the_tracker(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = ("-m", "trainer.gamma=0,1", "tracker=mlflow", f"tracker.tracking_uri={uri}")
    outcome: Outcome = caller(tmp_path / "runs")(*words, tiny=(*TINY[:4], TINY[5]))
    assert outcome.status == 0, outcome.err
    client = MlflowClient(uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert sorted(run.data.tags["sweep_position"] for run in runs) == ["1/2", "2/2"]
    assert len({run.data.tags["sweep"] for run in runs}) == 1
