"""Signals to sweeps of parallel jobs: no process is left, and each run has saved what it did."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from fishr_exp.runs.run_folder import RunFolder
from tests.e2e.conftest import newest_state, process
from tests.e2e.test_kills import command, ended, forked, trees
from tests.hostile.test_kills import check_whole

KILL, INT, HUP = signal.SIGKILL, signal.SIGINT, signal.SIGHUP
PARALLEL = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "tracker=none",
            "dataset=colored_digits", "model.hidden=8", "epochs=1", "checkpoint_every=null",
            "trainer.ema_decay=0.9")  # fmt: skip
PATIENCE = 300  # looks at the processes, ten a second


def left_of(session: int) -> list[str]:
    """The processes of a session that have not ended."""
    left = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of = path.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                left.append((path.parent / "cmdline").read_text().replace("\0", " "))
    return left


def all_end(session: int) -> bool:
    for _ in range(PATIENCE):
        if not left_of(session):
            return True
        time.sleep(0.1)
    os.killpg(session, KILL)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("number", "extra", "checkpoints"),
    [
        pytest.param(KILL, ("seed=0,1", "steps_per_epoch=500"), 2, id="KILL-in-training"),
        pytest.param(
            KILL, ("seed=0,1", "steps_per_epoch=300", "num_workers=1"), 2, id="KILL-with-workers"
        ),
        pytest.param(
            INT, ("seed=0,1", "steps_per_epoch=300", "num_workers=1"), 2, id="INT-with-workers"
        ),
        pytest.param(KILL, ("seed=0", "steps_per_epoch=3,500"), 1, id="KILL-one-is-idle"),
        pytest.param(INT, ("seed=0", "steps_per_epoch=3,500"), 1, id="INT-one-is-idle"),
        pytest.param(HUP, ("seed=0", "steps_per_epoch=3,500"), 1, id="HUP-one-is-idle"),
    ],
)
def test_no_process_is_left_of_a_parallel_sweep(
    number: signal.Signals, extra: tuple[str, ...], checkpoints: int, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    words = (*PARALLEL, *extra, f"output_dir={runs}")
    done = 2 - checkpoints
    sweep = process(*words, start_new_session=True)
    while len(list(runs.glob("*/environment.json"))) < 2 or len(list(runs.glob("*/done"))) < done:
        assert sweep.poll() is None, sweep.communicate()[1]
        time.sleep(0.05)
    time.sleep(0.3)
    (os.kill if number == KILL else os.killpg)(sweep.pid, number)
    assert all_end(sweep.pid)
    err = sweep.communicate()[1]
    assert sweep.returncode == (-KILL if number == KILL else 128 + number), err
    if number == INT:
        assert "Traceback" not in err
    states = [RunFolder(path).state for path in runs.glob("fishr-*")]
    assert sorted(states) == ["done"] * done + ["running"] * checkpoints
    for path in runs.glob("fishr-*"):
        newest_state(path)  # each has saved
    check_same_as_undisturbed(words, runs, checkpoints, tmp_path)


def check_same_as_undisturbed(
    words: tuple[str, ...], runs: Path, continued: int, tmp_path: Path
) -> None:
    again = process(*words)
    err = again.communicate()[1]
    assert again.returncode == 0, err
    assert err.count("continuing") == continued
    serial = [word for word in words if "launcher" not in word and "output_dir" not in word]
    log = tmp_path / "log"
    assert ended(forked(command(*serial, f"output_dir={tmp_path}/whole"), log)) == 0
    check_whole(trees(tmp_path / "whole"), runs)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [KILL, INT], ids=lambda number: number.name)
@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0])
def test_a_parallel_sweep_whose_processes_are_starting(
    number: signal.Signals, seconds: float, tmp_path: Path
) -> None:
    words = (*PARALLEL, "seed=0,1", "steps_per_epoch=3", f"output_dir={tmp_path}/runs")
    sweep = process(*words, start_new_session=True)
    while len(left_of(sweep.pid)) < 3:
        assert sweep.poll() is None, sweep.communicate()[1]
        time.sleep(0.02)
    time.sleep(seconds)
    (os.kill if number == KILL else os.killpg)(sweep.pid, number)
    assert all_end(sweep.pid)
    err = sweep.communicate()[1]
    assert sweep.returncode == (-KILL if number == KILL else 128 + number), err
    assert "Traceback" not in err
    again = process(*words)
    err = again.communicate()[1]
    assert again.returncode == 0, err
    assert len(list((tmp_path / "runs").glob("*/done"))) == 2
