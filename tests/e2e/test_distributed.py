"""Whole runs that `torchrun` starts: the results of one process, one record, one set of files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, TINY, Command, Outcome, newest_state


def torchrun(runs: Path, *words: str, given: tuple[str, ...] = TINY) -> subprocess.CompletedProcess:
    """Run `fishr-exp` on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, "-m", "fishr_exp", *words, *given, f"output_dir={runs}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def outcome(runs: Path) -> Outcome:
    (folder,) = [path.parent for path in runs.glob("*/config.json")]
    return Outcome(0, "", "", folder)


def assert_close(left: Any, right: Any) -> None:
    """Numbers agree to 1e-5, but for times; all else is the same."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            if not key.startswith("seconds"):
                assert_close(left[key], right[key])
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-8)
    else:
        assert left == right


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("batch_size=15",), marks=pytest.mark.slow),
        # All ranks come to the same rate, norm and draws; the schedule outlives a new optimizer.
        ("batch_size={plus90:16,plus80:33}", "sampling=class_balanced", "clip_norm=0.5",
         "scheduler=plateau", "scheduler.patience=0", "+scheduler.threshold=0.9", "optimizer=adamw",
         "optimizer.classifier_lr_factor=5", "optimizer.decay_norms_and_biases=false", "epochs=3",
         "trainer.anneal_steps=3", "trainer.ema_decay=0.9"),
    ],
    ids=["a batch size", "all that may be chosen"],
)  # fmt: skip
def test_two_ranks_give_the_run_of_one_process(
    words: tuple[str, ...], fishr_exp: Command, tmp_path: Path
) -> None:
    words = ("evaluation_batch_size=50", "trainer.gamma=100", *words)
    given = tuple(word for word in TINY if word.partition("=")[0] not in " ".join(words))
    done = torchrun(tmp_path / "two", *words, given=given)
    assert done.returncode == 0, done.stderr
    two, one = outcome(tmp_path / "two"), fishr_exp(*words, tiny=given)
    assert len(two.records()) == len(one.records()) == (3 if "epochs=3" in words else 2)
    for ours, theirs in zip(two.records(), one.records(), strict=True):
        assert_close(ours, theirs)
    assert_close(two.result(), one.result())
    assert files(two.folder) == files(one.folder)
    assert done.stderr.count("epoch 1/") == 1
    assert (two.folder / "fishr-exp.log").read_text().count("epoch 1/") == 1


@pytest.mark.slow
def test_ranks_go_on_where_they_stopped(fishr_exp: Command, tmp_path: Path) -> None:
    runs = tmp_path / "two"
    words = ("batch_size=null", "trainer=irm", "trainer.gamma=3")
    assert torchrun(runs, *words).returncode == 0
    folder = outcome(runs).folder
    for name in ("done", "result.json"):  # as if stopped after the last evaluation
        (folder / name).unlink()
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    checkpoint = newest_state(folder)
    whole = checkpoint.read_bytes()
    again = torchrun(runs, *words)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("continuing") == 1
    assert (folder / "records.jsonl").read_text().splitlines(keepends=True) == lines
    assert checkpoint.read_bytes() == whole
    assert_close(outcome(runs).result(), fishr_exp(*words).result())
    done = torchrun(runs, *words)
    assert done.returncode == 0
    assert done.stderr.count("done already") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("batch_size=3",), "batch_size=3: 2 processes share the 3 samples of domain plus90"),
        (
            ("trainer.within_classes=true",),
            "trainer.within_classes=True: is not supported with several processes",
        ),
        (("-m", "seed=0,1"), "-m: torchrun starts one run at a time"),
        (("optimizer.lr=1e30",), "the objective is not finite at step 1"),
    ],
)
def test_mistakes_end_all_ranks(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = torchrun(tmp_path / "two", *words)
    assert done.returncode != 0
    assert f"fishr-exp: {said}" in done.stderr
    if "optimizer.lr=1e30" in words:
        assert said in outcome(tmp_path / "two").result()["error"]


FAILS_ON_RANK_1 = """
import os
import fishr_exp.data.datasets.tensors as tensors
from fishr_exp.cli.run import main
from fishr_exp.core.errors import TrainingError

read = tensors.TensorDomain.read
calls = []


def fail(self, *given):
    calls.append(self)
    if os.environ["RANK"] == "1" and len(calls) > 8:
        raise TrainingError("pictures/seven.png: the image cannot be read")
    return read(self, *given)


tensors.TensorDomain.read = fail
main()
"""


@pytest.mark.slow
def test_a_failure_on_one_rank_ends_all_and_is_recorded(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(FAILS_ON_RANK_1)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*command, *TINY, f"output_dir={tmp_path / 'two'}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert "fishr-exp: rank 1: pictures/seven.png" in done.stderr
    result = outcome(tmp_path / "two").result()
    assert result["status"] == "failed"
    assert "rank 1 failed: pictures/seven.png: the image cannot be read" in result["error"]
