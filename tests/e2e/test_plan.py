"""`fishr-sweep-plan` against what `fishr-exp -m` does."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from fishr_exp.cli import plan as plan_cli

from .conftest import TINY, Command, stop_before

Plan = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    def call(*words: str) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = plan_cli.main([*TINY, f"output_dir={tmp_path / 'runs'}", *words])
        return status, out.getvalue(), err.getvalue()

    return call


def test_counts_agree_with_what_runs(fishr_exp: Command, plan: Plan, tmp_path: Path) -> None:
    sweep = ("trainer.gamma=1,10", "seed=0,1")
    status, before, _ = plan(*sweep)
    assert status == 0
    assert before.startswith(f"6 runs in {tmp_path / 'runs'}: 6 missing. All are well configured.")
    assert not (tmp_path / "runs").exists()  # nothing was written
    fishr_exp("trainer.gamma=0")
    assert "6 runs in" in (out := plan(*sweep)[1])
    assert "1 done, 5 missing" in out
    assert fishr_exp("-m", *sweep).status == 0
    planned = plan(*sweep)[1].splitlines()
    assert planned == [f"6 runs in {tmp_path / 'runs'}: 6 done. All are well configured."]
    assert len(list((tmp_path / "runs").glob("*/done"))) == 6


def test_a_run_that_was_stopped_is_half_done(
    fishr_exp: Command, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        assert fishr_exp("trainer.gamma=1").status == 130
    assert "2 runs" in (out := plan("trainer.gamma=0,1")[1])
    assert "1 half-done, 1 missing" in out


def test_the_estimate_names_each_kind_of_run(plan: Plan) -> None:
    status, out, _ = plan("trainer=erm,fishr,vrex", "seed=0,1", "epochs=5", "steps_per_epoch=4")
    assert status == 0
    rows = {line.split()[2]: line.split() for line in out.splitlines() if " mlp " in line}
    assert set(rows) == {"erm", "fishr", "vrex"}
    assert all(row[3:5] == ["2", "20"] for row in rows.values())  # runs, steps
    assert re.search(r"about .+ on this machine \(.+\), .+ of disk; .+ are free", out)
    _, out, _ = plan("trainer.scope=classifier,all")
    assert "fishr scope=classifier" in out
    assert "fishr scope=all" in out


def test_the_estimate_is_near_what_runs_cost(fishr_exp: Command, plan: Plan) -> None:
    from fishr_exp.cli.probe import Costs

    # by hand: 10 steps, the first 4 before the penalty acts, an evaluation every 5
    costs = Costs(1.0, 0.1, 0.5, 2.0, 3.0, 1000, 10)
    assert costs.seconds(0, 10, 4, 2) == pytest.approx(1 + 0.4 + 3 + 4 + 3)
    assert costs.seconds(5, 10, 4, 1) == pytest.approx(1 + 2.5 + 2 + 3)
    assert costs.bytes(2) == 1010

    fishr_exp("seed=0")
    folder = fishr_exp("seed=0").folder
    used = sum(
        f.stat().st_size for f in folder.rglob("*") if f.is_file() and ".hydra" not in str(f)
    )
    ((size, unit),) = re.findall(r"and ([\d.]+) (kB|MB) of disk", plan("seed=7")[1])
    planned = float(size) * {"kB": 1e3, "MB": 1e6}[unit]
    assert planned == pytest.approx(used, rel=0.3)


def test_mistakes_of_all_runs_are_named_before_anything_is_paid_for(plan: Plan) -> None:
    status, out, err = plan("trainer.gamma=1,-10", "seed=0,1")
    assert (status, out) == (2, "")
    assert "trainer.gamma=-10.0: must be finite and not negative" in err
    assert "trainer.gamma=-10 seed=0 and 1 more" in err
    for words, said in {
        ("trainer.gama=1",): "did you mean trainer.gamma?",
        ("test_domains=[minus90],[foo]",): "has no domain foo",
        ("trainer=erm,fishrr",): "did you mean trainer=fishr?",
        ("batch_size=64,many",): "batch_size=many",
    }.items():
        status, out, err = plan(*words)
        assert (status, out) == (2, "")
        assert said in err
        assert len(err.strip().splitlines()) == 1


def test_a_probe_leaves_the_tracker_alone(plan: Plan, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    status, _, _ = plan("tracker=mlflow", f"tracker.tracking_uri=sqlite:///{database}")
    assert status == 0
    assert not database.exists()


def test_runs_of_smaller_minibatches_have_longer_epochs(plan: Plan) -> None:
    """480 training samples a domain: 48 and 12 steps an epoch."""
    _, out, _ = plan("batch_size=10,40", "epochs=2", "steps_per_epoch=null", "trainer=erm")
    (row,) = [line for line in out.splitlines() if line.startswith("colored_digits")]
    assert row.split()[3:5] == ["2", "96"], out


def test_a_key_that_nobody_knows(plan: Plan) -> None:
    status, _, err = plan("trainer.gama=1,2")
    assert status == 2
    assert "trainer.gama=" in err
    assert "did you mean trainer.gamma?" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("holdout_fraction=0.2,0.0",), "observer.monitor=validation_accuracy: no evaluation"),
        (("batch_size=64,1",), "batch_size=1: a minibatch needs at least 2 samples"),
        (("optimizer.lr=0.1,-1",), "optimizer.lr=-1: Invalid learning rate"),
        (("device=cpu,cuda:9",), "device=cuda:9: is not a device of this machine"),
        (("loss.class_weights=null,[1,2,3]",), "loss.class_weights=[1"),
        (("compile=false,true", "trainer.scope=all"), "compile=true: trainer.scope=all needs"),
        (("checkpoint_every=300s,never",), "checkpoint_every=never: must be positive"),
        (("epochs=2,0",), "epochs=0: must be 1 or more"),
        (
            ("protocol.hparams_seed=0,1", "protocol=paper_2022", "model=mlp", "epochs=null"),
            "trainer=fishr: search=domainbed has no ranges for it",
        ),
    ],
)
def test_the_plan_refuses_what_a_run_would_refuse(
    fishr_exp: Command, plan: Plan, words: tuple[str, ...], said: str
) -> None:
    if torch.cuda.is_available() and "cuda" in words[0]:
        pytest.skip("there is such a device")
    status, out, err = plan(*words)
    assert (status, out) == (2, "")
    assert f"fishr-sweep-plan: {said}" in err
    wrong = [word.partition("=")[0] + "=" + word.split(",", 1)[-1] for word in words[:1]]
    run = fishr_exp(*wrong, *words[1:])
    assert run.status == 2
    assert f"fishr-exp: {said}" in run.err


def test_lists_of_validation_images_are_counted_as_the_run_counts_them(
    fishr_exp: Command, plan: Plan, images: Path
) -> None:
    """6 training and 6 validation images a domain: 2 steps of 3, where all 12 would give 4."""
    for domain in ("photo", "sketch", "cartoon"):
        paths = [f"{domain}/{name}/{k}.png {label}" for label, name in enumerate(("cat", "dog"))
                 for k in range(6)]  # fmt: skip
        (images / f"{domain}_train.txt").write_text("\n".join(paths[::2]))
        (images / f"{domain}_validation.txt").write_text("\n".join(paths[1::2]))
    lists = ",".join(
        f"{d}:[{d}_train.txt,{d}_validation.txt]" for d in ("photo", "sketch", "cartoon")
    )
    words = ("dataset=path_lists", "model=mlp", f"dataset.root={images}",
             f"dataset.lists={{{lists}}}", "dataset.image_size=8", "test_domains=[sketch]",
             "batch_size=3", "trainer=erm", "steps_per_epoch=null")  # fmt: skip
    _, out, err = plan(*words)
    (row,) = [line.split() for line in out.splitlines() if line.startswith("path_lists")]
    run = fishr_exp(*words)
    assert run.status == 0, run.err
    assert int(row[4]) == run.records()[-1]["step"] == 2 * 2, err


def test_a_plan_shares_a_network_of_ones_own(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text(
        "from torch import nn\n"
        "def net(*, num_classes, hidden):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 8 * 8, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    status, out, err = plan("model._target_=theirs.net", "allow_targets=[theirs]", "seed=0,1,2",
                            "trainer=erm")  # fmt: skip
    assert status == 0, err
    assert "3 runs" in out


def test_an_estimate_reads_as_the_run_does(plan: Plan, images: Path, monkeypatch) -> None:
    """Images are read by threads, in the estimate too; nothing wraps the domain."""
    from fishr_exp.data.images.threads import Threads

    read = []
    real = Threads.awaited
    monkeypatch.setattr(
        Threads,
        "awaited",
        lambda self, waiting: read.append(self.domain.name) or real(self, waiting),
    )
    status, _, err = plan("dataset=image_folder", "model=mlp", f"dataset.root={images}",
                          "dataset.image_size=8", "test_domains=[sketch]", "batch_size=2",
                          "num_workers=1", "trainer=erm")  # fmt: skip
    assert status == 0, err
    assert {"photo", "cartoon"} <= set(read)
