"""Run folders that are damaged, or somebody else's: told in one line, and nothing is lost.

The files of a small run are replaced, cut, doubled or removed. Runs are started as the command does
after Hydra, which takes most of a call's time; the cases marked slow go through the command itself.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fishr_exp.cli import diagnostics as diagnostics_cli
from fishr_exp.cli import sync as sync_cli
from fishr_exp.cli import table as table_cli
from fishr_exp.configuration.binding import arguments
from fishr_exp.configuration.messages import one_line
from fishr_exp.configuration.options import conf_dir
from fishr_exp.configuration.starting import register_run_name
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.mirror import End, Mirror, Point
from fishr_exp.tracking.state import State
from fishr_exp.training import loop
from fishr_exp.training.arguments import Arguments
from fishr_exp.training.run import run
from tests.e2e.conftest import TINY, Command

WORDS = (*TINY, "epochs=3", "checkpoint_every=1", "trainer.gamma=1", "diagnostics=true")
WAY_OUT = (
    "remove this file",
    "resume=false",
    "move it away",
    "choose a new or empty folder",
    "restore",
)
DEEP = 100_000


# --- what a run is started with, and what it leaves --------------------------------------------


@pytest.fixture(scope="module")
def asked() -> Arguments:
    """The arguments of a small run, as the command line composes them."""
    GlobalHydra.instance().clear()
    register_run_name()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra.compose("config", [*WORDS], return_hydra_config=True)
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        return arguments(own, config.hydra.runtime.choices, WORDS)


@pytest.fixture(scope="module")
def runs(asked: Arguments, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that was stopped in its third epoch, and one that is done."""
    folder = tmp_path_factory.mktemp("runs")
    real = loop.optimizer_step

    def step_or_stop(*given: Any) -> Any:
        if given[4] == 5:
            raise KeyboardInterrupt
        return real(*given)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(loop, "optimizer_step", step_or_stop)
        run(asked, folder / "stopped")
    shutil.copytree(folder / "stopped", folder / "done")
    run(asked, folder / "done")
    return {name: folder / name for name in ("stopped", "done")}


@pytest.fixture
def stopped(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the stopped run: records of steps 2 and 4, checkpoints of steps 4 and 5."""
    return Path(shutil.copytree(runs["stopped"], tmp_path / "runs" / "stopped"))


@pytest.fixture
def done(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the run that is done, beside another copy that is never touched."""
    shutil.copytree(runs["done"], tmp_path / "runs" / "whole")
    return Path(shutil.copytree(runs["done"], tmp_path / "runs" / "hurt"))


def told(asked: Arguments, folder: Path, **changes: Any) -> str:
    """Start the run; return the one line by which it is refused, or nothing when it is done."""
    line = ""
    try:
        run(replace(asked, **changes), folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the command would show it
        line = one_line(error) or f"traceback: {error!r}"
    assert not line.startswith("traceback")
    assert len(line.splitlines()) <= 1
    assert len(line) < 1000
    return line


def assert_refused(line: str, *words: str) -> None:
    """Check that a line names what is wrong, and a way out."""
    assert line, "not refused"
    assert any(way in line for way in WAY_OUT), line
    for word in words:
        assert word in line


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, but for locks and what Hydra and we log."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "fishr-exp.log")
    }


# --- what may stand in a file's place ----------------------------------------------------------


def of_bytes(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def folder_instead(path: Path) -> None:
    path.mkdir()
    (path / "mine.txt").write_text("mine")


def loop_of_links(path: Path) -> None:
    path.symlink_to(path.name)


def socket_instead(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # its address must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


PLACED: dict[str, Callable[[Path], None]] = {
    "list": of_bytes(b"[1]"),
    "null": of_bytes(b"null"),
    "number": of_bytes(b"5"),
    "text": of_bytes(b'""'),
    "nothing": of_bytes(b""),
    "binary": of_bytes(bytes(range(256)) * 8),
    "zeros": of_bytes(bytes(4096)),
    "not-utf-8": of_bytes(b'{"seed": "\xff\xfe"}'),
    "utf-16": of_bytes('{"seed": 0}'.encode("utf-16")),
    "cut": of_bytes(b'{"seed": 0, "labels": {"data'),
    "deep-lists": of_bytes(b"[" * DEEP + b"]" * DEEP),
    "deep-objects": of_bytes(b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "deep-in-a-key": of_bytes(b'{"seed":' + b"[" * 500 + b"]" * 500 + b"}"),
    "huge-number": of_bytes(b'{"seed": ' + b"9" * 10_000 + b"}"),
    "folder": folder_instead,
    "pipe": os.mkfifo,
    "socket": socket_instead,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link-to-itself": loop_of_links,
}


# Of each kind of content one goes without `slow`.
QUICK = {"list", "null", "not-utf-8", "deep-lists", "folder", "pipe"}


def mostly_slow(cases: Iterable[Any], quick: Iterable[str] = QUICK) -> list[Any]:
    """Mark all cases as slow but those of these names."""
    marks = {False: pytest.mark.slow, True: ()}
    split = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=marks[case[-1] in quick]) for case in split]


def place(path: Path, what: str) -> None:
    path.unlink(missing_ok=True)
    PLACED[what](path)


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """End a test that waits for a pipe, or reads a device without an end."""

    def too_long(*_: object) -> None:
        raise TimeoutError("it hangs")

    earlier = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


@pytest.fixture(autouse=True)
def _without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds, and read nothing that the tables do not read; some tests draw them."""
    if "drawn" in request.node.name:
        return
    from fishr_exp.reports import output
    from fishr_exp.reports.figures import curves, diagnostics

    monkeypatch.setattr(output, "draw_all", lambda *_: [])
    monkeypatch.setattr(curves, "draw_curves", lambda *_: [])
    monkeypatch.setattr(diagnostics, "draw_diagnostics", lambda *_: [])


# --- readers: the other runs go on -------------------------------------------------------------


SPOILT = [
    (name, what) for name in ("config.json", "result.json", "records.jsonl") for what in PLACED
]


@pytest.mark.parametrize(("name", "what"), mostly_slow(SPOILT), ids=lambda value: value)
def test_a_table_of_the_other_runs(
    name: str, what: str, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place(done / name, what)
    assert table_cli.main([str(done.parent)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (line,) = [line for line in out.splitlines() if "unreadable:" in line]
    assert str(done) in line
    assert name in line
    assert "start its run again with resume=false, or remove the folder" in line
    assert "1 done" in out
    (row,) = csv.DictReader((done.parent / "table" / "table.csv").open())
    assert row["test_minus90_n"] == "1"


def in_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def set_at(*place: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets a value: `set_at(key, ..., value)`."""
    *keys, last, value = place

    def change(of: Any) -> None:
        for key in keys:
            of = of[key]
        of[last] = value

    return change


def lacks(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda of: of.pop(key)


RESULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "accuracy-above-1": (set_at("test_accuracy", "minus90", 1.5), "test_accuracy.minus90 is 1.5"),
    "accuracy-below-0": (set_at("test_accuracy", "minus90", -0.1), "a fraction in [0, 1]"),
    "accuracy-in-percent": (set_at("validation_accuracy", 97.0), "validation_accuracy is 97.0"),
    "accuracy-of-a-part": (set_at("accuracy", "plus90", "train", 2), "accuracy.plus90.train is 2"),
    "accuracy-infinite": (set_at("test_accuracy", "minus90", "Infinity"), "fraction"),
    "accuracy-text": (set_at("test_accuracy", "minus90", "high"), 'is "high"'),
    "accuracy-true": (set_at("test_accuracy", "minus90", True), "is true"),
    "accuracy-null": (set_at("test_accuracy", "minus90", None), "no accuracy of minus90"),
    "accuracy-list": (set_at("accuracy", [1]), "accuracy is a list"),
    "other-seed": (set_at("seed", 3), "seed (3 there, 0 in config.json)"),
    "other-method": (set_at("method", "ERM"), 'method ("ERM" there'),
    "other-gamma": (set_at("gamma", 7.0), "gamma (7 there, 1 in config.json)"),
    "other-domains": (set_at("test_domains", ["plus90"]), "test_domains"),
    "seed-text": (set_at("seed", "zero"), 'seed is "zero"'),
    "seed-fraction": (set_at("seed", 0.5), "seed is 0.5"),
    "labels-list": (set_at("labels", [1]), "labels is a list"),
    "label-number": (set_at("labels", "model", 3), "labels.model is 3"),
    "selected-null": (set_at("selected", None), "selected is null"),
    "step-text": (set_at("selected", "step", "six"), 'step is "six"'),
    "step-negative": (set_at("selected", "step", -1), "step is -1"),
    "step-huge": (set_at("selected", "step", 10**30), "step is 1000"),
    "counts-text": (set_at("counts", "plus90", "train", "many"), "counts.plus90.train"),
    "data-number": (set_at("data", "plus90", 3), "data.plus90 is 3"),
    "seconds-text": (set_at("seconds", "long"), "seconds is"),
    "last-list": (set_at("last", [6]), "last is a list"),
    "ends-elsewhere": (set_at("last", "step", 9), "ends at step 6, and the run at step 9"),
    **{f"lacks-{key}": (lacks(key), f"lacks '{key}'") for key in (
        "labels", "seed", "test_domains", "selected", "test_accuracy"
    )},
}  # fmt: skip


@pytest.mark.parametrize("what", RESULTS)
def test_a_result_that_is_not_one(
    what: str, asked: Arguments, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = RESULTS[what]
    in_json(done / "result.json", change)
    assert table_cli.main([str(done.parent)]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "unreadable:" in line]
    assert said in line
    if what != "accuracy-null":  # a domain without samples has no accuracy
        before = contents(done)
        assert_refused(told(asked, done), said)
        assert contents(done) == before


RECORDS_HURT: dict[str, Callable[[list[str]], list[str]]] = {
    "without-step": lambda lines: [lines[0].replace('"step"', '"stop"'), *lines[1:]],
    "text-for-a-step": lambda lines: [lines[0].replace('"step": 2', '"step": "two"'), *lines[1:]],
    "step-true": lambda lines: [lines[0].replace('"step": 2', '"step": true'), *lines[1:]],
    "step-negative": lambda lines: [lines[0].replace('"step": 2', '"step": -2'), *lines[1:]],
    "step-infinite": lambda lines: [lines[0].replace('"step": 2', '"step": 1e999'), *lines[1:]],
    "text-for-a-loss": lambda lines: [
        json.dumps({**json.loads(lines[0]), "losses": {"risk": "low"}}), *lines[1:]
    ],
    "losses-null": lambda lines: [json.dumps({**json.loads(lines[0]), "losses": None}), *lines[1:]],
    "accuracy-above-1": lambda lines: [
        json.dumps({**json.loads(lines[0]), "validation_accuracy": 40.0}), *lines[1:]
    ],
    "accuracy-number": lambda lines: [
        json.dumps({**json.loads(lines[0]), "accuracy": 0.5}), *lines[1:]
    ],
    "diagnostics-text": lambda lines: [
        json.dumps({**json.loads(lines[0]), "diagnostics": "all well"}), *lines[1:]
    ],
    "seconds-text": lambda lines: [
        *lines[:-1], json.dumps({**json.loads(lines[-1]), "seconds": "long"})
    ],
    "time-text": lambda lines: [json.dumps({**json.loads(lines[0]), "time": "noon"}), *lines[1:]],
    "doubled": lambda lines: [lines[0], lines[0], *lines[1:]],
    "doubled-at-the-end": lambda lines: [*lines, lines[-1]],
    "going-back": lambda lines: [lines[1], lines[0], *lines[2:]],
    "a-line-gone": lambda lines: lines[1:],
    "a-line-more": lambda lines: [lines[0].replace('"step": 2', '"step": 1'), *lines],
    "a-number": lambda lines: [lines[0], "5", *lines[1:]],
    "a-list-at-the-end": lambda lines: [*lines, "[1]"],
    "cut-in-the-middle": lambda lines: [lines[0][:40], *lines[1:]],
    "cut-with-a-new-line": lambda lines: [*lines[:-1], lines[-1][:40]],
    "an-empty-line": lambda lines: [lines[0], "", *lines[1:]],
    "emptied": lambda lines: [],
}  # fmt: skip


def hurt_records(folder: Path, what: str) -> None:
    path = folder / "records.jsonl"
    lines = RECORDS_HURT[what](path.read_text().splitlines())
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("what", RECORDS_HURT)
def test_records_of_a_stopped_run(what: str, asked: Arguments, stopped: Path) -> None:
    hurt_records(stopped, what)
    before = contents(stopped)
    assert_refused(told(asked, stopped), "records.jsonl")
    assert contents(stopped) == before


@pytest.mark.parametrize("what", sorted({*RECORDS_HURT} - {"a-line-gone", "a-line-more"}))
def test_records_of_a_run_that_is_done(
    what: str, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hurt_records(done, what)
    arguments = [str(done.parent), "--protocol", "domainbed"]
    for more in (arguments[:1], arguments):
        table_cli.main(more)
        out = "".join(capsys.readouterr())
        assert "Traceback" not in out
        assert f"unreadable: {done}: records.jsonl" in out or "1 unreadable" in out, out
    assert diagnostics_cli.main([str(done), str(done.parent / "whole")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"RUN={done}: records.jsonl" in line or what == "emptied"


def test_a_line_that_was_cut_off_is_made_again(asked: Arguments, stopped: Path) -> None:
    with (stopped / "records.jsonl").open("a") as file:
        file.write('{"step": 6, "epo')
    assert told(asked, stopped) == ""
    steps = [json.loads(line)["step"] for line in (stopped / "records.jsonl").open()]
    assert steps == [2, 4, 6]


def test_records_that_were_removed(asked: Arguments, stopped: Path) -> None:
    (stopped / "records.jsonl").unlink()
    assert_refused(told(asked, stopped), "records.jsonl", "lacks the evaluation of step 2")
    assert (stopped / "checkpoints" / "step-5.pt").exists()
    assert told(asked, stopped, resume=False) == ""


def test_records_that_were_removed_of_a_run_that_is_done(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (done / "records.jsonl").unlink()
    assert table_cli.main([str(done.parent)]) == 0
    assert f"unreadable: {done}: records.jsonl ends at step 0" in capsys.readouterr().out


# --- a run that meets them ---------------------------------------------------------------------


@pytest.mark.parametrize("what", mostly_slow(PLACED))
@pytest.mark.parametrize("name", ["config.json", "records.jsonl", "data.json", "result.json"])
def test_a_stopped_run(name: str, what: str, asked: Arguments, stopped: Path) -> None:
    place(stopped / name, what)
    before = contents(stopped)
    line = told(asked, stopped)
    if what == "link-to-itself":  # as if there were none
        cannot = "cannot be written (Too many levels of symbolic links); choose another output_dir"
        assert cannot in line if name == "records.jsonl" else line == ""
        return
    if name == "records.jsonl" and what in ("nothing", "zeros"):
        assert "lacks the evaluation of step 2" in line
        before.pop(name)  # it was cut off
    assert_refused(line, name)
    assert {**contents(stopped), **before} == contents(stopped)


@pytest.mark.parametrize("what", mostly_slow(PLACED, ("null", "pipe", "folder")))
def test_a_stopped_run_with_other_files_for_trackers(
    what: str, asked: Arguments, stopped: Path
) -> None:
    """The state of a tracker, and the environment, are made again."""
    place(stopped / "tracking.json", what)
    if what != "folder":
        place(stopped / "environment.json", what)
    assert told(asked, stopped) == ""
    assert RunFolder(stopped).state == "done"


def test_a_folder_in_place_of_the_environment(asked: Arguments, stopped: Path) -> None:
    place(stopped / "environment.json", "folder")
    assert "environment.json" in told(asked, stopped)


@pytest.mark.parametrize("content", ["[]", '{"plus90": 3}', '{"plus90": null}', '{"plus90": {}}'])
def test_digests_that_are_none(content: str, asked: Arguments, stopped: Path) -> None:
    (stopped / "data.json").write_text(content)
    assert_refused(told(asked, stopped), "data.json")


def test_a_mark_without_a_result(asked: Arguments, done: Path, stopped: Path) -> None:
    (done / "result.json").unlink()
    assert told(asked, done) == ""
    expected = json.loads((done.parent / "whole" / "result.json").read_text())
    found = json.loads((done / "result.json").read_text())
    assert found["test_accuracy"] == expected["test_accuracy"]
    (stopped / "done").touch()
    assert told(asked, stopped) == ""
    found = json.loads((stopped / "result.json").read_text())
    assert found["test_accuracy"] == expected["test_accuracy"]


def test_a_mark_without_a_result_in_a_table(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (done / "result.json").unlink()
    assert table_cli.main([str(done.parent)]) == 0
    assert f"unreadable: {done}: result.json is missing; " in capsys.readouterr().out


def test_a_folder_in_place_of_the_mark(asked: Arguments, stopped: Path) -> None:
    place(stopped / "done", "folder")
    line = told(asked, stopped)
    assert "done" in line
    assert (stopped / "done" / "mine.txt").exists()


def test_links_that_go_round(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (done.parent / "again").symlink_to(done.parent)
    (done / "up").symlink_to("..")
    assert table_cli.main([str(done.parent)]) == 0
    assert "Read 2 runs: 2 done" in capsys.readouterr().out


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # pragma: no cover
    (done / "result.json").chmod(0)
    assert table_cli.main([str(done.parent)]) == 0
    assert f"unreadable: {done}: result.json cannot be read" in capsys.readouterr().out


# --- checkpoints -------------------------------------------------------------------------------


def state_of(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def first_tensor(state: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    inner = state[key]
    return inner, next(name for name, value in inner.items() if isinstance(value, torch.Tensor))


def other_shape(key: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        inner, name = first_tensor(state, key)
        inner[name] = torch.zeros(3, 5, 7)

    return change


def in_the_optimizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda state: change(state["optimizers"]["model"])


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"lacks-{key}": lacks(key) for key in (
        "step", "logged", "seconds", "model", "trainer", "optimizers", "moved", "averaging",
        "observer", "random",
    )},
    **{f"{key}-text": set_at(key, "text") for key in (
        "step", "logged", "seconds", "waited", "model", "trainer", "optimizers", "averaging",
        "observer", "random",
    )},
    **{f"{key}-null": set_at(key, None) for key in ("step", "model", "random", "settings")},
    "step-of-another": set_at("step", 4),
    "step-fraction": set_at("step", 5.0),
    "step-tensor": set_at("step", torch.tensor(5)),
    "step-negative": set_at("step", -5),
    "seconds-nan": set_at("seconds", float("nan")),
    "logged-list": set_at("logged", [1.0]),
    "logged-number": set_at("logged", "risk", 1.0),
    "logged-matrix": set_at("logged", "risk", torch.zeros(2, 2)),
    "logged-too-long": set_at("logged", "risk", torch.zeros(100)),
    "observer-list": set_at("observer", [0, 0, 0]),
    "best-text": set_at("observer", "best", "high"),
    "best-step-text": set_at("observer", "best_step", "two"),
    "best-step-later": set_at("observer", "best_step", 6),
    "waited-text": set_at("observer", "waited", "long"),
    "model-of-another-shape": other_shape("model"),
    "model-with-a-list": set_at("model", [1.0]),
    "model-with-text": lambda state: state["model"].update(dict.fromkeys(state["model"], "w")),
    "optimizer-without-groups": in_the_optimizer(lacks("param_groups")),
    "optimizer-without-state": in_the_optimizer(lacks("state")),
    "optimizer-of-another-shape": in_the_optimizer(
        lambda of: of["state"][0].update(exp_avg=torch.zeros(3, 5, 7))
    ),
    "optimizer-with-a-rate-of-text": in_the_optimizer(
        lambda of: of["param_groups"][0].update(lr="fast")
    ),
    "optimizer-without-parameters": in_the_optimizer(
        lambda of: of["param_groups"][0].update(params=[])
    ),
    "random-of-numbers": set_at("random", [1, 2, 3]),
    "random-empty": set_at("random", [{}]),
    "settings-list": set_at("settings", [1]),
}  # fmt: skip


@pytest.fixture
def with_state(stopped: Path) -> Callable[[str], None]:
    """Change the newest checkpoint of the stopped run."""

    def change(what: str) -> None:
        newest = stopped / "checkpoints" / "step-5.pt"
        state = state_of(newest)
        STATES[what](state)
        torch.save(state, newest)

    return change


@pytest.mark.parametrize("what", STATES)
def test_the_only_checkpoint_is_none(
    what: str, asked: Arguments, stopped: Path, with_state: Callable[[str], None]
) -> None:
    with_state(what)
    (stopped / "checkpoints" / "step-4.pt").unlink()
    before = contents(stopped)
    assert_refused(told(asked, stopped), "step-5.pt is not a readable checkpoint")
    assert contents(stopped) == before


@pytest.mark.parametrize(
    "what", mostly_slow(STATES, ("lacks-model", "step-text", "optimizer-of-another-shape"))
)
def test_the_newest_checkpoint_is_none(
    what: str, asked: Arguments, runs: dict[str, Path], stopped: Path,
    with_state: Callable[[str], None], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The run goes on from the one before, to the same end."""
    with_state(what)
    with caplog.at_level(logging.WARNING):
        assert told(asked, stopped) == ""
    assert "continuing from the one before, step-4.pt" in caplog.text
    expected, found = (
        json.loads((folder / "result.json").read_text())["accuracy"]
        for folder in (runs["done"], stopped)
    )
    assert found == expected


FILES: dict[str, Callable[[Path], None]] = {
    **{what: PLACED[what] for what in ("nothing", "binary", "zeros", "list", "deep-lists")},
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "of-lists": lambda path: torch.save([1, 2], path),
    "of-a-pickle": lambda path: torch.save(print, path),
    "of-an-old-form": lambda path: torch.save({}, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("name", ["step-5.pt", "best.pt"])
def test_a_file_that_is_no_checkpoint(
    name: str, what: str, asked: Arguments, stopped: Path
) -> None:
    FILES[what](stopped / "checkpoints" / name)
    line = told(asked, stopped)
    if name == "best.pt":
        assert_refused(line, "best.pt is not a readable checkpoint")
        assert not (stopped / "checkpoints" / "step-6.pt").exists()  # nothing was trained
    elif what == "of-lists":
        assert_refused(line, "step-5.pt: this file is named like a checkpoint")
    else:
        assert line == ""


@pytest.mark.parametrize("what", ["folder", "pipe", "socket", "device", "link-to-itself"])
@pytest.mark.parametrize("name", ["step-5.pt", "best.pt"])
def test_what_is_no_file_in_a_checkpoint_s_place(
    name: str, what: str, asked: Arguments, stopped: Path
) -> None:
    place(stopped / "checkpoints" / name, what)
    assert_refused(told(asked, stopped), name, "move it away")
    assert os.path.lexists(stopped / "checkpoints" / name)
    if what == "folder":
        assert (stopped / "checkpoints" / name / "mine.txt").read_text() == "mine"


BESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "lacks-step": lacks("step"),
    "lacks-model": lacks("model"),
    "step-text": set_at("step", "two"),
    "step-null": set_at("step", None),
    "step-of-another": set_at("step", 3),
    "model-list": set_at("model", [1]),
    "model-empty": set_at("model", {}),
    "model-of-another-shape": other_shape("model"),
    "model-with-a-name-more": lambda state: state["model"].update(more=torch.zeros(1)),
}


@pytest.mark.parametrize("what", BESTS)
def test_best_weights_that_are_none(what: str, asked: Arguments, stopped: Path) -> None:
    """They are refused at the start, and not when all is trained."""
    path = stopped / "checkpoints" / "best.pt"
    state = state_of(path)
    BESTS[what](state)
    torch.save(state, path)
    assert_refused(told(asked, stopped), "best.pt")
    assert not (stopped / "checkpoints" / "step-6.pt").exists()
    assert told(asked, stopped, resume=False) == ""


def test_best_weights_that_are_gone(asked: Arguments, stopped: Path) -> None:
    (stopped / "checkpoints" / "best.pt").unlink()
    assert_refused(told(asked, stopped), "best.pt")


def test_checkpoints_that_are_gone(
    asked: Arguments, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(stopped / "checkpoints")
    with caplog.at_level(logging.WARNING):
        assert told(asked, stopped) == ""
    assert "has no checkpoint: starting from scratch" in caplog.text


# --- somebody else's folders -------------------------------------------------------------------

THEIRS: dict[str, dict[str, str]] = {
    "config": {"config.json": '{"mine": 1}'},
    "config-of-lightning": {
        "config.json": '{"seed": 1, "trainer": {"max_epochs": 3}, "model": {}, "data": {}}',
        "checkpoints/best.pt": "weights of a month",
    },
    "config-of-transformers": {
        "config.json": '{"architectures": ["Bert"], "hidden_size": 768}',
        "checkpoints/step-3.pt": "weights of a month",
    },
    "config-with-comments": {"config.json": '{"a": 1} // mine', "result.json": "{}"},
    "config-list": {"config.json": "[1]", "records.jsonl": '{"step": 1}\n'},
    "config-empty": {"config.json": "", "done": ""},
    "config-in-a-folder": {"config.json/mine.txt": "mine", "result.json": "{}"},
    "records": {"records.jsonl": '{"step": 1, "loss": 0.5}\n'},
    "result": {"result.json": '{"accuracy": 0.9}'},
    "done": {"done": "on Monday"},
    "data": {"data.json": '{"train": ["a.png"]}'},
    "environment": {"environment.json": '{"PATH": "/bin"}'},
    "tracking": {"tracking.json": '{"parcel": 7}'},
    "checkpoints-best": {"checkpoints/best.pt": "weights of a month"},
    "checkpoints-step": {"checkpoints/step-3.pt": "weights of a month"},
    "checkpoints-best-model": {"checkpoints/best-model.pt": "weights of a month"},
    "checkpoints-other": {"checkpoints/epoch=3.ckpt": "weights of a month"},
    "checkpoints-a-file": {"checkpoints": "a list of weights"},
    "notes": {"notes.txt": "mine"},
    "all": {
        "config.json": '{"mine": 1}', "result.json": "{}", "records.jsonl": "{}\n",
        "checkpoints/my_best.pt": "weights", "checkpoints/step-3.pt": "weights",
        ".draft.tmp": "mine", ".config.json.mine.tmp": "mine",
    },
    "hydra-s": {".hydra/config.yaml": "lr: 0.1\n", "train.log": "epoch 1\n"},
}  # fmt: skip


@pytest.fixture(params=THEIRS)
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with somebody's work."""
    folder = tmp_path / "theirs"
    for name, content in THEIRS[request.param].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.mark.parametrize("resume", [True, False], ids=["", "resume=false"])
def test_somebody_else_s_folder(theirs: Path, resume: bool, asked: Arguments) -> None:
    before = contents(theirs)
    line = told(asked, theirs, resume=resume)
    assert_refused(line, "files that are not a run's")
    assert "resume=false" not in line
    assert contents(theirs) == before


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("resume=false",)], ids=["", "resume=false"])
def test_somebody_else_s_folder_by_the_command(
    theirs: Path, more: tuple[str, ...], fishr_exp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(theirs)
    before = contents(theirs)
    outcome = fishr_exp("hydra.run.dir=.", *more)
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("fishr-exp: hydra.run.dir=.: this folder holds files that are not a run")
    assert contents(theirs) == before
    assert not (theirs / "fishr-exp.log").exists()


BESIDE = {
    "notes.txt": "mine",
    "checkpoints/my_best.pt": "weights",
    "checkpoints/best-model.pt": "weights",
    "checkpoints/step-two.pt": "weights",
    "checkpoints/step-3.pt.bak": "weights",
    "checkpoints/last.ckpt": "weights",
    ".draft.tmp": "mine",
    ".records.jsonl.mine.tmp": "mine",
    ".result.json.tmp": "mine",
    "checkpoints/.my.tmp": "mine",
    "result.json.bak": "mine",
    "mine/result.json": "mine",
}


@pytest.mark.parametrize("resume", [True, False], ids=["", "resume=false"])
def test_somebody_else_s_files_beside_a_run_s(
    resume: bool, asked: Arguments, stopped: Path
) -> None:
    for name, content in BESIDE.items():
        (stopped / name).parent.mkdir(exist_ok=True)
        (stopped / name).write_text(content)
    (stopped / ".result.json.7.tmp").write_text("of a run that was killed")
    assert told(asked, stopped, resume=resume) == ""
    assert {name: (stopped / name).read_text() for name in BESIDE} == BESIDE
    assert not (stopped / ".result.json.7.tmp").exists()


@pytest.mark.parametrize("what", mostly_slow(PLACED, ("null", "pipe", "folder")))
def test_from_scratch_in_a_damaged_folder_of_a_run(
    what: str, asked: Arguments, stopped: Path
) -> None:
    """With `resume=false`, a run's files are replaced, and no folder in their place is touched."""
    for name in ("config.json", "result.json", "records.jsonl"):
        place(stopped / name, what)
    line = told(asked, stopped, resume=False)
    if what == "folder":
        assert_refused(line, "move it away")
        assert (stopped / "result.json" / "mine.txt").read_text() == "mine"
    else:
        assert line == ""
        assert RunFolder(stopped).state == "done"


def test_a_damaged_configuration_of_a_run(asked: Arguments, stopped: Path) -> None:
    """Its environment says that it is a run's."""
    (stopped / "config.json").write_text("{")
    assert_refused(told(asked, stopped), "config.json cannot be read", "resume=false")
    (stopped / "environment.json").unlink()
    assert_refused(told(asked, stopped, resume=False), "files that are not a run's")


# --- trackers ----------------------------------------------------------------------------------


class Notebook(Mirror):
    """A tracker that writes down what it is sent, beside the runs."""

    name = "The notebook"

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder, "notebook")
        self.path = folder.path.parent / "sent.txt"

    def connect(self) -> None: ...

    def open_run(self) -> str:
        return self.folder.path.name

    def send_settings(self, settings: Any) -> None: ...

    def last_step(self) -> int:
        return -1

    def send_records(self, points: Any) -> None:
        assert all(isinstance(point, Point) for point in points)

    def send_end(self, end: End) -> None:
        with self.path.open("a") as file:
            file.write(f"{self.folder.path.name} {end.status}\n")


@pytest.mark.parametrize(
    ("name", "what"),
    mostly_slow(
        (name, what)
        for name in ("config.json", "result.json", "records.jsonl", "tracking.json")
        for what in PLACED
        if (name, what) != ("tracking.json", "link-to-itself")  # as if there were none
    ),
    ids=lambda value: value,
)
def test_fishr_sync_sends_the_other_runs(
    name: str, what: str, done: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    here = f"{__name__}.Notebook"
    for folder in (done, done.parent / "whole"):
        State({"_target_": here}, "notebook", "id", "", "", {}).write(folder)
    place(done / name, what)
    assert sync_cli.main([str(done.parent), "--allow-targets", __name__]) == 1
    assert capsys.readouterr().out.endswith("1 not sent, 1 sent\n")
    (line,) = [line for line in caplog.messages if line.startswith("fishr-sync:")]
    assert str(done) in line
    assert any(way in line for way in WAY_OUT)
    assert (done.parent / "sent.txt").read_text() == "whole FINISHED\n"


# --- CSV and names -----------------------------------------------------------------------------

FORMULAS = [
    "=cmd|' /C calc'!A1", "=1+1", "+1+1", "-1-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-", "+",
    "=HYPERLINK(\"http://a\")", "--5", "-cmd", "@",
]  # fmt: skip
NUMBERS = ["-1", "-0.5", "+3.2", "-1e-5", "12", "0", "", "-inf", "nan"]
NAMES = [
    *FORMULAS, "a\x1b[2Jb", "a\nb", "a\rb", "a,b", 'a"b', "\u202eabc", "caf\udce9", "a|b", "$x$",
    "x" * 300, "..", "a/b", "", " ",
]  # fmt: skip


@pytest.mark.parametrize("cell", [*FORMULAS, *NUMBERS], ids=repr)
def test_no_cell_of_a_csv_is_a_formula(cell: str) -> None:
    from fishr_exp.reports.sheets.sheet import Line, Sheet, to_csv

    written = to_csv([Sheet("t", ["h"], [], 1, [], [Line({cell or "h": cell}, {"n": cell})])])
    header, (first, second) = csv.reader(io.StringIO(written, newline=""))
    assert first == second == (f"'{cell.strip()}" if cell in FORMULAS else cell)
    assert header[0] == (f"'{cell.strip()}" if cell in FORMULAS else cell or "h")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_domain_of_any_name_in_a_table(
    name: str, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (done, done.parent / "whole"):
        in_json(folder / "config.json", set_at("test_domains", [name]))
        in_json(folder / "result.json", set_at("test_domains", [name]))
        in_json(folder / "result.json", set_at("test_accuracy", {name: 0.5}))
    assert table_cli.main([str(done.parent)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert not {*"\x1b\r\u202e"} & {*out}
    with (done.parent / "table" / "table.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert "50.0000" in cells
    assert not [c for c in cells if c[:1] in {*"=+-@\t\r\n"} and c not in ("-0.0000",)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_domain_of_any_name_is_drawn(
    name: str, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (done, done.parent / "whole"):
        path = folder / "records.jsonl"
        path.write_text(path.read_text().replace('"minus90"', json.dumps(name)))
        in_json(folder / "config.json", set_at("test_domains", [name]))
        in_json(folder / "result.json", set_at("test_domains", [name]))
        in_json(folder / "result.json", set_at("test_accuracy", {name: 0.5}))
    assert table_cli.main([str(done.parent)]) == 0
    assert capsys.readouterr().err == ""
    assert {"figure.pdf", "curves.pdf"} <= {path.name for path in (done.parent / "table").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", 1e308, -1e308, 0, None])
@pytest.mark.filterwarnings("ignore")
def test_diagnostics_of_any_value_are_drawn(
    value: object, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = done / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["diagnostics"] = dict.fromkeys(record["diagnostics"], value)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    status = diagnostics_cli.main([str(done), str(done.parent / "whole")])
    out, err = capsys.readouterr()
    assert f"{done.parent / 'whole'}/diagnostics.pdf" in out
    assert status == (0 if value is not None else 2)
    assert ("has no recorded diagnostics" in err) == (value is None)
