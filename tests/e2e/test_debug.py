"""Presets for debugging, the profiler, the tree of a configuration, and tags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import TINY, Command
from .test_averaging import same
from .test_schedules import states

NONE: tuple[str, ...] = ("model.hidden=8",)


def out(tmp_path: Path) -> str:
    return f"output_dir={tmp_path / 'runs'}"


def test_the_presets_have_a_folder_of_their_own_and_no_tracker(
    fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fast_dev_run", "overfit", "profile"):
        shown = fishr_exp("--cfg=job", f"debug={name}", tiny=()).out
        assert "tracker: null" in shown
        assert "resume: false" in shown
    done = fishr_exp("debug=fast_dev_run", "hydra.run.dir=${runs_dir:}/x", tiny=NONE)
    assert done.status == 0, done.err
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["debug"]


def test_a_fast_run_makes_two_steps_and_one_evaluation_every_time(
    fishr_exp: Command, tmp_path: Path
) -> None:
    for _ in range(2):
        done = fishr_exp("debug=fast_dev_run", out(tmp_path), tiny=NONE)
        assert done.status == 0, done.err
        assert [record["step"] for record in done.records()] == [2]
        assert "done already" not in done.err
        assert done.result()["counts"]["plus90"] == {"train": 128, "validation": 119}


@pytest.mark.parametrize(
    "words",
    [["experiment=quickstart", "seed=0", "trainer.gamma=1,10"], ["experiment=zoo_quickstart"]],
)
def test_a_preset_comes_after_an_experiment(
    words: list[str], fishr_exp: Command, tmp_path: Path
) -> None:
    some = [] if len(words) > 1 else ["trainer=erm,dann"]
    done = fishr_exp("-m", *words, *some, "debug=fast_dev_run", out(tmp_path), tiny=NONE)
    assert done.status == 0, done.err
    folders = [path.parent for path in (tmp_path / "runs").glob("*/done")]
    assert len(folders) >= 2
    for folder in folders:
        assert json.loads((folder / "config.json").read_text())["total_steps"] == 2


def test_a_model_learns_the_same_few_samples_by_heart(fishr_exp: Command, tmp_path: Path) -> None:
    done = fishr_exp("debug=overfit", "trainer=erm", out(tmp_path), tiny=("model.hidden=64",))
    assert done.status == 0, done.err
    assert done.result()["train_accuracy"] == 1.0
    assert done.result()["selected"]["step"] == 200
    assert done.result()["counts"]["plus90"]["train"] == 16
    # the labels are wrong in a quarter of the cases, which cannot be learned otherwise
    assert done.result()["validation_accuracy"] < 0.95


def test_a_profile_is_a_table_and_a_trace_and_changes_no_bit(
    fishr_exp: Command, tmp_path: Path
) -> None:
    words = ("total_steps=8", "steps_per_epoch=4", "epochs=null")
    small = (*TINY[:1], TINY[3], *words)
    done = fishr_exp("profile_steps=4", tiny=small)
    assert done.status == 0, done.err
    assert "profile of 4 steps, in profile.txt and trace.json:" in done.err
    assert "ProfilerStep*" in (done.folder / "profile.txt").read_text()
    events = json.loads((done.folder / "trace.json").read_text())["traceEvents"]
    assert len({e["name"] for e in events if e.get("name", "").startswith("ProfilerStep#")}) == 4
    plain = fishr_exp(f"output_dir={tmp_path / 'plain'}", tiny=small)
    (other,) = (tmp_path / "plain").glob("fishr-*")
    assert plain.status == 0
    assert other.name == done.folder.name  # it is not part of what a run is
    assert same(states(other), states(done.folder))
    again = fishr_exp("resume=false", tiny=small)
    assert not (again.folder / "trace.json").exists()


def test_too_few_steps_for_a_profile_are_said(fishr_exp: Command) -> None:
    done = fishr_exp("profile_steps=4", "epochs=1", "steps_per_epoch=2", tiny=(TINY[0], TINY[3]))
    assert done.status == 0
    assert "profile_steps=4: the run made no step after the first 3, which are left out" in done.err


def test_the_configuration_is_shown_and_tags_are_recorded(
    fishr_exp: Command, tmp_path: Path
) -> None:
    plain = fishr_exp(tiny=TINY)
    done = fishr_exp("print_config=true", "tags=[pilot,two words]", "resume=false", tiny=TINY)
    assert done.status == 0, done.err
    assert done.folder == plain.folder
    assert "├── seed: 0" in done.err
    assert "│   ├── gamma: 1.0" in done.err
    environment = json.loads((done.folder / "environment.json").read_text())
    assert environment["tags"] == ["pilot", "two words"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("tags=['']", "tags='': a tag is a word or some words; leave it out"),
        ("profile_steps=0", "profile_steps=0: must be 1 or more"),
        ("limit_samples=1", "limit_samples=1: must be 2 or more"),
        (
            "debug=fastdevrun",
            "debug=fastdevrun: no such option; choose from fast_dev_run, overfit, ",
        ),
    ],
)
def test_what_cannot_be_is_one_line(word: str, said: str, fishr_exp: Command) -> None:
    done = fishr_exp(word, tiny=TINY)
    assert done.status == 2
    assert f"fishr-exp: {said}" in done.err
