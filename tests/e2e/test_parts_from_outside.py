"""What a part costs: each is added here by its files alone, from another package."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fishr_exp.training import evaluation

from .conftest import ROOT, TINY, Command, Outcome, newest_state, stop_before
from .test_distributed import assert_close, outcome

OUTSIDE = ROOT / "tests" / "outside"
Own = Callable[..., Outcome]


@pytest.fixture
def own(fishr_exp: Command, monkeypatch: pytest.MonkeyPatch) -> Own:
    """Call `fishr-exp` with the parts of `tests/outside`."""
    monkeypatch.syspath_prepend(str(OUTSIDE))

    def call(*words: str, **options: Any) -> Outcome:
        done = fishr_exp(
            f"--config-dir={OUTSIDE / 'conf'}", "allow_targets=[mylab]", *words, **options
        )
        assert done.status == 0, done.err
        return done

    return call


def test_the_files_are_all_there_is() -> None:
    """Two files for a method, an averaging scheme, a tracker; one for an image dataset."""
    found = {str(p.relative_to(OUTSIDE)) for p in OUTSIDE.rglob("*.*") if "cache" not in str(p)}
    for kind, name in (("trainer", "logit_decay"), ("trainer", "adversary"),
                       ("averaging", "running_mean"), ("tracker", "lines")):  # fmt: skip
        found -= {f"mylab/{name}.py", f"conf/{kind}/{name}.yaml"}
    assert found == {"conf/dataset/pets.yaml", "mylab/__init__.py"}
    assert (OUTSIDE / "mylab/__init__.py").read_text() == ""
    names = {p.stem for p in (OUTSIDE / "mylab").glob("*.py")} - {"__init__", "lines"}
    for path in (ROOT / "fishr_exp").rglob("*.py"):
        strings = {n.value for n in ast.walk(ast.parse(path.read_text()))
                   if isinstance(n, ast.Constant) and isinstance(n.value, str)}  # fmt: skip
        assert not strings & names, path


def test_a_target_on_the_command_line_replaces_the_options_own(
    fishr_exp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of the replaced option that the new class does not take are left out."""
    monkeypatch.syspath_prepend(str(OUTSIDE))
    monkeypatch.setenv("FISHR_EXP_ALLOW_TARGETS", "elsewhere,mylab")
    named = fishr_exp(f"--config-dir={OUTSIDE / 'conf'}", "trainer=logit_decay")
    words = ("trainer._target_=mylab.logit_decay.LogitDecay",)
    typed = fishr_exp(*words, "trainer.gamma=0.1")
    assert typed.status == named.status == 0, typed.err
    assert typed.result()["test_accuracy"] == named.result()["test_accuracy"]
    recorded = json.loads((typed.folder / "config.json").read_text())["trainer"]
    assert recorded.pop("_target_") == words[0].partition("=")[2]
    later = recorded.pop("_neutral_")  # of the replaced option, of keys that came later
    assert {key: recorded.pop(key) for key in later} == later == {"ramp": "none", "ramp_steps": 0}
    assert recorded == {"gamma": 0.1, "anneal_steps": 0, "l2": 0.0}
    assert typed.announced.startswith("trainer=mylab.logit_decay.LogitDecay on dataset=")
    wrong = fishr_exp(*words, "trainer.engine=native")
    assert wrong.status == 2
    assert "trainer.engine=native: no such key; known are gamma" in wrong.err
    wrong = fishr_exp(*words, "trainer.weight=1")
    assert "write +trainer.weight=1 for a key of your own" in wrong.err


def test_a_root_configuration_of_ones_own(
    fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(OUTSIDE))
    mine = f"defaults: [config, _self_]\nhydra: {{searchpath: ['file://{OUTSIDE}/conf']}}\n"
    (tmp_path / "mine.yaml").write_text(mine)
    words = (f"--config-dir={tmp_path}", "--config-name=mine", "trainer=logit_decay")
    done = fishr_exp(*words, "allow_targets=[mylab]")
    assert done.status == 0, done.err


def test_options_on_the_search_path_are_named(fishr_exp: Command) -> None:
    done = fishr_exp(f"hydra.searchpath=[file://{OUTSIDE / 'conf'}]", "trainer=logit_decya")
    assert done.status == 2
    assert "did you mean trainer=logit_decay?" in done.err


def test_a_penalty(own: Own) -> None:
    erm = own("trainer=erm")
    without, with_it = (own("trainer=logit_decay", f"trainer.gamma={g}") for g in (0, 1))
    assert with_it.result()["gamma"] == 1
    assert with_it.records()[0]["losses"]["penalty"] > 0
    same, other = (weights(run) for run in (without, with_it))
    assert all(torch.equal(value, same[name]) for name, value in weights(erm).items())
    assert not all(torch.equal(value, other[name]) for name, value in weights(erm).items())


def weights(run: Outcome) -> dict[str, torch.Tensor]:
    return torch.load(newest_state(run.folder), weights_only=True)["model"]


ADVERSARY = ("trainer=adversary", "checkpoint_every=1")


def test_a_network_of_its_own_is_trained_and_resumed(
    own: Own, fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = own(*ADVERSARY, f"output_dir={tmp_path / 'whole'}", "steps_per_epoch=5")
    folder = next((tmp_path / "whole").glob("*"))
    expected = torch.load(newest_state(folder), weights_only=True)
    trainer = expected["trainer"]
    assert not torch.equal(trainer["discriminator.weight"], trainer["start"])
    assert set(expected["optimizers"]) == {"model", "discriminator"}
    assert expected["optimizers"]["discriminator"]["param_groups"][0]["lr"] == pytest.approx(3e-3)
    assert whole.status == 0
    for step in (2, 3, 7):  # before and after a step of the discriminator alone
        words = (*ADVERSARY, f"output_dir={tmp_path / str(step)}", "steps_per_epoch=5")
        with monkeypatch.context() as patch:
            stop_before(step, patch)
            options = (f"--config-dir={OUTSIDE / 'conf'}", "allow_targets=[mylab]")
            assert fishr_exp(*options, *words).status == 130
        assert own(*words).status == 0
        found = torch.load(newest_state(next((tmp_path / str(step)).glob("*"))), weights_only=True)
        for key in ("model", "trainer", "optimizers"):
            assert str(found[key]) == str(expected[key]), (step, key)
            for name, value in found["trainer"].items():
                assert torch.equal(value, trainer[name])


def test_two_processes_train_a_network_of_its_own_as_one(own: Own, tmp_path: Path) -> None:
    words = ("trainer=adversary", "batch_size=16")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    path = os.pathsep.join([str(ROOT), str(OUTSIDE)])
    done = subprocess.run(
        [*command, "-m", "fishr_exp", f"--config-dir={OUTSIDE / 'conf'}", *words, *TINY,
         "allow_targets=[mylab]", f"output_dir={tmp_path / 'two'}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two, one = outcome(tmp_path / "two"), own(*words)
    for ours, theirs in zip(two.records(), one.records(), strict=True):
        assert_close(ours, theirs)
    both = [
        torch.load(newest_state(run.folder), weights_only=True)["trainer"] for run in (two, one)
    ]
    for name, value in both[0].items():
        torch.testing.assert_close(value, both[1][name], rtol=1e-5, atol=1e-7)


UNTRAINED = {
    "no player owns": (
        "def players(self, model): return {'model': trainable(model)}",
        "its parameter extra.weight belongs to no player",
    ),
    "no gradient": ("pass", "its parameter extra.weight got no gradient in the first update"),
}


@pytest.mark.parametrize("what", UNTRAINED)
def test_a_network_that_would_not_be_trained_ends_the_run(
    what: str, fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    players, said = UNTRAINED[what]
    name = f"idle_{what.replace(' ', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "import torch\nfrom fishr_exp.core.contracts import trainable\n"
        "from fishr_exp.trainers.erm import Erm\n"
        "class Idle(Erm):\n"
        "    def prepare(self, model, facts):\n"
        "        self.extra = torch.nn.Linear(2, 2)\n        return model\n"
        f"    {players}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("trainer=erm", f"trainer._target_={name}.Idle", f"allow_targets=[{name}]")
    done = fishr_exp(*words)
    assert done.status in (1, 2)
    assert said in done.err
    assert "Traceback" not in done.err


def test_an_averaging_scheme(own: Own, fishr_exp: Command, tmp_path: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    words = ("averaging=running_mean", "trainer=erm", "checkpoint_every=1", "observer=last_step")
    plain, averaged = own("trainer=erm", "observer=last_step"), own(*words)
    assert plain.folder != averaged.folder
    state = torch.load(newest_state(averaged.folder), weights_only=True)
    assert all(torch.equal(value, state["model"][name]) for name, value in weights(plain).items())
    assert state["averaging"]["count"] == 4
    assert averaged.records()[-1]["accuracy"] != plain.records()[-1]["accuracy"]
    best = own(*words[:-1], "observer.patience=null")
    kept = best.checkpoint("best")
    assert not torch.equal(kept["model"]["classifier.weight"], weights(best)["classifier.weight"])
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        there = (f"--config-dir={OUTSIDE / 'conf'}", "allow_targets=[mylab]")
        assert fishr_exp(*there, *words, f"output_dir={tmp_path / 'again'}").status == 130
    own(*words, f"output_dir={tmp_path / 'again'}")
    again = torch.load(newest_state(next((tmp_path / "again").glob("*"))), weights_only=True)
    for name, value in state["averaging"].items():
        assert torch.equal(value, again["averaging"][name])


def test_a_tracker(own: Own, tmp_path: Path) -> None:
    tiny = tuple(word for word in TINY if "tracker" not in word)
    run = own("tracker=lines", f"tracker.directory={tmp_path / 'lines'}", tiny=tiny)
    (file,) = (tmp_path / "lines").glob("*.txt")
    sent = {tuple(line.split()[:2]) for line in file.read_text().splitlines()}
    assert {(str(record["step"]), "validation_loss") for record in run.records()} <= sent
    assert ("4", "accuracy/minus90/validation") in sent
    assert re.match(r"FINISHED .*'test_loss/minus90'", file.with_suffix(".end").read_text())


def test_a_metric(own: Own, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One entry of a dictionary: it is recorded, tracked, watched, and in the result."""
    wrong = lambda counts: 1 - evaluation.METRICS["accuracy"](counts)  # noqa: E731
    monkeypatch.setitem(evaluation.METRICS, "error", wrong)
    tiny = tuple(word for word in TINY if "tracker" not in word)
    run = own("metrics=[accuracy,error]", "observer.monitor=validation_error",
              "observer.mode=min", "tracker=lines",
              f"tracker.directory={tmp_path / 'lines'}", tiny=tiny)  # fmt: skip
    for record in run.records():
        assert record["validation_error"] == pytest.approx(1 - record["validation_accuracy"])
        assert set(record["error"]) == set(record["accuracy"])
    result = run.result()
    assert result["selected"]["monitor"] == "validation_error"
    assert result["test_error"]["minus90"] == pytest.approx(1 - result["test_accuracy"]["minus90"])
    (file,) = (tmp_path / "lines").glob("*.txt")
    assert " error/plus90/validation " in file.read_text()
    assert "'selected/validation_error'" in file.with_suffix(".end").read_text()


def test_an_image_dataset(own: Own, images: Path) -> None:
    run = own("dataset=pets", f"dataset.root={images}", "dataset.image_size=8", "batch_size=2",
              "test_domains=[sketch]", "model=mlp")  # fmt: skip
    assert run.result()["labels"]["dataset"] == "pets"
    assert run.result()["training_domains"] == ["cartoon", "photo"]


FAULTY = """
import torch
from fishr_exp.contracts import Model
from fishr_exp.gradient_variance import per_sample_losses

class Net(torch.nn.Module):
    calls = 0
    def forward(self, x):
        Net.calls += 1
        if Net.calls > 3:
            raise ValueError("a fault of the network's own")
        return x.flatten(1)

def network(*, input_shape, num_classes):
    features = 1
    for size in input_shape:
        features *= size
    return Model(Net(), torch.nn.Linear(features, num_classes))

class Loss:
    def __init__(self, label_smoothing=0.0, class_weights=None):
        pass
    def __call__(self, logits, targets):
        raise ValueError("a fault of the loss's own")
"""


@pytest.mark.parametrize("scope", ["classifier", "all"])
@pytest.mark.parametrize("part", ["network", "loss"])
def test_a_fault_of_a_users_part_is_the_users_traceback(
    part: str, scope: str, fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no advice to change trainer.engine or trainer.scope."""
    name = f"faulty_{part}_{scope}"
    (tmp_path / f"{name}.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = {
        "network": [
            f"model._target_={name}.network",
            "~model.hidden_layers",
            "~model.single_logit",
        ],
        "loss": [f"loss._target_={name}.Loss"],
    }[part]
    tiny = TINY if part == "loss" else (*TINY[1:], "~model.hidden")
    done = fishr_exp(*words, f"trainer.scope={scope}", f"allow_targets=[{name}]", tiny=tiny)
    assert done.status == 1
    assert f"ValueError: a fault of the {part}'s own" in done.err
    assert "Traceback" in done.err
    assert "trainer.engine" not in done.err
    assert "trainer.scope" not in done.err


def test_a_key_that_came_later_leaves_the_names_of_runs(own: Own, tmp_path: Path) -> None:
    """`_neutral_` in a group's YAML says at which value older runs are the same runs."""
    folder = tmp_path / "conf" / "trainer"
    folder.mkdir(parents=True)
    before = "_target_: mylab.logit_decay.LogitDecay\ngamma: 0.1\n"
    (folder / "decay.yaml").write_text(before)
    words = (f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "trainer=decay")
    first = own(*words)
    (folder / "decay.yaml").write_text(f"{before}l2: 0.0\n_neutral_: {{l2: 0}}\n")
    again = own(*words)
    assert again.folder == first.folder
    assert "done already" in again.err
    assert own(*words, "trainer.l2=0.5").folder != first.folder


def test_a_typo_lists_the_options_of_the_users_own_folder_too(fishr_exp: Command) -> None:
    done = fishr_exp(f"--config-dir={OUTSIDE / 'conf'}", "trainer=adversery")
    assert done.status == 2
    assert "choose from adversary, and_mask, " in done.err
    assert "did you mean trainer=adversary?" in done.err


def test_a_misspelled_key_of_a_users_own_option(fishr_exp: Command) -> None:
    words = (f"--config-dir={OUTSIDE / 'conf'}", "trainer=adversary", "trainer.wieght=1")
    done = fishr_exp(*words)
    assert done.status == 2
    assert "trainer.wieght=1: no such key; known are weight, lr_factor; did you mean" in done.err


def test_the_plan_knows_a_users_own_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hydra.core.global_hydra import GlobalHydra

    from fishr_exp.cli import plan

    monkeypatch.syspath_prepend(str(OUTSIDE))
    GlobalHydra.instance().clear()
    words = ["trainer=adversary", "allow_targets=[mylab]", f"output_dir={tmp_path}", *TINY]
    assert plan.main(["--config-dir", str(OUTSIDE / "conf"), *words]) == 0
    assert "1 run in" in capsys.readouterr().out


WIDE = """
import torch
from fishr_exp.contracts import Model

def network(*, input_shape, num_classes):
    features = 1
    for size in input_shape:
        features *= size
    classifier = torch.nn.Linear(features, num_classes + 3)
    torch.nn.init.zeros_(classifier.weight)
    with torch.no_grad():
        classifier.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0]))
    return Model(torch.nn.Flatten(), classifier)
"""


def test_a_classifier_with_more_outputs_than_classes_is_counted_right(
    fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wide_net.py").write_text(WIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("model._target_=wide_net.network", "~model.hidden_layers", "~model.single_logit",
             "~model.hidden", "allow_targets=[wide_net]", "trainer=erm",
             "optimizer.lr=1e-9")  # fmt: skip
    done = fishr_exp(*words, tiny=TINY[1:])
    assert done.status == 0, done.err
    assert done.result()["test_accuracy"] == {"minus90": 0.0}  # it always predicts class 4
