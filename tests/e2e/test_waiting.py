"""Signals and closed terminals, and shared memory that is full."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from .conftest import ROOT, TINY, newest_state, process

LONG = ("trainer=erm", "dataset=colored_digits", "model.hidden=8", "tracker=none", "epochs=3",
        "observer=last_step", "checkpoint_every=null")  # fmt: skip


def begun(runs: Path, running: subprocess.Popen[str]) -> Path:
    """Wait until a run has written a record; return its folder."""
    while not (found := [path for path in runs.glob("*/records.jsonl") if path.stat().st_size]):
        assert running.poll() is None
        time.sleep(0.05)
    return found[0].parent


def _minding_hangups() -> None:
    """In the new process: whoever started the tests may ignore the signal."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _of_its_terminal() -> None:
    _minding_hangups()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_closed_terminal_stops_a_run_after_a_checkpoint(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    words = (*LONG, "steps_per_epoch=100", "total_steps=100000", "epochs=null",
             f"output_dir={tmp_path}")  # fmt: skip
    # A session of its own, whose terminal is the one that is closed.
    running = process(
        *words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=_of_its_terminal,
    )  # fmt: skip
    os.close(slave)
    try:
        folder = begun(tmp_path, running)
        os.set_blocking(master, False)
        with contextlib.suppress(BlockingIOError):
            while os.read(master, 2**16):
                pass
        os.close(master)
        assert running.wait() == 128 + signal.SIGHUP
    finally:
        running.kill()
    assert newest_state(folder).is_file()
    assert not (folder / "result.json").exists()


def test_a_run_that_ignores_the_hangup_goes_on(tmp_path: Path) -> None:
    """As by nohup."""
    words = (*LONG, "steps_per_epoch=300", f"output_dir={tmp_path}")
    running = process(*words, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    folder = begun(tmp_path, running)
    running.send_signal(signal.SIGHUP)
    _, err = running.communicate()
    assert running.returncode == 0, err
    assert (folder / "done").exists()


def can_mount() -> bool:
    """Whether a test may have a /dev/shm of its own."""
    if not shutil.which("unshare"):
        return False
    words = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a /dev/shm of its own")
def test_a_full_dev_shm_is_one_line(tmp_path: Path) -> None:
    words = [*TINY, "trainer=erm", "num_workers=2", "batch_size=200",
             f"output_dir={tmp_path}"]  # fmt: skip
    small = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    command = [sys.executable, "-m", "fishr_exp", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", small, "sh", *command],
        check=False, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "num_workers" in line]
    assert "num_workers=2: a worker cannot send a minibatch (" in line
    assert "enlarge /dev/shm (docker run --shm-size=1g), or pass num_workers=0" in line
    assert "Traceback" not in done.stderr


def test_a_hangup_is_handled_like_a_preemption(tmp_path: Path) -> None:
    words = (*LONG, "steps_per_epoch=100", "total_steps=100000", "epochs=null",
             f"output_dir={tmp_path}")  # fmt: skip
    running = process(*words, preexec_fn=_minding_hangups)
    folder = begun(tmp_path, running)
    running.send_signal(signal.SIGHUP)
    _, err = running.communicate()
    assert running.returncode == 128 + signal.SIGHUP, err
    assert err.splitlines()[-1].endswith("the same command resumes from the last checkpoint")
    assert newest_state(folder).is_file()
