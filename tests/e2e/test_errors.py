"""A person's mistake: one line that says what is wrong, what is allowed and how to fix it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from fishr_exp.runs.run_folder import RunFolder

from .conftest import TINY, Command, Outcome, newest_state, process

FOLDER = ("dataset=image_folder", "model=mlp", "dataset.image_size=8", "batch_size=2",
          "test_domains=[sketch]")  # fmt: skip

BLOW_UP = ("optimizer=sgd", "optimizer.weight_decay=1e10", "steps_per_epoch=1")

# What is typed, and what the one line must hold.
MISTAKES = {
    "option": (["dataset=colored_digit"], ["dataset=colored_digit: no such option", "choose from",
        "rotated_digits", "did you mean dataset=colored_digits?"]),
    "option of a sweep": (["-m", "trainer=erm,fishrr"], ["trainer=fishrr: no such option", "erm"]),
    "experiment": (["experiment=table9"], ["experiment=table9: no such option", "quickstart"]),
    "folder of an option": (["experiment=a/b"], ["experiment=a/b: no such option", "quickstart"]),
    "a paragraph": (["hydra.searchpath=3"], ["hydra.searchpath must be a list of strings. Got: 3"]),
    "no option": (["trainer=null"],
                  ["trainer=null: no such option", "choose from ", " erm, ", " vrex"]),
    "option as number": (["model=3"], ["model=3: no such option", "choose from domainbed", "mlp"]),
    "group": (["traner=fishr"], ["traner=fishr: no such key", "known are", "mean trainer?"]),
    "key": (["trainer.gama=3"], ["trainer.gama=3: no such key", "known are gamma, convention",
        "did you mean trainer.gamma?"]),
    "key with +": (["+trainer.gama=3"], ["trainer.gama=3: no such key", "mean trainer.gamma?"]),
    "key in unknown group": (["treiner.gamma=3"], ["treiner.gamma=3: no such key", "trainer?"]),
    "key of another option": (["trainer=erm", "trainer.gamma=3"], ["trainer.gamma=3: no such key",
        "known are l2"]),
    "key of a swept group": (["-m", "trainer=erm,fishr", "trainer.gama=3"], ["trainer.gama=3"]),
    "hydra's key": (["hydra.run.dri=x"], ["hydra.run.dri=x: no such key"]),
    "type": (["epochs=many"], ["epochs=many: must be int"]),
    "fraction for a count": (["epochs=2.5"], ["epochs=2.5: must be int"]),
    "name for a list": (["test_domains=minus90"], ["test_domains=minus90: must be list[str]",
        "write test_domains=[minus90]"]),
    "no dataset.root": (["dataset=pacs", "model=mlp", "test_domains=[sketch]"], ["dataset.root=???",
        "add dataset.root=DIR"]),
    "key of no experiment": (["experimen=quickstart"], ["experimen=quickstart: no such key",
        "did you mean experiment?"]),
    "protocol": (["protcol=domainbed_main"], ["did you mean protocol?"]),
    "several options": (["trainer=coral,fishr"],
                        ["several values are a sweep; pass -m to run each"]),
    "key of an experiment's sweep": (["-m", "experiment=quickstart", "trainer=dann"],
                                     ["trainer.gamma=...: no such key; known are adversarial_",
                                      "the experiment sets or sweeps this key"]),
    "key that one option lacks": (["-m", "experiment=quickstart", "trainer=erm,coral"],
                                  ["trainer.gamma=...: trainer=erm has no such key"]),
    "several values": (["seed=0,1"], ["seed=0,1: several values are a sweep; pass -m to run each",
        "seed=[0,1]"]),
    "a space in a sweep": (["-m", "seed=0,"], ["seed=0,: a sweep is written without spaces"]),
    "an interval": (["-m", "trainer.gamma=interval(1,9)"], ["hydra/sweeper=fishr_exp: does not",
        "pass hydra/sweeper=optuna"]),
    "no folder": (["output_dir="], ["output_dir=: must name the folder", "pass output_dir=DIR"]),
    "no folder of a sweep": (["-m", "output_dir=", "seed=0,1"], ["output_dir=: must name the fol"]),
    "a loss to maximize": (["observer.monitor=validation_loss"], ["observer.mode=max: validation_",
        "pass observer.mode=min"]),
    "steps and epochs": (["total_steps=4"], ["epochs=2: exactly one of epochs and total_steps (=4)",
        "pass epochs=null"]),
    "no steps": (["epochs=null"], ["epochs=null: exactly one of epochs", "pass epochs=NUMBER"]),
    "no test_domains": (["dataset=pacs", "model=mlp", "dataset.root=x"], ["test_domains=???: must",
        "add test_domains=[NAME]"]),
    "no test_domains named": (["dataset=pacs", "model=mlp", "dataset.root=x",
        "test_domains=???"], ["the domains are art_painting, cartoon, photo, sketch"]),
    "key of a group": (["lr=0.1"], ["lr=0.1: no such key", "did you mean optimizer.lr?"]),
    "optimizer with a closure": (["optimizer._target_=torch.optim.LBFGS"],
        ["optimizer=LBFGS: needs a closure", "choose another optimizer"]),
    "key of another model": (["dataset=pacs"], ["model.hidden=8: no such key; known are library",
        "these are the keys of model=resnet50_pretrained; for others, pass model=NAME"]),
    "unknown domain": (["dataset=pacs", "model=mlp",
        "dataset.root=nowhere", "test_domains=[sketches]"], ["pacs has no domain sketches"]),
    "no domains": (["test_domains=null"], ["test_domains=null: must be list[str]"]),
    "removed key": (["~trainer.gamma"], ["trainer.gamma=???: must be given"]),
    "removed root key": (["~seed"], ["seed=null: was removed; pass seed=VALUE"]),
    "key of no part": (["averaging.decay=0.5"], ["averaging=none has no keys"]),
    "launcher": (["hydra/launcher=joblibb"], ["no such option; choose from basic"]),
    "launcher that is absent": (["hydra/launcher=submitit_slurm"], ["pip install -e '.[slurm]'"]),
    "removed group": (["~trainer"], ["trainer=null: was removed; pass trainer=NAME"]),
    "target": (["trainer._target_=fishr_exp.trainers.no.No"], ["trainer._target_=fishr_exp.train",
        "is not what an option of trainer builds", "pass trainer=NAME, or allow_targets="]),
    "two equals signs": (["trainer.gamma=1=2"], ["trainer.gamma=1=2: cannot be read as KEY=VALUE",
        "put quotes"]),
    "no equals sign": (["trainer.gamma"], ["trainer.gamma: cannot be read as KEY=VALUE"]),
    "open bracket": (["test_domains=[minus90"], ["test_domains=[minus90: cannot be read"]),
    "no key": (["=3"], ["=3: lacks a key; write KEY=VALUE"]),
    "interpolation": (["trainer.gamma=${nowhere}"], ["trainer.gamma: ", "'nowhere' not found"]),
    "negative gamma": (["trainer.gamma=-1"], ["trainer.gamma=-1.0: must be finite and not neg"]),
    "gamma not a number": (["trainer.gamma=nan"], ["trainer.gamma=nan: must be finite"]),
    "learning rate": (["optimizer.lr=-1"], ["optimizer.lr=-1: Invalid learning rate: -1.0"]),
    "no test domain": (["test_domains=[]"], ["test_domains=[]: leaves no domain to test on",
        "choose from plus90"]),
    "a domain twice": (["test_domains=[plus90,plus90]"], ["names a domain twice"]),
    "truth for a number": (["epochs=true"], ["epochs=true: must be int"]),
    "no such domain": (["test_domains=[mars]"], ["test_domains=[mars]: colored_digits has no "
        "domain mars", "choose from plus90, plus80, minus90"]),
    "all domains held out": (["trainer=erm", "test_domains=[plus90,plus80,minus90]"],
        ["leaves 0 of 3 domains of colored_digits", "trainer=erm needs 1", "choose at most 2"]),
    "one domain for Fishr": (["test_domains=[plus90,minus90]"], ["test_domains=[plus90, minus90]",
        "leaves 1 of 3", "trainer=fishr needs 2", "choose at most 1"]),
    "batch of one": (["batch_size=1"], ["batch_size=1", "at least 2 samples", "choose 2 or more"]),
    "batch over the domain": (["batch_size=9999"], ["batch_size=9999", "480 training samples",
        "choose at most 480"]),
    "no epochs": (["epochs=0"], ["epochs=0: must be 1 or more"]),
    "holdout": (["holdout_fraction=1.5"], ["holdout_fraction=1.5", "[0, 1)"]),
    "more workers than of use": (["num_workers=1000000"], ["num_workers=1000000: is more than this "
        "machine can use", "choose at most"]),
    "more steps than numbers": (["total_steps=1e15", "epochs=null"], ["is too large",
        "choose at most 1000000000000"]),
    "weights of no class": (["loss.class_weights=[0,0]"], ["loss.class_weights=[0, 0]: ",
        "must not all be 0"]),
    "device without numbers": (["device=meta"], ["device=meta: is not a device of this machine"]),
    "null for a folder": (["output_dir=null"], ["output_dir=null: must name the folder"]),
    "no folder of a run": (["hydra.run.dir="], ["hydra.run.dir=: must name the folder",
        "pass hydra.run.dir=DIR"]),
    "a line end": (["seed='1\n2'"], ["seed=1 2: must be int"]),
    "a long value": ([f"seed={'9x' * 300}"], ["must be int"]),
    "device": (["device=tpu9"], ["device=tpu9: is not a device of this machine", "auto or cpu"]),
    "key of some methods": (["-m", "trainer=erm,fishr", "trainer.gamma=1,2"], ["trainer.gamma=1,2: "
        "trainer=erm has no such key", "erm separately"]),
    "key of no method": (["-m", "trainer=erm,fishr", "trainer.gama=1,2"], ["trainer.gama=1,2: no "
        "such key", "did you mean trainer.gamma?"]),
    "precision": (["precision=fp16"], ["precision=fp16: choose from fp32, bf16"]),
    "compiled twice": (["compile=true", "trainer.scope=all"], ["compile=true: trainer.scope=all",
        "second derivatives", "compile=false"]),
    "monitor that is misspelled": (["observer.monitor=accuracy/plus80/validaton"], [
        "no evaluation gives it", "did you mean accuracy/plus80/validation?"]),
    "key of a penalty": (["trainer=composed", "trainer.penalties.fishr.gamma=1"], [
        "trainer.penalties holds no such key; pass +trainer.penalties.fishr.gamma=1 to add it"]),
    "key of a number": (["trainer.gamma.x=1"], ["no such key", "did you mean trainer.gamma?"]),
    "scope": (["trainer.scope=fc"], ["trainer.scope=fc: selects no trainable parameter; the "]),
    "class weights": (["loss.class_weights=[1,2,3]"], [
        "loss.class_weights=[1, 2, 3]: 3 weights, but there are 2 classes"]),
    "monitor": (["observer.monitor=luck"], ["observer.monitor=luck: no evaluation gives it",
        "choose from risk, penalty, objective"]),
    "monitor without validation": (["holdout_fraction=0"], ["observer.monitor=validation_accuracy",
        "no evaluation gives it", "train_accuracy", "holdout_fraction=0.2"]),
    "monitor of no domain": (["observer.monitor=accuracy/mars/train"], ["accuracy/mars/train: no",
        "accuracy/plus90/train"]),
    "root that is absent": ([*FOLDER, "dataset.root=nowhere/at/all"],
        ["dataset.root=nowhere/at/all: does not exist", "pass the folder"]),
}  # fmt: skip


def assert_one_line(outcome: Outcome, words: list[str], status: int = 2) -> None:
    assert outcome.status == status, outcome.err
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("fishr-exp: ")
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in outcome.err + outcome.out


@pytest.mark.parametrize(("typed", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(fishr_exp: Command, typed: list[str], words: list[str]) -> None:
    assert_one_line(fishr_exp(*typed), words)


@pytest.mark.parametrize("name", ["option", "key", "type", "negative gamma", "two equals signs"])
def test_full_error_is_a_traceback(fishr_exp: Command, name: str) -> None:
    outcome = fishr_exp(*MISTAKES[name][0], full_error=True)
    assert outcome.status == 1  # the interpreter's, for an uncaught exception
    assert "Traceback (most recent call last)" in outcome.err


def test_a_process_says_the_same() -> None:
    plain, full = (
        process("trainer.gamma=-1", "tracker=none", "output_dir=/proc/nowhere", env=env)
        for env in ({"HYDRA_FULL_ERROR": "0"}, {"HYDRA_FULL_ERROR": "1"})
    )
    out, err = plain.communicate()
    assert (plain.returncode, out) == (2, "")
    assert err == (
        "fishr-exp: output_dir=/proc/nowhere: this folder cannot be written "
        "(No such file or directory); choose another output_dir\n"
    )
    assert "Traceback" in full.communicate()[1]
    assert full.returncode == 1


def test_a_root_without_images(fishr_exp: Command, images: Path) -> None:
    for image in images.rglob("*.png"):
        image.unlink()
    outcome = fishr_exp(*FOLDER, f"dataset.root={images}")
    assert_one_line(outcome, [f"dataset.root={images}: contains no images", "domain/class/image"])


def test_a_small_domain_has_no_validation_part(fishr_exp: Command, images: Path) -> None:
    for path in sorted(images.glob("photo/*/*.png")):
        if path.stem not in ("0", "1"):
            path.unlink()
    words = ["holdout_fraction=0.25, since 0.2 of the 4 samples of domain photo is less than one"]
    assert_one_line(fishr_exp(*FOLDER, f"dataset.root={images}"), words)


def test_a_network_that_does_not_fit_leaves_no_folder(fishr_exp: Command, images: Path) -> None:
    network = ("model=torchvision", "model.name=alexnet", "trainer=erm")
    outcome = fishr_exp(*network, *FOLDER[:1], *FOLDER[2:], f"dataset.root={images}", tiny=TINY[1:])
    assert_one_line(outcome, ["model.name=alexnet: does not fit samples of 3x8x8", "image_size"])
    assert not list(outcome.folder.parent.glob("*"))


def test_domains_with_other_classes(fishr_exp: Command, images: Path) -> None:
    (images / "sketch" / "dog").rename(images / "sketch" / "cow")
    words = ["dataset.root=", "classes of domain sketch differ", "only sketch has cow", "dog"]
    assert_one_line(fishr_exp(*FOLDER, f"dataset.root={images}"), words)


@pytest.mark.parametrize("domain", ["photo", "sketch"])
def test_an_image_that_cannot_be_read(fishr_exp: Command, images: Path, domain: str) -> None:
    """Nothing looks into the images before they are used, so this is a run that failed: 1.

    A broken image of the test domain is met at the first evaluation.
    """
    for number in range(6):  # all, as a minibatch or an evaluation may not meet a single one
        image = images / domain / "cat" / f"{number}.png"
        image.write_bytes(image.read_bytes()[:60])
    outcome = fishr_exp(*FOLDER, f"dataset.root={images}")
    words = [str(images / domain / "cat"), ".png: the image cannot be read", str(outcome.folder)]
    assert_one_line(outcome, words, status=1)
    assert outcome.result()["status"] == "failed"
    assert "the image cannot be read" in outcome.result()["error"]


def test_an_objective_that_becomes_infinite(fishr_exp: Command) -> None:
    words = ("trainer.gamma=1e300", "trainer.anneal_steps=4", "epochs=9")
    outcome = fishr_exp(*words)
    *evaluations, last = outcome.err.splitlines()
    assert [line.split()[:2] for line in evaluations] == [["epoch", "1/9"], ["epoch", "2/9"]]
    assert last.startswith("fishr-exp: the objective is not finite at step 4 (risk 0.")
    assert last.endswith(f"records and checkpoints are in {outcome.folder}")
    assert outcome.status == 1
    assert outcome.result()["status"] == "failed"
    assert "step 4" in outcome.result()["error"]
    assert [record["step"] for record in outcome.records()] == [2, 4]
    assert not (outcome.folder / "done").exists()
    for name in ("best", "last"):
        state = outcome.checkpoint(name)
        assert state["step"] <= 4
        assert all(value.isfinite().all() for value in state["model"].values())
    # Given again, it is left alone; or goes on, fails there again, and doubles no record.
    again = fishr_exp(*words)
    words_said = ["this run failed before (the objective is not", "pass retry_failed=true"]
    assert_one_line(again, words_said, status=1)
    again = fishr_exp(*words, "retry_failed=true")
    assert again.status == 1
    continuing, failed = again.err.splitlines()
    assert continuing == f"continuing {again.folder} after step 4"
    assert failed == last
    assert again.records() == outcome.records()


def test_weights_that_become_infinite_are_not_saved(fishr_exp: Command) -> None:
    outcome = fishr_exp(*BLOW_UP, "optimizer.lr=1e38")  # the first objective is finite
    assert_one_line(outcome, ["the model's weights are not finite after step 1"], status=1)
    assert outcome.result()["status"] == "failed"
    assert list((outcome.folder / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("key", ["output_dir", "hydra.run.dir"])
def test_a_file_in_the_way_of_the_folder(fishr_exp: Command, tmp_path: Path, key: str) -> None:
    (tmp_path / "file").touch()
    words = [f"{key}={tmp_path}/file", "this folder cannot be written", f"choose another {key}"]
    assert_one_line(fishr_exp(f"{key}={tmp_path}/file"), words)


def test_a_disk_that_fills_up(fishr_exp: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: RunFolder, record: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.path / "records.jsonl"))

    monkeypatch.setattr(RunFolder, "append", full)
    outcome = fishr_exp()
    assert_one_line(outcome, ["No space left on device", "records.jsonl"], status=1)
    assert outcome.result()["status"] == "failed"


def test_a_fault_of_ours_shows_where_it_is(
    fishr_exp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("fishr_exp.training.run.Prepared.count", fault)
    outcome = fishr_exp()
    assert outcome.status == 1
    assert outcome.err.startswith("fishr-exp: the run failed\nTraceback")
    assert outcome.err.count("Traceback") == 1
    assert outcome.err.endswith("RuntimeError: a fault of ours\n")
    assert "a fault of ours" in (outcome.folder / "fishr-exp.log").read_text()
    assert outcome.result()["status"] == "failed"


@pytest.mark.parametrize("how", ["done", "stopped"])
def test_a_folder_with_a_run_of_other_settings(
    fishr_exp: Command, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "runs" / "one"
    before = fishr_exp(f"hydra.run.dir={folder}").result()
    if how == "stopped":
        (folder / "done").unlink()
    outcome = fishr_exp(f"hydra.run.dir={folder}", "optimizer.lr=0.5")
    words = [str(folder), "holds a run with other settings", "optimizer.lr (0.001 there, 0.5 here)",
             "choose another", "resume=false"]  # fmt: skip
    assert_one_line(outcome, words)
    assert outcome.result() == before
    assert fishr_exp(f"hydra.run.dir={folder}", "optimizer.lr=0.5", "resume=false").status == 0
    assert outcome.result() != before


def test_a_folder_that_another_process_has(fishr_exp: Command) -> None:
    folder = fishr_exp().folder
    shutil.rmtree(folder)
    folder.mkdir()
    with FileLock(folder / ".lock"):
        assert_one_line(fishr_exp(), [str(folder), "another process is running in this folder"])


def test_a_bad_job_does_not_stop_a_sweep(fishr_exp: Command, tmp_path: Path) -> None:
    outcome = fishr_exp("-m", "trainer.gamma=1,-1,10", "check_first=false")
    assert outcome.status == 2
    said = [line for line in outcome.err.splitlines() if line.startswith("fishr-exp: ")]
    assert len(said) == 1
    assert "trainer.gamma=-1.0: must be" in said[0]
    assert "Traceback" not in outcome.err
    done = sorted(path.parent.name[:15] for path in (tmp_path / "runs").glob("*/done"))
    assert done == ["fishr-gamma0-se", "fishr-gamma1-se", "fishr-gamma10-s"]


def test_a_failed_job_does_not_stop_a_sweep(fishr_exp: Command, tmp_path: Path) -> None:
    outcome = fishr_exp("-m", *BLOW_UP, "optimizer.lr=1e38,1e-20")
    assert outcome.status == 1
    # At once, in the sweep's line of the run, and at the end.
    assert outcome.err.count("weights are not finite") == 3
    assert "Traceback" not in outcome.err
    assert len(list((tmp_path / "runs").glob("*/done"))) == 1


def test_ctrl_c_says_how_to_go_on(fishr_exp: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fishr_exp.training.loop.optimizer_step", interrupt)
    outcome = fishr_exp()
    assert_one_line(outcome, ["stopped; the same command resumes"], status=130)
    assert not (outcome.folder / "result.json").exists()


def test_the_error_is_in_the_log_of_the_run(fishr_exp: Command, tmp_path: Path) -> None:
    fishr_exp(*BLOW_UP, "optimizer.lr=1e38")
    (log,) = (tmp_path / "runs").rglob("fishr-exp.log")
    assert "weights are not finite" in log.read_text()


def test_a_broken_checkpoint_says_how_to_start_from_scratch(fishr_exp: Command) -> None:
    folder = fishr_exp().folder
    (folder / "done").unlink()
    torch.save(torch.nn.Linear(1, 1), newest_state(folder))  # not only weights
    words = ["step-4.pt is not a readable checkpoint", "resume=false"]
    assert_one_line(fishr_exp(), words, status=1)
    assert fishr_exp("resume=false").status == 0


@pytest.mark.parametrize("word", ["observer.monitor=f1", "trainer.scope=classifer"])
def test_a_mistake_that_shows_at_the_first_step_leaves_nothing_behind(
    fishr_exp: Command, tmp_path: Path, word: str
) -> None:
    for _ in range(2):  # nor does the second time say that the run failed before
        outcome = fishr_exp(word)
        assert outcome.status == 2
        assert word in outcome.err
        assert not (tmp_path / "runs").exists()
