"""Whole runs: what they leave behind, that they repeat, and that they resume where they stopped."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.config_repository import CachingConfigRepository

import fishr_exp.data.datasets.digits as digits
from fishr_exp.cli import table as table_cli
from fishr_exp.core.contracts import Domains
from fishr_exp.data.datasets.tensors import TensorDomain
from fishr_exp.data.splits import split
from fishr_exp.models.mlp import mlp
from fishr_exp.runs.environment import processor

from .conftest import ROOT, TINY, Command, Outcome, newest_state, process, stop_before

NO_TRACKER = ("tracker=none",)


def without_seconds(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {
            k: without_seconds(v)
            for k, v in tree.items()
            if k != "time" and not k.startswith("seconds")
        }
    return [without_seconds(item) for item in tree] if isinstance(tree, list) else tree


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """Name the places where two checkpoints differ, to the last bit."""
    if isinstance(left, torch.Tensor):
        same = left.dtype == right.dtype and torch.equal(left, right)
        return [] if same else [where]
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        return [d for k in left for d in differences(left[k], right[k], f"{where}/{k}")]
    if isinstance(left, list | tuple):
        assert len(left) == len(right), where
        pairs = enumerate(zip(left, right, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}/{i}")]
    return [] if left == right else [where]


def assert_same_run(left: Outcome, right: Outcome) -> None:
    for name in ("best", "last"):
        assert differences(left.checkpoint(name), right.checkpoint(name)) == []
    assert without_seconds(left.records()) == without_seconds(right.records())
    assert without_seconds(left.result()) == without_seconds(right.result())


# --- what a run leaves behind ----------------------------------------------------------------


def test_total_steps_take_the_place_of_epochs(fishr_exp: Command) -> None:
    tiny = ("model.hidden=8", "steps_per_epoch=2", "tracker=none", "total_steps=5")
    run = fishr_exp(tiny=tiny)
    assert run.status == 0, run.err
    assert [record["step"] for record in run.records()] == [2, 4, 5]
    assert fishr_exp("epochs=null", tiny=tiny).folder == run.folder
    assert "done already" in fishr_exp(tiny=tiny).err


def test_the_default_run_leaves_files_that_agree(fishr_exp: Command) -> None:
    outcome = fishr_exp("epochs=3", tiny=NO_TRACKER)
    assert outcome.status == 0
    folder, result, records = outcome.folder, outcome.result(), outcome.records()
    assert (folder / "done").exists()
    config = json.loads((folder / "config.json").read_text())
    assert config["trainer"]["_target_"] == "fishr_exp.trainers.fishr.Fishr"
    assert (config["epochs"], config["seed"], config["test_domains"]) == (3, 0, ["minus90"])
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["device"] == "cpu"
    assert environment["processor"] == processor()

    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["step"] for record in records] == [7, 14, 21]  # 480 // 64 minibatches
    assert all(record["learning_rate"] == 0.001 for record in records)
    for record in records:
        losses = record["losses"]
        assert losses["objective"] == pytest.approx(losses["risk"] + losses["penalty"], rel=1e-5)
        means = [record["accuracy"][name]["validation"] for name in ("plus90", "plus80")]
        assert record["validation_accuracy"] == pytest.approx(sum(means) / 2)

    assert result["status"] == "done"
    assert result["labels"] == {"dataset": "colored_digits", "model": "mlp", "trainer": "fishr"}
    assert result["training_domains"] == ["plus90", "plus80"]
    assert result["selected"]["monitor"] == "validation_accuracy"
    assert result["selected"]["uses_test_domain"] is False
    best = max(records, key=lambda record: record["validation_accuracy"])  # the first of the best
    assert result["selected"]["step"] == best["step"]
    assert result["validation_accuracy"] == best["validation_accuracy"]
    assert result["accuracy"] == best["accuracy"]
    assert result["last"]["step"] == 21
    assert outcome.err.splitlines()[-1] == str(folder)

    # The checkpoint of the result gives the result again.
    model = mlp(
        input_shape=(2, 8, 8), num_classes=2, hidden=390, hidden_layers=2, single_logit=True
    )
    model.load_state_dict(outcome.checkpoint("best")["model"])
    domain = digits.colored_digits(seed=0).by_name["minus90"]
    x, y = domain.read(torch.arange(len(domain)))
    correct = ((model(x)[:, 0] > 0).long() == y).double().mean().item()
    assert result["test_accuracy"] == {"minus90": pytest.approx(correct, abs=1e-12)}
    train, validation = split(domain, 0.2, 0)
    assert result["counts"]["minus90"] == {"train": len(train), "validation": len(validation)}


def test_the_same_seed_is_the_same_run(fishr_exp: Command, tmp_path: Path) -> None:
    first = fishr_exp(f"hydra.run.dir={tmp_path}/runs/first")
    again = fishr_exp(f"hydra.run.dir={tmp_path}/runs/again")
    other = fishr_exp(f"hydra.run.dir={tmp_path}/runs/other", "seed=1")
    assert [o.folder.name for o in (first, again, other)] == ["first", "again", "other"]
    assert_same_run(first, again)
    assert differences(first.checkpoint("last"), other.checkpoint("last")) != []


@pytest.mark.parametrize(
    "fishr",
    [
        ["trainer=fishr"],
        ["trainer=fishr", "trainer.scope=all"],
        ["trainer=fishr_domainbed", "trainer.anneal_steps=2"],
        ["trainer=fishr_colored_mnist", "trainer.anneal_steps=2", "trainer.l2=0"],
    ],
    ids=" ".join,
)
def test_gamma_0_is_erm(fishr_exp: Command, fishr: list[str]) -> None:
    erm = fishr_exp("trainer=erm")
    zero, one = (fishr_exp(*fishr, f"trainer.gamma={g}", *extra)
                 for g, extra in ((0, []), (1e6, ["trainer.anneal_steps=0"])))  # fmt: skip
    for part in ("model", "optimizers", "random"):
        assert differences(erm.checkpoint("last")[part], zero.checkpoint("last")[part]) == []
    assert differences(erm.checkpoint("last")["model"], one.checkpoint("last")["model"]) != []
    assert [record["accuracy"] for record in erm.records()] == [
        record["accuracy"] for record in zero.records()
    ]


@pytest.mark.parametrize("name", ["quickstart_erm", "quickstart"])
def test_an_experiment_runs(fishr_exp: Command, tmp_path: Path, name: str) -> None:
    swept = ["seed=3"] if name == "quickstart_erm" else ["seed=3", "trainer.gamma=1,10"]
    runs = 1 if name == "quickstart_erm" else 3  # gamma 0 is added
    outcome = fishr_exp("-m", f"experiment={name}", "epochs=1", "steps_per_epoch=1",
                        "model.hidden=8", *swept, tiny=NO_TRACKER)  # fmt: skip
    assert outcome.status == 0
    assert len(list((tmp_path / "runs").glob("*/done"))) == runs
    config = json.loads((outcome.folder / "config.json").read_text())
    assert (config["sweep_name"], config["batch_size"]) == ("quickstart", None)


# --- stopped and continued ---------------------------------------------------------------------

DROPOUT = ("dataset=image_folder", "dataset.image_size=8", "test_domains=[sketch]", "batch_size=2",
           "model=resnet18", "model.dropout=0.5", "model.freeze_bn=false", "epochs=2",
           "steps_per_epoch=2", "tracker=none")  # fmt: skip
KINDS = {
    "fishr": (3, ["trainer.ema_decay=0.9", "trainer.anneal_steps=3"]),
    "domainbed before the reset": (3, ["trainer=fishr_domainbed", "trainer.anneal_steps=4"]),
    "domainbed at the reset": (4, ["trainer=fishr_domainbed", "trainer.anneal_steps=4"]),
    "domainbed after the reset": (5, ["trainer=fishr_domainbed", "trainer.anneal_steps=4"]),
    "colored mnist script": (5, ["trainer=fishr_colored_mnist", "trainer.anneal_steps=2"]),
    "erm with momentum": (5, ["trainer=erm", "optimizer=sgd"]),
    "before any checkpoint": (1, ["trainer=erm"]),
    "a worker": (5, ["num_workers=1", "trainer.ema_decay=0.9"]),
    "bf16": (5, ["precision=bf16"]),
    "patience": (5, ["observer.patience=2", "optimizer.lr=1e-9", "epochs=9"]),
}


def compare_with_a_stopped_run(
    fishr_exp: Command, tmp_path: Path, step: int, words: list[str], tiny: tuple[str, ...] = TINY
) -> Outcome:
    whole = fishr_exp(*words, f"hydra.run.dir={tmp_path}/runs/whole", tiny=tiny)
    assert whole.status == 0, whole.err
    with pytest.MonkeyPatch.context() as patch:
        stop_before(step, patch)
        stopped = fishr_exp(*words, f"hydra.run.dir={tmp_path}/runs/halves", tiny=tiny)
    assert stopped.status == 130
    assert not (stopped.folder / "done").exists()
    continued = fishr_exp(*words, f"hydra.run.dir={tmp_path}/runs/halves", tiny=tiny)
    assert continued.status == 0, continued.err
    assert_same_run(whole, continued)
    return continued


SLOW = ("erm with momentum", "a worker", "bf16")  # of KINDS; others go the same ways


@pytest.mark.parametrize(
    ("step", "words"),
    [
        pytest.param(*kind, id=name, marks=pytest.mark.slow if name in SLOW else ())
        for name, kind in KINDS.items()
    ],
)
def test_a_continued_run_is_the_whole_run(
    fishr_exp: Command, tmp_path: Path, step: int, words: list[str]
) -> None:
    continued = compare_with_a_stopped_run(fishr_exp, tmp_path, step, ["epochs=4", *words])
    after = step // 2 * 2  # the last evaluation
    said = f"continuing {continued.folder} after step {after}" in continued.err
    assert said == (after > 0)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["num_workers=0"], marks=pytest.mark.slow),
        ["num_workers=2"],
        # At 8×8 a strided convolution meets 1×1, whose gradient in bf16 is not always the same.
        ["precision=bf16", "channels_last=true", "dataset.image_size=32"],
        pytest.param(["compile=true", "channels_last=true"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_continued_run_with_dropout_and_augmentation_is_the_whole_run(
    fishr_exp: Command, tmp_path: Path, images: Path, more: list[str]
) -> None:
    words = [f"dataset.root={images}", *more]
    compare_with_a_stopped_run(fishr_exp, tmp_path, 3, words, tiny=DROPOUT)


def test_a_killed_process_is_continued(fishr_exp: Command, tmp_path: Path) -> None:
    words = ["model.hidden=8", "epochs=60", "steps_per_epoch=1", "observer=last_step",
             "trainer.ema_decay=0.9", "evaluate_train=false", *NO_TRACKER]  # fmt: skip
    folder = tmp_path / "runs" / "killed"
    running = process(*words, f"hydra.run.dir={folder}", stderr=subprocess.DEVNULL)
    records = folder / "records.jsonl"
    while running.poll() is None and not (records.exists() and len(records.open().readlines()) > 2):
        select.select([], [], [], 0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL  # and had not ended before
    running.stdout.close()
    assert not (folder / "done").exists()
    continued = fishr_exp(*words, f"hydra.run.dir={folder}", tiny=())
    whole = fishr_exp(*words, f"hydra.run.dir={tmp_path}/runs/whole", tiny=())
    assert (whole.status, continued.status) == (0, 0)
    assert "continuing" in continued.err
    assert len(continued.records()) == 60
    assert_same_run(whole, continued)


def test_a_done_run_is_skipped(fishr_exp: Command) -> None:
    first = fishr_exp()
    checkpoint = newest_state(first.folder)
    written, result = checkpoint.stat().st_mtime_ns, first.result()
    second = fishr_exp()
    assert second.status == 0
    result_line = first.err.splitlines()[-2]  # before the folder
    done = f"done already: {first.folder} (resume=false runs it again)"
    assert second.err.splitlines() == [result_line, done]
    assert (checkpoint.stat().st_mtime_ns, second.result()) == (written, result)
    again = fishr_exp("resume=false")
    assert again.folder == first.folder
    assert checkpoint.stat().st_mtime_ns > written
    assert without_seconds(again.result()) == without_seconds(result)
    assert len(again.records()) == 2


# --- what is chosen --------------------------------------------------------------------------


def other_test_labels(real: Any) -> Any:
    @functools.wraps(real)
    def build(**keywords: Any) -> Domains:
        domains = real(**keywords)
        x, y = domains.by_name["minus90"].read(torch.arange(len(domains.by_name["minus90"])))
        changed = {**domains.by_name, "minus90": TensorDomain("minus90", 1 - x, 1 - y)}
        return Domains(domains.name, changed, domains.num_classes, domains.input_shape)

    return build


def test_the_test_domain_chooses_nothing(
    fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["epochs=6", "observer.patience=3"]
    before = fishr_exp(*words, f"hydra.run.dir={tmp_path}/runs/before")
    monkeypatch.setattr(digits, "colored_digits", other_test_labels(digits.colored_digits))
    after = fishr_exp(*words, f"hydra.run.dir={tmp_path}/runs/after")
    assert after.result()["test_accuracy"] != before.result()["test_accuracy"]
    assert after.result()["selected"] == before.result()["selected"]
    for name in ("best", "last"):
        assert differences(before.checkpoint(name), after.checkpoint(name)) == []


def test_a_monitor_on_the_test_domain_is_said_aloud(fishr_exp: Command) -> None:
    outcome = fishr_exp("observer.monitor=accuracy/minus90/validation")
    assert outcome.status == 0
    said = "warning: observer.monitor=accuracy/minus90/validation selects by a test domain"
    assert outcome.err.splitlines()[0] == said
    assert outcome.result()["selected"]["uses_test_domain"] is True
    assert outcome.result()["selected"]["monitor"] == "accuracy/minus90/validation"
    kept_last = fishr_exp("observer.monitor=accuracy/minus90/validation", "observer.keep=last")
    assert kept_last.result()["selected"]["monitor"] == "last step"


# --- sweep and table -------------------------------------------------------------------------


def test_a_sweep_and_its_table(
    fishr_exp: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fishr_exp("-m", "trainer=erm", "seed=0,1").status == 0
    words = ("-m", "trainer.gamma=1,1000", "seed=0,1")
    sweep = fishr_exp(*words)
    assert sweep.status == 0
    runs = tmp_path / "runs"
    results = [json.loads(path.read_text()) for path in runs.glob("*/result.json")]
    assert sorted((r["labels"]["trainer"], r["gamma"] or 0, r["seed"]) for r in results) == [
        ("erm", 0, 0), ("erm", 0, 1),
        *[("fishr", gamma, seed) for gamma in (0, 1, 1000) for seed in (0, 1)],
    ]  # fmt: skip
    assert fishr_exp(*words).err.count("6 runs: 0 trained, 6 done before") == 1

    capsys.readouterr()
    assert table_cli.main([str(runs), "--format", "csv"]) == 0
    table = capsys.readouterr().out
    for gamma in (1, 1000):
        pair = [100 * r["test_accuracy"]["minus90"] for r in results if r["gamma"] == gamma]
        assert f"{sum(pair) / 2:.2f}"[:4] in table
    assert (runs / "table" / "figure.png").stat().st_size > 1000


@pytest.mark.slow
def test_runs_side_by_side_are_the_same_runs(fishr_exp: Command, tmp_path: Path) -> None:
    words = ("trainer.gamma=1,10", "seed=0,1")
    together = process(
        "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *TINY, *words,
        f"output_dir={tmp_path / 'together'}",
    )  # fmt: skip
    _, err = together.communicate()
    assert together.returncode == 0, err
    assert fishr_exp("-m", *words).status == 0
    folders = sorted((tmp_path / "runs").glob("fishr-*"))
    assert len(folders) == 6  # gamma 0 is added under either launcher
    for folder in folders:
        ours, theirs = (
            json.loads((runs / folder.name / "result.json").read_text())["accuracy"]
            for runs in (tmp_path / "runs", tmp_path / "together")
        )
        assert ours == theirs


def test_one_is_one_point_zero(fishr_exp: Command) -> None:
    assert fishr_exp("trainer.gamma=1").status == 0
    assert "done already" in fishr_exp("trainer.gamma=1.0").err


# --- processes -------------------------------------------------------------------------------

LOADED = """
import sys
from fishr_exp.cli.run import main
sys.argv = ["fishr-exp", *sys.argv[1:]]
try:
    main()
finally:
    slow = {"torch", "torch._dynamo", "torchvision", "mlflow", "sklearn", "scipy", "sympy"}
    print(sorted((slow | {"matplotlib"}) & set(sys.modules)))
"""


def loaded_by(*words: str) -> tuple[str, str]:
    """Return what a process prints, and which of the slow libraries it imported."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    out, _, modules = done.stdout.rstrip().rpartition("\n")
    return out, modules


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--help"], "fishr-exp trainer=erm dataset=rotated_digits"),
        (["--cfg", "job", "experiment=quickstart"], "anneal_steps: 95"),
        (["--info", "defaults"], "trainer/fishr"),
    ],
    ids=["help", "cfg", "info"],
)
def test_a_question_imports_nothing_slow(words: list[str], shown: str) -> None:
    out, modules = loaded_by(*words)
    assert shown in out.replace("'", "")
    assert modules == "[]"


def test_the_help_is_composed_once(fishr_exp: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra would copy all options 150 times, which takes longer than everything else."""
    copies = []
    monkeypatch.setattr(CachingConfigRepository, "__init__", lambda *_: copies.append(1))
    assert "anneal_steps" in fishr_exp("--help").out
    assert not copies


@pytest.mark.parametrize(
    "words",
    [(), pytest.param(("dataset=rotated_digits", "trainer=erm"), marks=pytest.mark.slow)],
)
def test_a_run_imports_torch_and_nothing_else_slow(tmp_path: Path, words: tuple[str, ...]) -> None:
    _, modules = loaded_by("tracker=none", *words, "epochs=2", f"output_dir={tmp_path}")
    assert modules == "['torch']"
    _, modules = loaded_by(
        "tracker=none", *words, "epochs=2", f"output_dir={tmp_path}", "-m", "seed=1,2"
    )
    assert modules == "['torch']"


def test_no_bar_where_there_is_no_terminal(tmp_path: Path) -> None:
    run = process(*TINY, f"output_dir={tmp_path}")
    out, err = run.communicate()
    assert (run.returncode, out) == (0, "")
    folder = str(next(tmp_path.glob("fishr-*")))
    words = [line.split()[0] for line in err.splitlines()]
    assert words == ["trainer=fishr", "folder", "4", "epoch", "epoch", "evaluating", "test", folder]
    assert "\r" not in err
    assert "it/s" not in err


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # lines, columns
    run = process(*TINY, "epochs=20", f"output_dir={tmp_path}", stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's word for the end of a terminal
            break
        if not part:
            break
        shown += part
    os.close(ours)
    run.stdout.close()
    assert run.wait() == 0
    assert b"/40 [" in shown  # steps done of all
    assert b"\r" in shown
    assert b"epoch 20/20  step 40" in shown


@pytest.mark.parametrize(
    ("words", "acted", "warning"),
    [
        (["trainer=erm"], False, None),
        (["trainer.gamma=0"], False, None),
        (["observer=last_step", "trainer.anneal_steps=3"], True, None),
        (
            ["observer=last_step", "trainer=composed", "trainer.penalties={coral:{gamma:1}}"],
            True,
            None,
        ),
        (["observer=last_step", "trainer=transfer"], True, None),  # logs its penalty as a gap
        (["observer=last_step", "trainer.penalty_interval=100"], True, None),
        (
            ["trainer.anneal_steps=9"],
            False,
            "trainer.anneal_steps=9: what begins there never acts in the 4 steps of this run",
        ),
        (
            [
                "trainer.anneal_steps=3",
                "observer.monitor=objective",
                "observer.min_delta=100",
                "observer.mode=min",
            ],
            False,
            "gamma had not acted yet: trainer.anneal_steps=3",
        ),
    ],
)
def test_a_result_says_whether_the_penalty_had_acted(
    fishr_exp: Command, words: list[str], acted: bool, warning: str | None
) -> None:
    outcome = fishr_exp(*words)
    assert outcome.result()["selected"]["penalty_had_acted"] is acted
    assert ("trainer.anneal_steps=" in outcome.err) == (warning is not None)
    assert warning is None or warning in outcome.err


def test_steps_that_a_run_does_not_reach_are_named_by_their_keys(fishr_exp: Command) -> None:
    outcome = fishr_exp("trainer=ib_irm", "trainer.ib_anneal_steps=2")
    assert "trainer.irm_anneal_steps=500: what begins there never acts in the 4" in outcome.err
    penalties = "trainer.penalties={vrex:{gamma:1,anneal_steps:4},idm:{anneal_steps:3}}"
    outcome = fishr_exp("trainer=composed", penalties)
    assert "trainer.penalties.vrex.anneal_steps=4: what begins there never acts" in outcome.err
    outcome = fishr_exp("trainer=erm_plus_plus")
    assert "trainer.classifier_steps=500: what begins there never acts in the 4" in outcome.err
