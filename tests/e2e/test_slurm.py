"""A sweep through submitit: what Slurm does to its jobs on the way changes nothing in the end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus

from fishr_exp.configuration.sweeping.progress import Progress
from fishr_exp.configuration.sweeping.runs import SweptRun
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.training.trunk import Trunk

from .conftest import TINY, caller, newest_state, process
from .test_kills import shown, trees
from .test_runs import differences
from .test_sweeps import ALONE, assert_equal_sweeps, shared

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")

STEPS = 1500  # an epoch: Slurm lets a job that it takes away go on for some seconds
SWEEP = ("-m", "trainer.gamma=0,100", "seed=0,1", "epochs=2", f"steps_per_epoch={STEPS}",
         "model.hidden=8", "observer=last_step", "tracker=none", "device=cpu",
         "checkpoint_every=1s")  # fmt: skip


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """What sends a sweep through Slurm; skips without a node, or accounts of how a job ended."""
    if shutil.which("sinfo") is None:
        pytest.skip("no Slurm here: there is no sinfo")
    if not set(said("sinfo", "-h", "-o", "%t").split()) & {"idle", "mix", "alloc", "comp"}:
        pytest.skip("no node of Slurm is up: see sinfo")
    if subprocess.run(["sacct"], capture_output=True, check=False).returncode:
        pytest.skip("this Slurm keeps no accounts, and a cancelled job is waited for for ever")
    seconds = re.search(r"KillWait\s*= (\d+)", said("scontrol", "show", "config"))
    if seconds is None or int(seconds[1]) > 10:
        pytest.skip("this Slurm lets a job go on for so long that the runs here would be over")
    name = f"{tmp_path.name}-{uuid.uuid4().hex[:8]}"  # Slurm's accounts know the jobs of before
    yield "hydra/launcher=submitit_slurm", f"hydra.launcher.name={name}"
    subprocess.run(["scancel", f"--name={name}"], check=False)


def said(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def wait_until(holds: Callable[[], object], running: subprocess.Popen[str]) -> None:
    while not holds():
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.1)


@pytest.mark.slurm
@pytest.mark.timeout(1800)
def test_a_requeued_a_preempted_and_a_cancelled_job_leave_the_sweep_as_it_would_be(
    slurm: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, whole = tmp_path / "runs", tmp_path / "whole"
    words = (*SWEEP, *slurm, f"output_dir={runs}")
    sweep = process(*words)

    def run(gamma: int, seed: int) -> RunFolder:
        return RunFolder(next(runs.glob(f"fishr-gamma{gamma}-seed{seed}-*"), runs / "none"))

    def in_training(folder: Callable[[], RunFolder]) -> None:
        wait_until(lambda: list(folder().checkpoints.glob("step-*.pt")), sweep)

    def pending(job: str) -> bool:
        return said("squeue", "-h", "-j", job, "-o", "%T").split() == ["PENDING"]

    in_training(lambda: run(0, 0))
    (array,) = {path.name.split("_")[0] for path in (runs / ".submitit").glob("*_0")}
    subprocess.run(["scontrol", "requeue", f"{array}_0"], check=True)
    in_training(lambda: run(0, 1))
    subprocess.run(["scancel", f"{array}_1"], check=True)
    in_training(lambda: run(100, 0))
    subprocess.run(["scancel", "--signal=USR2", f"{array}_2"], check=True)  # submitit requeues
    steps = {}
    for job, folder in ((f"{array}_0", run(0, 0)), (f"{array}_2", run(100, 0))):
        wait_until(lambda job=job: pending(job), sweep)
        steps[folder.path] = int(newest_state(folder.path).stem.removeprefix("step-"))
        assert folder.state == "running"
        # Slurm would let it wait for two minutes.
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    err = sweep.communicate()[1]
    assert sweep.returncode == 1, err
    head, line = err.splitlines()[-2:]
    assert head == "fishr-exp: 1 job without a result; the same command tries again:"
    assert line.startswith(f"fishr-exp:   {array}_1 trainer.gamma=0 seed=1: CANCELLED by ")
    assert Path(line.rpartition(" ")[2]).exists()  # its log
    lost = run(0, 1)
    assert [path.name for path in runs.glob("fishr-*") if not (path / "done").exists()] == [
        lost.path.name
    ]
    steps[lost.path] = int(newest_state(lost.path).stem.removeprefix("step-"))

    again = process(*words)
    err = again.communicate()[1]
    assert again.returncode == 0, err
    logs = {path: (path / "fishr-exp.log").read_text() for path in runs.glob("fishr-*")}
    assert "4 runs: 1 trained, 3 done before" in err
    for path, log in logs.items():
        expected = [str(steps[path])] if path in steps else []
        assert re.findall(r"after step (\d+)", log) == expected
    assert all(step % STEPS for step in steps.values())  # in the middle of an epoch

    assert caller(whole)(*SWEEP, tiny=()).status == 0
    capsys.readouterr()
    assert shown(runs, capsys) == shown(whole, capsys)
    assert differences(trees(whole), trees(runs)) == []


@pytest.mark.slurm
def test_a_job_out_of_time_stops_after_a_checkpoint_unless_it_may_be_requeued(
    slurm: tuple[str, ...], tmp_path: Path
) -> None:
    # Slurm gives notice up to a minute early, and by then the run is to be in training.
    limit = ("hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=20")
    words = (
        *SWEEP,
        "trainer.gamma=1",
        "seed=0",
        "epochs=1",
        "steps_per_epoch=100000",
        "checkpoint_every=null",
    )
    sweep = process(*words, *slurm, *limit, f"output_dir={tmp_path}")
    err = sweep.communicate()[1]
    assert sweep.returncode == 128 + signal.SIGUSR2, err
    assert "the same command resumes from the last checkpoint (Job not requeued because: " in err
    (folder,) = tmp_path.glob("fishr-*")
    assert RunFolder(folder).state == "running"
    assert newest_state(folder).exists()


# --- shared steps -------------------------------------------------------------------------------

SHARED = ("-m", "trainer.gamma=1,100", "seed=0", "model.hidden=8", "steps_per_epoch=100",
          "total_steps=400", "trainer.anneal_steps=250", "tracker=none", "device=cpu",
          "checkpoint_every=1s")  # fmt: skip


def jobs_of(name: str) -> dict[str, str]:
    """The states of all jobs of a name that Slurm has had, by id."""
    lines = said("sacct", "-X", "-n", "-P", f"--name={name}", "-o", "jobid,state").splitlines()
    return dict(line.split("|") for line in lines)


def queued(name: str) -> dict[str, str]:
    """What the jobs of a name that have not ended depend on, by id."""
    lines = said("squeue", "-h", "-r", f"--name={name}", "-o", "%i|%E").splitlines()
    return {job: after for job, _, after in (line.partition("|") for line in lines)}


def submitted(name: str, sweep: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait until both arrays of a sweep of three runs are queued; return their ids."""
    wait_until(lambda: len(queued(name)) == 4, sweep)
    first, second = sorted({int(job.partition("_")[0]) for job in queued(name)})
    return str(first), str(second)


def assert_as_alone(runs: Path, alone: Path) -> None:
    assert caller(alone)(*SHARED, ALONE, tiny=()).status == 0
    assert_equal_sweeps(runs, alone)
    assert not (runs / ".trunks").exists()


@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_runs_that_share_steps_are_a_second_array_that_starts_after_the_first(
    slurm: tuple[str, ...], tmp_path: Path
) -> None:
    runs, name = tmp_path / "runs", slurm[1].partition("=")[2]
    own = "+hydra.launcher.additional_parameters={comment:mine,dependency:singleton}"
    words = (*SHARED, *slurm, own, f"output_dir={runs}")
    sweep = process(*words)
    first, second = submitted(name, sweep)
    after = {after for job, after in queued(name).items() if job.startswith(f"{second}_")}
    assert len(after) == 1
    assert f"afterany:{first}" in after.copy().pop()
    assert "singleton" in after.pop()
    assert said("squeue", "-h", "-j", second, "-o", "%k").split() == ["mine"]
    err = sweep.communicate()[1]
    assert sweep.returncode == 0, err
    assert re.findall(r"^\[(\d)/3\] fishr gamma=", err, re.MULTILINE) == ["1", "2", "3"]
    assert "3 runs: 3 trained (2 of them with shared steps" in err
    expected = dict.fromkeys([first, *(f"{second}_{task}" for task in range(3))], "COMPLETED")
    assert jobs_of(name) == expected

    again = process(*words)
    assert "3 runs: 0 trained, 3 done before" in again.communicate()[1]
    assert again.returncode == 0
    assert jobs_of(name) == expected  # nothing was submitted
    assert_as_alone(runs, tmp_path / "alone")


@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_a_cancelled_job_costs_shared_steps_or_its_own_run(
    slurm: tuple[str, ...], tmp_path: Path
) -> None:
    runs, name = tmp_path / "runs", slurm[1].partition("=")[2]
    one = "hydra.launcher.array_parallelism=1"  # else gamma 1 may begin beside gamma 0, and alone
    words = (*SHARED, *slurm, one, f"output_dir={runs}")
    sweep = process(*words)
    first, second = submitted(name, sweep)
    subprocess.run(["scancel", first], check=True)
    last = f"{second}_2"  # Slurm keeps no account of one that never began
    wait_until(lambda: said("squeue", "-h", "-j", last, "-o", "%T").split() == ["RUNNING"], sweep)
    subprocess.run(["scancel", last], check=True)
    err = sweep.communicate()[1]
    assert sweep.returncode == 1, err
    head, line = err.splitlines()[-2:]
    # The run of the first array is made in the second one.
    assert head == "fishr-exp: 1 job without a result; the same command tries again:"
    assert line.startswith(f"fishr-exp:   {second}_2 trainer.gamma=100: CANCELLED by ")
    assert "3 runs: 2 trained (1 of them with shared steps" in err
    assert "1 failed" in err
    again = process(*words)
    err = again.communicate()[1]
    assert again.returncode == 0, err
    assert "3 runs: 1 trained (1 of them with shared steps" in err
    assert len(jobs_of(name)) == 5
    assert_as_alone(runs, tmp_path / "alone")


@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_jobs_go_on_without_the_command_and_past_a_requeue(
    slurm: tuple[str, ...], tmp_path: Path
) -> None:
    runs, name = tmp_path / "runs", slurm[1].partition("=")[2]
    words = (*SHARED, *slurm, f"output_dir={runs}")
    sweep = process(*words)
    first, _ = submitted(name, sweep)
    wait_until(lambda: list(runs.glob("*/environment.json")), sweep)
    sweep.kill()
    sweep.communicate()
    subprocess.run(["scontrol", "requeue", first], check=True)
    while said("squeue", "-h", "-j", first, "-o", "%T").split() != ["PENDING"]:
        time.sleep(0.1)
    assert len(queued(name)) == 4
    subprocess.run(["scontrol", "update", f"JobId={first}", "StartTime=now"], check=True)
    while queued(name):
        time.sleep(0.5)
    again = process(*words)
    err = again.communicate()[1]
    assert again.returncode == 0, err
    assert "3 runs: 0 trained, 3 done before" in err
    assert len(jobs_of(name)) == 4
    assert sorted(of is None for of in shared(runs).values()) == [False, False, True]
    assert_as_alone(runs, tmp_path / "alone")


@pytest.mark.parametrize(
    ("parallel", "own", "arrays", "after"),
    [
        (256, {"qos": "low"}, [[1], [1, 2, 3], [4, 5]], "afterany:100"),
        (5, {"dependency": "afterok:7"}, [[1], [1, 2, 3], [4, 5]], "afterok:7,afterany:100"),
        (4, {"dependency": "afterok:7?afterok:8"}, [[1], [1, 2, 3, 4, 5]], "afterany:100"),
    ],
)
def test_the_arrays_of_a_sweep(
    parallel: int, own: dict[str, str], arrays: list[list[int]], after: str, tmp_path: Path
) -> None:
    from submitit.core.core import Job

    from fishr_exp.configuration.sweeping.cluster import through_slurm

    trunk = Trunk(tmp_path / "trunk", 5, {})
    runs = [
        SweptRun((f"seed={n}",), tmp_path / str(n), n, trunk=trunk if n < 4 else None)
        for n in range(1, 6)
    ]
    params: dict[str, Any] = {"array_parallelism": parallel, "additional_parameters": own}
    launched: list[tuple[list[int], tuple[str, ...], dict[str, str]]] = []

    class Ended(Job):  # type: ignore[type-arg, misc]
        _cancel_at_deletion = False

        def __init__(self, array: int, task: int) -> None:
            self._job_id = f"{array}_{task}"

    def launch(given: Any, words: Any) -> list[JobReturn]:
        positions = [run.position for run in given]
        launched.append((positions, tuple(words), params["additional_parameters"]))
        jobs = [Ended(99 + len(launched), task) for task in range(len(given))]
        return [job.results()[0] for job in jobs]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "results", lambda job: [JobReturn(status=JobStatus.COMPLETED)])
        patch.setattr(SweptRun, "is_done", True)
        through_slurm(runs, launch, Progress(0, 0, runs), SimpleNamespace(params=params))
    assert [positions for positions, _, _ in launched] == arrays
    assert [words for _, words, _ in launched] == [("share_steps=only",), (), ()][: len(launched)]
    expected = [own, {**own, "dependency": after}, own]
    assert [given for _, _, given in launched] == expected[: len(launched)]
    assert params["additional_parameters"] == own


# --- without Slurm: submitit's processes on this machine -----------------------------------------

LOCAL = ("-m", "hydra/launcher=submitit_local", *TINY)


@pytest.mark.slow
def test_a_mistake_in_a_job_is_told_by_the_command(tmp_path: Path) -> None:
    words = (*LOCAL, "seed=0", "test_domains=[minus90],[minus9]", f"output_dir={tmp_path}")
    sweep = process(*words)
    err = sweep.communicate()[1]
    assert sweep.returncode == 2, err
    head, line = err.splitlines()[-2:]
    assert head == "fishr-exp: 1 job without a result; the same command tries again:"
    assert " test_domains=[minus9]: test_domains=[minus9]: colored_digits has no domain" in line
    assert len(list(tmp_path.glob("*/done"))) == 1


@pytest.mark.slow
def test_a_job_that_is_killed_does_not_end_the_wait_for_the_others(tmp_path: Path) -> None:
    words = (*LOCAL, "epochs=4", "steps_per_epoch=400", "seed=0,1", f"output_dir={tmp_path}")
    sweep = process(*words)
    wait_until(lambda: len(list(tmp_path.glob("*/environment.json"))) == 2, sweep)
    job = min(int(path.name) for path in tmp_path.glob(".submitit/[0-9]*"))
    children = Path(f"/proc/{job}/task/{job}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    err = sweep.communicate()[1]
    assert sweep.returncode == 1, err
    *_, head, line = err.splitlines()
    assert head == "fishr-exp: 1 job without a result; the same command tries again:"
    assert line.startswith(f"fishr-exp:   {job} seed=0: FINISHED; its log is ")
    (done,) = tmp_path.glob("*/done")
    assert "-seed1-" in done.parent.name
    again = process(*words)
    assert again.wait() == 0
    assert len(list(tmp_path.glob("*/done"))) == 2
