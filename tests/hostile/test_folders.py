"""Run folders that are damaged, or somebody else's: told in one line, and nothing is lost.

The files of a small run are replaced, cut, doubled or removed. Runs are started as the command does
after Hydra, which takes most of a call's time; the cases marked slow go through the command itself.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fishr_exp.cli import diagnostics as diagnostics_cli
from fishr_exp.cli import table as table_cli
from fishr_exp.cli.run import register_run_name
from fishr_exp.configuration.binding import arguments
from fishr_exp.configuration.messages import one_line
from fishr_exp.configuration.options import conf_dir
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.training import loop
from fishr_exp.training.arguments import Arguments
from fishr_exp.training.run import run
from tests.e2e.conftest import TINY

WORDS = (*TINY, "epochs=3", "checkpoint_every=1", "trainer.gamma=1", "diagnostics=true")
WAY_OUT = ("resume=false", "move it away", "choose a new or empty folder", "restore")
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
    torch.set_num_threads(1)
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
        line = one_line(error) or repr(error)
    assert "Error(" not in line
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
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds, and read nothing that the tables do not read."""
    from fishr_exp.reports import output
    from fishr_exp.reports.figures import curves, diagnostics

    monkeypatch.setattr(output, "draw_all", lambda *_: [])
    monkeypatch.setattr(curves, "draw_curves", lambda *_: [])
    monkeypatch.setattr(diagnostics, "draw_diagnostics", lambda *_: [])


# --- readers: the other runs go on -------------------------------------------------------------


SPOILT = [
    (name, what) for name in ("config.json", "result.json", "records.jsonl") for what in PLACED
]


@pytest.mark.parametrize(("name", "what"), SPOILT, ids=lambda value: value)
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


@pytest.mark.parametrize("what", PLACED)
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


@pytest.mark.parametrize("what", PLACED)
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
