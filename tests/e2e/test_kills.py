"""Nothing is lost: sweeps killed at any moment, disks that fill, files that spoil, memory gone."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

from fishr_exp.cli import run as cli
from fishr_exp.cli import table as table_cli
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.training.early_stopping import EarlyStopping
from fishr_exp.training.prepare import prepare

from .conftest import TINY, Command, Outcome, newest_state, process
from .test_runs import assert_same_run, differences, without_seconds

SMALL = ("model.hidden=8", "tracker=none", "dataset=colored_digits")
SWEEP = ("-m", "trainer.gamma=0,100", "seed=0,1", "epochs=8", "steps_per_epoch=25",
         "trainer.ema_decay=0.9", "trainer.anneal_steps=60", "checkpoint_every=4",
         "scheduler=cosine", "clip_norm=1", "sampling=class_balanced", "optimizer=adamw",
         *SMALL)  # fmt: skip


def forked(call: Callable[[], None], quiet: Path) -> int:
    """Run `call` in a fork of this process, which has imported everything; return its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tqdm.set_lock(threading.RLock())  # a process that is killed would keep the common one
        out = os.open(quiet, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        status = 0
        call()
    except SystemExit as stop:
        status = int(stop.code or 0)
    except KeyboardInterrupt:  # before the command could note it
        status = 128 + signal.SIGINT
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command(*words: str) -> Callable[[], None]:
    def call() -> None:
        sys.argv = ["fishr-exp", *words]
        os.environ["HYDRA_FULL_ERROR"] = "0"
        cli.main()

    return call


def ended(pid: int, seconds: float = 240) -> int:
    """Wait for a fork and return its exit code; one that hangs is killed, with all it started."""
    until = time.monotonic() + seconds
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"process {pid} did not end within {seconds} s")
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(found[1])


def trees(runs: Path) -> dict[str, Any]:
    """All that the runs of a sweep leave, by folder, without times."""
    return {
        path.name: [
            without_seconds([json.loads(line) for line in (path / "records.jsonl").open()]),
            without_seconds(json.loads((path / "result.json").read_text())),
            torch.load(newest_state(path), weights_only=True),
            torch.load(path / "checkpoints" / "best.pt", weights_only=True),
        ]
        for path in sorted(runs.glob("fishr-*"))
    }


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_a_sweep_killed_at_random_moments_is_the_whole_sweep(
    tmp_path: Path, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, log = tmp_path / "whole", tmp_path / "log"
    began = time.monotonic()
    assert ended(forked(command(*SWEEP, f"output_dir={whole}"), log)) == 0
    length = time.monotonic() - began

    draw = random.Random(kills)
    folders: list[Path] = []
    statuses: list[int] = []
    done = True
    while len(statuses) < kills or not done:
        if done:
            folders.append(tmp_path / f"killed{len(folders)}")
        pid = forked(command(*SWEEP, f"output_dir={folders[-1]}"), log)
        number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        if len(statuses) < kills:
            time.sleep(draw.uniform(0, 0.5 + 2 * length / kills))
            os.kill(pid, number)
        status = ended(pid)
        done = status == 0
        if not done:
            # Outside of the training, a signal does to the process what it does to any.
            assert status in (-number, 128 + number), log.read_text()[-2000:]
            statuses.append(status)
        for path in folders[-1].glob("fishr-*"):
            assert RunFolder(path).state in ("planned", "running", "done")
    assert {128 + signal.SIGTERM, 128 + signal.SIGINT} & set(statuses)

    capsys.readouterr()
    expected, table = trees(whole), shown(whole, capsys)
    for folder in folders:
        assert differences(expected, trees(folder)) == []
        assert shown(folder, capsys) == table
        assert not list(folder.rglob("*.tmp"))


def shown(runs: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert table_cli.main([str(runs)]) == 0
    return capsys.readouterr().out.replace(str(runs), "")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_step_and_saves_it(
    fishr_exp: Command, tmp_path: Path, number: signal.Signals
) -> None:
    words = ("epochs=1", "steps_per_epoch=1500", "observer=last_step", "trainer.ema_decay=0.9",
             "checkpoint_every=null", "batch_size=8", "num_workers=1", *SMALL)  # fmt: skip
    folder, log = tmp_path / "runs" / "halves", tmp_path / "log"
    pid = forked(command(*words, f"hydra.run.dir={folder}"), log)
    while not log.exists() or "1500 steps on" not in log.read_text():
        time.sleep(0.01)
    time.sleep(0.6)
    os.killpg(pid, number)  # as a terminal does: the workers get it too
    assert ended(pid) == 128 + number, log.read_text()
    said = "fishr-exp: stopped; the same command resumes from the last checkpoint"
    assert log.read_text().splitlines()[-1] == said
    assert "Traceback" not in log.read_text()
    state = torch.load(newest_state(folder), weights_only=True)
    assert 0 < state["step"] < 1500
    assert len(state["logged"]["risk"]) == state["step"]
    assert RunFolder(folder).state == "running"
    assert not (folder / "result.json").exists()
    continued = fishr_exp(*words, f"hydra.run.dir={folder}", tiny=())
    assert f"continuing {folder} after step {state['step']}\n" in continued.err
    assert_same_run(fishr_exp(*words, f"hydra.run.dir={tmp_path}/runs/whole", tiny=()), continued)


def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(
    fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fishr_exp.training import evaluation

    real, seen = evaluation.predictions, []

    def predictions(logits: torch.Tensor) -> torch.Tensor:
        seen.append(len(logits))
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(logits)

    words = ("evaluation_batch_size=20", "model.hidden=8", "epochs=2", "steps_per_epoch=2")
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "predictions", predictions)
        stopped = fishr_exp(*words, f"hydra.run.dir={tmp_path}/runs/halves")
    assert (stopped.status, len(seen)) == (143, 3)
    assert stopped.records() == []
    continued = fishr_exp(*words, f"hydra.run.dir={tmp_path}/runs/halves")
    assert "after step 2\n" in continued.err
    assert_same_run(fishr_exp(*words, f"hydra.run.dir={tmp_path}/runs/whole"), continued)


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (SystemExit(255), 255, []),  # it is in the launcher's queue again
        (RuntimeError("too often"), 128 + signal.SIGUSR2, [f"fishr-exp: {cli.STOPPED}"]),
    ],
)
def test_a_launcher_that_ends_the_run_has_not_made_it_fail(
    fishr_exp: Command, tmp_path: Path, answer: BaseException, status: int, said: list[str]
) -> None:
    from fishr_exp.training import loop

    def handle(number: int, frame: object) -> None:
        raise answer

    def step(*args: Any) -> Any:
        if args[4] == 2:
            os.kill(os.getpid(), signal.SIGUSR2)
        return real(*args)

    real, here = loop.optimizer_step, f"hydra.run.dir={tmp_path}/runs/halves"
    earlier = signal.signal(signal.SIGUSR2, handle)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "optimizer_step", step)
            stopped = fishr_exp(here)
    finally:
        signal.signal(signal.SIGUSR2, earlier)
    assert stopped.status == status
    assert [line for line in stopped.err.splitlines() if line.startswith("fishr-exp:")] == said
    assert RunFolder(stopped.folder).state == "running"
    continued = fishr_exp(here)
    assert "after step 3\n" in continued.err
    assert_same_run(fishr_exp(f"hydra.run.dir={tmp_path}/runs/whole"), continued)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_all_jobs_of_a_parallel_sweep(
    tmp_path: Path, number: signal.Signals
) -> None:
    words = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.gamma=0,1",
             "seed=0,1", "epochs=1", "steps_per_epoch=3000", "checkpoint_every=null",
             *SMALL, f"output_dir={tmp_path}")  # fmt: skip
    running = process(*words)
    while len(list(tmp_path.glob("*/environment.json"))) < 2:
        assert running.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    running.send_signal(number)
    err = running.communicate()[1]
    assert running.returncode == 128 + number, err
    assert "Traceback" not in err
    said = "fishr-exp: stopped; the same command resumes"  # joblib may warn after it
    assert any(line.startswith(said) for line in err.splitlines())
    half = [newest_state(path.parent) for path in tmp_path.glob("*/environment.json")]
    assert len(half) == 2
    again = process(*words)
    err = again.communicate()[1]
    assert again.returncode == 0, err
    assert err.count("continuing") == 2
    assert len(list(tmp_path.glob("*/done"))) == 4


def test_two_sweeps_at_once_share_the_jobs(tmp_path: Path) -> None:
    words = (*SWEEP, f"output_dir={tmp_path / 'runs'}")
    logs = [tmp_path / "one", tmp_path / "two"]
    pids = [forked(command(*words), log) for log in logs]
    statuses = [ended(pid) for pid in pids]
    said = "".join(log.read_text() for log in logs)
    made = said.count("evaluating all domains")
    assert made == 4, said  # each run was made once
    assert statuses == [0, 0], said  # each continues until all are done, by whichever
    for log in logs:
        assert "4 runs: " in log.read_text()
    assert len(list((tmp_path / "runs").glob("*/done"))) == 4


def test_a_run_that_another_process_has_made_meanwhile_is_not_made_again(
    fishr_exp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Outcome] = []

    def prepare_late(arguments: Any) -> Any:
        monkeypatch.setattr("fishr_exp.training.run.prepare", prepare)
        made.append(fishr_exp())
        return prepare(arguments)

    monkeypatch.setattr("fishr_exp.training.run.prepare", prepare_late)
    second = fishr_exp()
    assert second.status == 0
    assert "done already" in second.err
    assert "evaluating all domains" in made[0].err
    assert "evaluating all domains" not in second.err
    assert second.result() == made[0].result()


# --- what goes wrong with files ----------------------------------------------------------------


def stopped_at(fishr_exp: Command, step: int, *words: str) -> Outcome:
    from .test_runs import stop_before

    with pytest.MonkeyPatch.context() as patch:
        stop_before(step, patch)
        return fishr_exp(*words)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    fishr_exp: Command, tmp_path: Path
) -> None:
    words = ("checkpoint_every=3", "epochs=3", "steps_per_epoch=4")
    here = f"hydra.run.dir={tmp_path}/runs/halves"
    stopped = stopped_at(fishr_exp, 10, *words, here)
    damage(newest_state(stopped.folder))
    continued = fishr_exp(*words, here)
    warning = (
        "step-9.pt is not a readable checkpoint (ValueError): continuing from the one before, step"
    )
    assert warning in continued.err
    assert "after step 8\n" in continued.err
    assert_same_run(fishr_exp(*words, f"hydra.run.dir={tmp_path}/runs/whole"), continued)
    left = sorted(path.name for path in (continued.folder / "checkpoints").glob("*"))
    assert left == ["best.pt", "step-12.pt"]


def test_a_signal_at_the_end_of_a_run_is_not_lost(
    fishr_exp: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = RunFolder.finish

    def finish(folder: RunFolder, result: Any) -> None:
        real(folder, result)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "finish", finish)
    assert fishr_exp("-m", "seed=0,1").status == 143
    assert len(list((tmp_path / "runs").glob("*/done"))) == 1


def test_who_is_refused_leaves_the_folder_of_the_other(fishr_exp: Command, tmp_path: Path) -> None:
    here = tmp_path / "runs" / "r"
    with RunFolder(here) as other:
        other.acquire()  # and has written nothing yet
        refused = fishr_exp(f"hydra.run.dir={here}")
        assert "another process is running" in refused.err
        assert (here / ".lock").exists()
        other.open({})


def test_losses_of_an_epoch_are_on_one_device_after_a_resume(
    fishr_exp: Command, tmp_path: Path
) -> None:
    """On a CUDA device, a checkpoint is read onto the CPU; `meta` stands for the device here."""
    from fishr_exp.training.loop import Training

    stopped = stopped_at(fishr_exp, 3, "checkpoint_every=1", f"hydra.run.dir={tmp_path}/runs/r")
    state = torch.load(newest_state(stopped.folder), weights_only=True)
    assert len(state["logged"]["risk"]) == 1
    training = Training.__new__(Training)
    model = torch.nn.Linear(1, 1, device="meta")
    training.model = model  # type: ignore[assignment]
    with pytest.raises(RuntimeError):  # what follows is the model's state, another one
        training.load_state_dict(state)
    assert {value.device.type for values in training.logged.values() for value in values} == {
        "meta"
    }


def test_a_checkpoint_of_other_settings_is_refused(fishr_exp: Command, tmp_path: Path) -> None:
    here, there = (f"hydra.run.dir={tmp_path}/runs/{name}" for name in ("here", "there"))
    other = fishr_exp("trainer.gamma=7", there)
    stopped = stopped_at(fishr_exp, 3, "trainer.gamma=8", here)
    newest_state(stopped.folder).write_bytes(newest_state(other.folder).read_bytes())
    refused = fishr_exp("trainer.gamma=8", here)
    assert refused.status == 2
    assert "step-2.pt: a checkpoint of a run with other settings" in refused.err
    assert "trainer.gamma (7 there, 8 here)" in refused.err
    assert fishr_exp("trainer.gamma=8", here, "resume=false").status == 0


@pytest.fixture
def mounted(tmp_path: Path) -> Any:
    """Mount a file system at a new folder; taken down in the end."""
    folders = []

    def mount(*options: str) -> Path:
        folder = tmp_path / f"mounted{len(folders)}"
        folder.mkdir()
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.decode().strip()}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_loses_nothing(fishr_exp: Command, tmp_path: Path, mounted: Any) -> None:
    disk = mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs")
    words = ("model.hidden=64", "epochs=40", "seed=3")
    filler = disk / "filler"
    here = f"hydra.run.dir={disk}/run"
    stopped = stopped_at(fishr_exp, 6, *words, here)
    assert stopped.status == 130
    filler.write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 8192))
    full = fishr_exp(*words, here)
    assert full.status == 1
    assert "No space left on device" in full.err
    assert "Traceback" not in full.err
    filler.unlink()
    continued = fishr_exp(*words, here, "retry_failed=true")
    assert continued.status == 0, continued.err
    assert "continuing" in continued.err
    whole = fishr_exp(*words, f"hydra.run.dir={tmp_path}/runs/whole")
    there = Outcome(0, "", "", disk / "run")
    assert_same_run(whole, there)


@pytest.mark.parametrize("free", [0, 8, 20, 60])
def test_a_sweep_on_a_full_disk_goes_on_and_names_what_failed(
    fishr_exp: Command, mounted: Any, free: int
) -> None:
    disk = mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs")
    words = ("-m", "trainer.gamma=0,1", "seed=0,1", f"output_dir={disk}/runs")
    (disk / "filler").write_bytes(bytes(2**21 - 1024 * free))
    full = fishr_exp(*words)
    assert "Traceback" not in full.err
    assert "No space left on device" in full.err
    if free:
        assert full.status == 1
        last = full.err.split("without a result; the same command tries again:")[1]
        recorded = last.count("fishr-exp:   fishr-gamma")
        assert last.count("fishr-exp:   trainer.gamma=") + recorded == 4
        assert full.err.count("warning: ") <= 2
    else:
        assert full.status == 2
        assert full.err.count("\n") == 1
    (disk / "filler").unlink()
    again = fishr_exp(*words, "retry_failed=true")
    assert again.status == 0, again.err
    assert len(list((disk / "runs").glob("*/done"))) == 4


def test_a_read_only_folder_is_one_line(fishr_exp: Command, tmp_path: Path, mounted: Any) -> None:
    disk = mounted("-t", "tmpfs", "-o", "ro,size=1m", "tmpfs")
    refused = fishr_exp(f"output_dir={disk}/runs")
    assert refused.status == 2
    (line,) = refused.err.splitlines()
    assert "this folder cannot be written (Read-only file system); choose another" in line


# --- other faults ------------------------------------------------------------------------------


def test_a_run_out_of_memory_leaves_the_sweep(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def call() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
        command("-m", "model.hidden=8,1000000000", *TINY[1:], f"output_dir={tmp_path}/runs")()

    assert ended(forked(call, log)) == 1
    said = log.read_text()
    assert "Traceback" not in said
    assert "fishr-exp: out of memory" in said
    assert len(list((tmp_path / "runs").glob("*/done"))) == 1


def test_a_sweep_names_what_failed_at_its_end(fishr_exp: Command, tmp_path: Path) -> None:
    words = ("-m", "trainer=erm", "optimizer=sgd", "optimizer.lr=1e38,1e-20", "batch_size=null")
    outcome = fishr_exp(*words)
    assert outcome.status == 1
    *_, head, line = outcome.err.splitlines()
    assert head.startswith(f"fishr-exp: 1 run in {tmp_path}/runs failed; retry_failed=true tries")
    assert line.startswith("fishr-exp:   erm-seed0-")
    assert "the objective is not finite at step 1" in line
    again = fishr_exp(*words)
    assert again.status == 1
    assert "2 runs: 0 trained, 1 done before, 1 failed" in again.err
    assert again.err.count("the objective is not finite at step 1") == 1


def test_a_clock_that_jumps_changes_no_run(
    fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fishr_exp(f"hydra.run.dir={tmp_path}/runs/whole", "checkpoint_every=1s")
    real, now = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(now) * 1e8)
    jumped = fishr_exp(f"hydra.run.dir={tmp_path}/runs/jumped", "checkpoint_every=1s")
    assert_same_run(whole, jumped)
    assert 0 <= jumped.result()["seconds"] < 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("checkpoint_every=-3",), "checkpoint_every=-3: must be positive"),
        (("checkpoint_every=5m",), "checkpoint_every=5m: must be positive"),
        (("checkpoint_every=10.5",), "checkpoint_every=10.5: must be positive"),
    ],
)
def test_a_mistake(fishr_exp: Command, words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    outcome = fishr_exp(*words)
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert said in line
    assert not list((tmp_path / "runs").glob("*"))  # nothing is left behind


class Recorder(EarlyStopping):
    """An observer of somebody's own."""


def test_an_allowed_target_is_built(fishr_exp: Command) -> None:
    words = ("optimizer._target_=torch.optim.adam.Adam",)
    assert fishr_exp(*words).status == 0
    words = ("observer._target_=tests.e2e.test_kills.Recorder", "model.hidden=4")
    assert "or allow_targets=[tests] if you trust it" in fishr_exp(*words).err
    assert fishr_exp(*words, "allow_targets=[tests]").status == 0
