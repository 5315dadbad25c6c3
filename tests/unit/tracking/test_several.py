"""Several trackers of one run: each gets all, and none is hurt by what happens to another."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fishr_exp.cli import sync as sync_cli
from fishr_exp.configuration.binding import part
from fishr_exp.configuration.options import conf_dir
from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.content import End, Point
from fishr_exp.tracking.csv_file import CsvMirror
from fishr_exp.tracking.mirror import Mirror
from fishr_exp.tracking.several import Mirrors
from fishr_exp.tracking.state import State

from .conftest import CONFIG, LABELS, RESULT, record


class Odd(Mirror):
    """A tracker that fails, or never answers."""

    name: ClassVar[str] = "Odd"
    blocked: ClassVar[threading.Event | None] = None
    fails: ClassVar[bool] = True
    pause = 0.01

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder, "odd://here")
        self.steps: list[int] = []

    def connect(self) -> None:
        if self.blocked:
            self.blocked.wait()
        if self.fails:
            raise ConnectionError("nobody is there")

    def open_run(self) -> str:
        return "one"

    def send_settings(self, settings: Mapping[str, Any]) -> None: ...

    def last_step(self) -> int:
        return max(self.steps, default=-1)

    def send_records(self, points: Sequence[Point]) -> None:
        self.steps += [point.step for point in points]

    def send_end(self, end: End) -> None: ...


@pytest.fixture
def build(tmp_path: Path) -> dict[str, Any]:
    tables = str(tmp_path / "tables")
    return {
        "odd": Odd,
        "csv": lambda folder: CsvMirror(folder, None, "s"),
        "tables": lambda folder: CsvMirror(folder, tables, "s"),
    }


def steps(table: Path) -> list[str]:
    return [line.partition(",")[0] for line in table.read_text().splitlines()[1:]]


def test_one_that_fails_costs_the_others_nothing(
    folder: RunFolder, build: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirrors = Mirrors(folder, build)
    folder.append(record(2))
    mirrors.start(CONFIG, LABELS)
    folder.append(record(4))
    mirrors.sync()
    folder.finish(RESULT)
    mirrors.finish("FINISHED")
    assert caplog.text.count("Odd at odd://here failed") == 1
    for table in (folder.path / "metrics.csv", tmp_path / "tables" / "fishr-seed0.csv"):
        assert steps(table) == ["2", "4"]
    assert [mirror.lacks("FINISHED") for mirror in mirrors.mirrors] == [True, False, False]
    assert mirrors.lacks("FINISHED")
    # The same command, once the other is back.
    again = Mirrors(folder, build)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Odd, "fails", False)
        again.catch_up(CONFIG, LABELS)
    assert again.mirrors[0].steps == [2, 4]  # type: ignore[attr-defined]
    assert not again.lacks("FINISHED")


def test_the_end_waits_for_all_at_the_same_time(
    folder: RunFolder, build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Odd, "blocked", threading.Event())
    monkeypatch.setattr(Odd, "patience", 1.0)

    class Other(Odd):
        def __init__(self, folder: RunFolder) -> None:
            super().__init__(folder)
            self.address = "odd://there"

    mirrors = Mirrors(folder, {**build, "other": Other})
    folder.append(record(2))
    mirrors.start(CONFIG, LABELS)
    began = time.monotonic()
    mirrors.finish("KILLED")
    assert 0.9 < time.monotonic() - began < 1.9
    errors = [mirror.error for mirror in mirrors.mirrors]
    assert errors == ["not done in 1 s", "", "", "not done in 1 s"]
    assert steps(folder.path / "metrics.csv") == ["2"]


def test_each_is_noted_and_one_alone_as_always(folder: RunFolder, build: dict[str, Any]) -> None:
    folder.append(record(2))

    def noted(*names: str) -> dict[str, Any]:
        mirrors = Mirrors(folder, {name: build[name] for name in names})
        mirrors.start(CONFIG, LABELS)
        mirrors.finish("KILLED")
        return json.loads((folder.path / "tracking.json").read_text())

    first = noted("csv")
    assert {*first} == {"tracker", "address", "mirror", "run_id", "ended", "labels"}
    both = noted("tables", "csv")
    (other,) = both["others"]
    assert other == {key: first[key] for key in ("tracker", "address", "run_id", "ended")}
    assert both["mirror"] == first["mirror"]
    assert [state.identity for state in State.read_all(folder.path)] == [first["mirror"]] * 2
    assert noted("csv")["address"] == first["address"]


def test_two_that_send_to_one_place(folder: RunFolder, build: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"tracker=second: sends to .* as csv does"):
        Mirrors(folder, {"csv": build["csv"], "second": build["csv"]})


def test_fishr_sync_sends_to_each(
    folder: RunFolder, build: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("csv", "tables")
    mirrors = Mirrors(folder, {name: build[name] for name in names})
    folder.append(record(2))
    mirrors.start(CONFIG, LABELS)
    mirrors.finish("KILLED")
    folder.append(record(4))
    folder.finish(RESULT)
    folder.close()
    (folder.path / "metrics.csv").unlink()
    for outcome in ("sent", "complete already"):
        assert sync_cli.main([str(folder.path)]) == 0
        assert capsys.readouterr().out == f"1 runs under {folder.path}: 1 {outcome}\n"
    assert len(State.read_all(folder.path)) == 2
    for table in (folder.path / "metrics.csv", tmp_path / "tables" / "fishr-seed0.csv"):
        assert steps(table) == ["2", "4"]
    # A folder that was moved, with one tracker that cannot be built.
    moved = tmp_path / "moved"
    folder.path.rename(moved)
    note = json.loads((moved / "tracking.json").read_text())
    note["others"][0]["tracker"]["_target_"] = "mylab.Gone"
    (moved / "tracking.json").write_text(json.dumps(note))
    assert sync_cli.main([str(moved)]) == 1
    assert steps(moved / "metrics.csv") == ["2", "4"]
    assert [state.run_id != "" for state in State.read_all(moved)] == [True, True]


# --- the configuration --------------------------------------------------------------------------


@pytest.fixture
def composed() -> Iterator[Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield lambda *words: compose("config", [*words])


def test_each_option_of_a_list_has_a_node_of_its_own(composed: Any, folder: RunFolder) -> None:
    words = ("tracker=[mlflow,csv]", "tracker.mlflow.experiment=mine", "tracker.csv.sweep=s")
    config = composed(*words, "tracker.mlflow.tracking_uri=sqlite:///a/b.db")
    tracker: Any = OmegaConf.to_container(config.tracker, resolve=True)
    assert [*tracker] == ["mlflow", "csv"]
    assert tracker["csv"] == {
        "_target_": "fishr_exp.tracking.csv_file.CsvMirror", "directory": None, "sweep": "s",
    }  # fmt: skip
    make = part(tracker, "tracker")
    assert make is not None
    mlflow, csv = make(folder).mirrors
    assert (mlflow.experiment, csv.sweep) == ("mine", "s")
    assert mlflow.among == csv.among == [mlflow.address, csv.address]


def test_one_option_is_what_it_was(composed: Any) -> None:
    assert composed("tracker=[csv]").tracker == composed("tracker=csv").tracker
    assert "_target_" in composed().tracker
    assert composed("tracker=none").tracker is None


def test_none_stands_alone(composed: Any) -> None:
    with pytest.raises(ConfigError, match=r"tracker=\[csv,none\]: none cannot stand beside"):
        composed("tracker=[csv,none]")


def test_a_file_may_list_several(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment"
    experiment.mkdir()
    text = "# @package _global_\ndefaults:\n  - override /tracker: [mlflow, csv]\n"
    (experiment / "mine.yaml").write_text(text)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found = compose("config", [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])
    assert [*found.tracker] == ["mlflow", "csv"]


@pytest.mark.parametrize(
    ("node", "key"),
    [
        ({"csv": {"directory": None}}, r"tracker\.csv=.* has no _target_"),
        (
            {"csv": {"_target_": CsvMirror.__module__ + ".CsvMirror", "sweep": "s", "dir": 1}},
            r"tracker\.csv\.dir=1: no such key",
        ),
        (
            {
                "mlflow": {
                    "_target_": "fishr_exp.tracking.mlflow.MlflowMirror", "tracking_uri": "some.db",
                    "experiment": "e", "sweep": "s",
                },
            },
            r"tracker\.mlflow\.tracking_uri=some\.db: .*pass tracker\.mlflow\.tracking_uri=sqlite",
        ),
    ],
)  # fmt: skip
def test_a_mistake_names_the_whole_key(node: Any, key: str, folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match=key):
        part(node, "tracker")(folder)  # type: ignore[misc]
