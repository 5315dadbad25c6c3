"""`make gpu`: parts that fail, take too long or do not fit, and all of them at a cut size."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
ABSENT = ("mlflow", "optuna", "submitit", "wandb", "tensorboard", "psutil", "mkdocs")


@pytest.fixture
def scripts() -> Any:
    import measure_gpu

    return measure_gpu


@pytest.fixture
def work(scripts: Any, tmp_path: Path) -> Any:
    for folder in ("docs/results/records", "logs", "pieces", "runs", "data"):
        (tmp_path / folder).mkdir(parents=True)
    ends = time.monotonic() + 600
    return scripts.Work(sys.executable, "cpu", tmp_path, dict(os.environ), {}, ends)


def test_what_fails_takes_too_long_or_does_not_fit_is_named_and_the_others_are_made(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def good(work: Any) -> str:
        work.run("-c", "print('made')")
        work.piece("data").write_text("## Reading images\n\nfast")
        return work.last_line()

    def bad(work: Any) -> str:
        work.run("-c", "import sys; print('broken disk'); sys.exit(3)")
        raise AssertionError("not reached")

    def slow(work: Any) -> str:
        work.run("-c", "import time; time.sleep(60)", most=0.5)
        raise AssertionError("not reached")

    def buggy(work: Any) -> str:
        raise ZeroDivisionError("1 / 0")

    part = scripts.Part
    parts = {
        "bad": part(bad, 1, 0), "slow": part(slow, 1, 0), "buggy": part(buggy, 1, 0),
        "far": part(good, 1, 0, ("elsewhere",)), "long": part(good, 9, 99),
        "good": part(good, 1, 0),
    }  # fmt: skip
    ends = time.monotonic() + 60
    made = scripts.Work(sys.executable, "cpu", tmp_path, dict(os.environ), {}, ends)
    for folder in ("docs", "logs", "pieces"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(scripts, "PARTS", parts)
    monkeypatch.setattr(scripts, "prepared", lambda *_: (made, "one GPU"))
    assert scripts.main(["--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    for expected in (
        "bad: failed", "exit status 3; broken disk", "slow: failed", "ended after 0 s",
        "buggy: failed", "ZeroDivisionError", "far: skipped", "needs ELSEWHERE=DIR",
        "long: skipped", "takes 99 minutes", "good: passed", ": made",
        "passed: good; failed: bad, slow, buggy; skipped: far, long",
    ):  # fmt: skip
        assert expected in printed
    page = (tmp_path / "docs" / "benchmarks_gpu.md").read_text()
    assert "one GPU" in page
    assert page.endswith("fast\n")
    assert page.count("| failed |") == 3
    with tarfile.open(tmp_path / "gpu.tar.gz") as archive:
        assert archive.getnames() == ["benchmarks_gpu.md"]
    # Another call makes one part again, and keeps what is known of the others.
    monkeypatch.setattr(scripts, "prepared", lambda *_: (made, "another GPU"))
    assert scripts.main(["--out", str(tmp_path), "--parts", "good", "far"]) == 0
    page = (tmp_path / "docs" / "benchmarks_gpu.md").read_text()
    assert page.count("| failed |") == 3
    assert page.count("| passed |") == 1
    assert "\n- bad, slow, buggy: one GPU\n- good: another GPU\n" in page


@pytest.mark.parametrize("part", ["step", "data"])
def test_a_benchmark_that_is_stopped_leaves_what_it_had_measured(
    scripts: Any, work: Any, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_parts

    def stopped(*command: Any, **_: Any) -> float:
        page = command[command.index("--markdown") + 1]
        page.write_text("# Title\n\nOn a GPU.\n\n## mlp\n\n| erm |\n")
        raise scripts.FailedError("its limit")

    monkeypatch.setattr(work, "run", stopped)
    work.data["pacs"] = Path("data", "pacs")
    with pytest.raises(scripts.FailedError, match="its limit"):
        getattr(gpu_parts, part)(work)
    pieces = [work.piece(name) for name in gpu_parts.PIECES if name.startswith(part)]
    assert [piece.read_text().count("On a GPU.") for piece in pieces] == [1] * len(pieces)
    assert all("| erm |" in piece.read_text() for piece in pieces)


def test_a_command_that_is_ended_leaves_no_process(scripts: Any, work: Any) -> None:
    child = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(99)']); print(p.pid, flush=True); time.sleep(99)"
    )
    with pytest.raises(scripts.FailedError, match="its limit"):
        work.run("-c", child, most=6)  # time enough to start both
    pid = int(work.last_line())
    for _ in range(50):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or ") Z " in stat.read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child lives")


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_data_are_a_folder_or_an_archive_of_one(scripts: Any, tmp_path: Path, kind: str) -> None:
    raw = tmp_path / "given" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "file").write_text("x")
    given = tmp_path / "given"
    if kind == "archive":
        import gpu_kit

        given = tmp_path / "mnist.tar.gz"
        gpu_kit.pack(tmp_path / "given", given, "MNIST/raw")
    for _ in range(2):  # a second call finds it
        scripts.link(given, tmp_path / "mnist")
        assert (tmp_path / "mnist" / "MNIST" / "raw" / "file").read_text() == "x"
    images = tmp_path / "pacs_96" / "photo" / "dog"
    images.mkdir(parents=True)
    if kind == "archive":
        gpu_kit.pack(tmp_path / "pacs_96", tmp_path / "pacs.tar.gz")
        scripts.link(tmp_path / "pacs.tar.gz", tmp_path / "pacs")
        assert (tmp_path / "pacs" / "photo" / "dog").is_dir()


@pytest.mark.parametrize("steps", ["3", "502", "0"])
def test_steps_that_are_no_whole_epochs_are_refused(
    scripts: Any, steps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        scripts.parse(["--pacs-steps", steps])
    assert f"--pacs-steps {steps}: must be a multiple of 5" in capsys.readouterr().err


def test_the_kit_has_wheels_and_data(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_kit

    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(gpu_kit.subprocess, "run", run)
    (tmp_path / "mnist" / "MNIST" / "raw").mkdir(parents=True)
    for domain in gpu_kit.DOMAINS:
        (tmp_path / "pacs" / domain).mkdir(parents=True)
    words = ["--mnist", str(tmp_path / "mnist"), "--pacs", str(tmp_path / "pacs")]
    gpu_kit.main([str(tmp_path / "kit"), *words])
    assert {"hydra-core", "backpack-for-pytorch", "--no-deps"} <= set(commands[0])
    assert {"3.12", "pydantic-core", "--only-binary=:all:"} <= set(commands[1])
    found = scripts.parse(["--kit", str(tmp_path / "kit")])
    assert found.wheels == tmp_path / "kit" / "wheels"
    assert found.mnist == tmp_path / "kit" / "mnist.tar.gz"
    assert found.pacs == tmp_path / "kit" / "pacs.tar.gz"


def test_mistakes_of_the_kit_are_one_line_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_kit

    kit = tmp_path / "kit"
    for words, said in (
        (["--mnist", "/nowhere"], "--mnist /nowhere: does not contain MNIST/raw"),
        (["--pacs", "/nowhere"], "--pacs /nowhere: does not contain art_painting, cartoon, "),
    ):
        with pytest.raises(SystemExit):
            gpu_kit.main([str(kit), *words])
        assert said in capsys.readouterr().err
        assert not kit.exists()
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: slow\nERROR: no such package\n")
    monkeypatch.setattr(gpu_kit.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="gpu-kit: pip wheel failed: ERROR: no such package"):
        gpu_kit.main([str(kit)])


def test_ctrl_c_ends_the_command_that_runs_and_is_one_line(
    scripts: Any, work: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("saved").touch(), sys.exit()))
pathlib.Path("began").touch()
time.sleep(60)
"""

    def long(own: Any) -> str:
        wait = subprocess.Popen.wait

        def stopped(process: Any, timeout: float | None = None) -> int:
            monkeypatch.setattr(subprocess.Popen, "wait", wait)
            while not (own.out / "began").exists():
                time.sleep(0.01)
            raise KeyboardInterrupt

        monkeypatch.setattr(subprocess.Popen, "wait", stopped)
        own.run("-c", saves)
        return "not reached"

    monkeypatch.setattr(scripts, "PARTS", {"long": scripts.Part(long, 4, 0)})
    monkeypatch.setattr(scripts, "prepared", lambda *_: (work, "a machine"))
    monkeypatch.setattr(
        scripts, "parse", lambda _: argparse.Namespace(machine=False, parts=["long"])
    )
    assert scripts.main([]) == 130
    assert (work.out / "saved").exists()
    assert "gpu: stopped; the same command keeps what is done" in capsys.readouterr().err


def test_what_is_missing_is_said_before_anything_is_made(
    scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for answer, expected in (
        ({"missing": ["hydra"], "text": "", "cuda": False}, "lacks hydra: pass KIT=DIR"),
        ({"missing": [], "text": "", "cuda": False}, "no CUDA device; CUT=1"),
    ):
        done = subprocess.CompletedProcess([], 0, json.dumps(answer), "")
        monkeypatch.setattr(scripts.subprocess, "run", lambda *_, done=done, **__: done)
        assert scripts.main(["--out", str(tmp_path)]) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("per_step", "steps"), [(0.01, 5000), (0.1, 1950), (10.0, None)], ids=["full", "cut", "none"]
)
def test_the_steps_on_pacs_are_those_that_fit(
    scripts: Any, work: Any, per_step: float, steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_parts

    def fake(self: Any, *words: Any, **_: Any) -> float:
        (folder,) = (word.partition("=")[2] for word in words if "output_dir" in str(word))
        run = work.out / folder / "run"
        run.mkdir(parents=True)
        lines = [{"seconds_per_step": 5.0}, *[{"seconds_per_step": per_step}] * 4]
        (run / "records.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (run / "result.json").write_text(json.dumps({"seconds": 60 * per_step + 2}))
        (run / "done").touch()
        return 60 * per_step + 10

    monkeypatch.setattr(type(work), "run", fake)
    work.data["pacs"] = Path("data/pacs")
    work.ends = time.monotonic() + 1200
    if steps is None:
        with pytest.raises(scripts.SkippedError, match="which is too few"):
            gpu_parts._plan(work, 96)
        return
    plan = gpu_parts._plan(work, 96)
    assert plan["jobs"] == gpu_parts.JOBS  # four at a time take no longer than one here
    assert plan["steps"] % 30 == 0 or plan["steps"] == gpu_parts.FULL
    assert plan["steps"] == pytest.approx(steps, rel=0.05)
    # Three seeds: a third of the steps once, and the rest of eight runs, four at a time.
    took = 3 * (8 + 2 * 2 + plan["steps"] * per_step * 5 / 3)
    assert took < 1200
    assert "fit" not in plan["notes"][0]


def test_runs_need_none_of_the_packages_that_a_gpu_machine_may_lack(tmp_path: Path) -> None:
    words = ["-m", "trainer=erm,fishr", "tracker=none", "model.hidden=4", "total_steps=2",
             "steps_per_epoch=2", f"output_dir={tmp_path}", "hydra/launcher=joblib",
             "hydra.launcher.n_jobs=1"]  # fmt: skip
    code = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
sys.argv = ["fishr-exp", *{words}]
from fishr_exp.cli import run, table
try:
    run.main()
except SystemExit as stop:
    assert not stop.code, stop.code
sys.argv = ["fishr-table", {str(tmp_path)!r}]
sys.exit(table.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Read 2 runs: 2 done" in done.stdout


@pytest.mark.slow  # three minutes: every command of every part
@pytest.mark.timeout(900)
def test_all_parts_at_a_cut_size(tmp_path: Path) -> None:
    command = ["make", "gpu", f"PYTHON={sys.executable}", f"OUT={tmp_path}", "CUT=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed: tests, table2, step, data, pacs;" in done.stdout
    pages = {path.relative_to(tmp_path / "docs").as_posix(): path.read_text()
             for path in (tmp_path / "docs").rglob("*.md")}  # fmt: skip
    assert {"benchmarks_gpu.md", "results/colored_mnist_table2_gpu.md",
            "results/pacs_lite0_gpu_32.md"} == set(pages)  # fmt: skip
    for heading in ("## Steps, float32", "## Steps, bfloat16", "## Steps, compiled",
                    "## Reading images"):  # fmt: skip
        assert heading in pages["benchmarks_gpu.md"]
    assert all("A trial at a cut size" in page for page in pages.values())
    assert "2 of 2 runs in" in pages["results/colored_mnist_table2_gpu.md"]
    assert "| ERM | 1/1 |" in pages["results/pacs_lite0_gpu_32.md"]
    assert (tmp_path / "docs" / "results" / "pacs_lite0_gpu_32.png").exists()
    records = tmp_path / "docs" / "results" / "records"
    for name, count in (("colored_mnist_table2_gpu", 2), ("pacs_lite0_gpu_32", 4)):
        runs = [*(records / name).iterdir()]
        assert len(runs) == count
        assert not [path for run in runs for path in run.rglob("*.pt")]
        told = "".join(path.read_text() for run in runs for path in run.iterdir())
        assert str(tmp_path) not in told
        assert str(ROOT) not in told
    with tarfile.open(tmp_path / "gpu.tar.gz") as archive:
        assert set(pages) <= set(archive.getnames())
