"""The index of what was composed: it says what a composition would say, or nothing."""

from __future__ import annotations

import copy
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import fishr_exp
from fishr_exp.configuration import index as index_module
from fishr_exp.configuration.index import NAME, Index, digest_of_inputs
from fishr_exp.configuration.options import conf_dir
from fishr_exp.configuration.permissions import permissions_of
from fishr_exp.configuration.starting import prefer_own_sweepers, register_run_name

PROTOCOL = ["protocol=paper_2022", "dataset=colored_mnist_domainbed"]
JOBS = [
    ["seed=0"],
    ["seed=1", "trainer.gamma=2.5"],
    ["trainer=erm", "seed=1", "sweep_name=mine"],
    ["experiment=quickstart", "trainer.gamma=10", "seed=0"],
    [*PROTOCOL, "trainer=coral", "protocol.hparams_seed=3"],
    [*PROTOCOL, "trainer=erm", "protocol.hparams_seed=3", "protocol.trial_seed=1"],
    ["dataset=pacs", "test_domains=[sketch]", "dataset.root='~/data/'"],
    ["batch_size=${epochs}", "epochs=7"],
    ["dataset.root=${oc.env:THE_DATA,here}", "dataset=pacs"],
]


@pytest.fixture(autouse=True)
def _clear() -> Any:
    GlobalHydra.instance().clear()
    register_run_name()
    prefer_own_sweepers()
    yield
    GlobalHydra.instance().clear()


class Sweep:
    """The configurations of one command, as its sweeper sees them."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self.words = [f"output_dir={folder}", *words]

    def _composed(self, job: list[str] | None) -> DictConfig:
        GlobalHydra.instance().clear()
        with (
            permissions_of(self.words),
            hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"),
        ):
            inner = GlobalHydra.instance().hydra
            assert inner is not None
            config = inner.compose_config("config", self.words, RunMode.MULTIRUN)
            if job is None:
                self.inputs = digest_of_inputs(config)
                return config
            config = inner.config_loader.load_sweep_config(config, [*self.words, *job])
            self.named = self.folder / config.hydra.sweep.subdir
            return config

    def digest(self) -> str | None:
        self._composed(None)
        return self.inputs

    def index(self) -> Index:
        return Index(self.folder, self.digest())

    def run_of(self, job: list[str]) -> tuple[DictConfig, Path]:
        """Return the configuration and the folder that Hydra gives a job."""
        return self._composed(job), self.named


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """The configuration of a run."""
    register_run_name()
    return Sweep(tmp_path_factory.mktemp("runs")).run_of(["seed=0"])[0]


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """The configuration of a sweep."""
    register_run_name()
    return Sweep(tmp_path_factory.mktemp("runs"))._composed(None)


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")


def _filled(sweep: Sweep, jobs: list[list[str]]) -> list[Path]:
    index, folders = sweep.index(), []
    for job in jobs:
        config, folder = sweep.run_of(job)
        _make(folder)
        index.add(job, config)
        folders.append(folder)
    index.write()
    return folders


def test_it_finds_the_folders_that_a_composition_names(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    assert sweep.index().find(JOBS[0]) is None
    folders = _filled(sweep, JOBS)
    assert len(set(folders)) == len(JOBS)
    index = sweep.index()
    assert [index.find(job) for job in JOBS] == folders
    assert index.find(["seed=2"]) is None


def test_a_run_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    (folder,) = _filled(sweep, [["seed=0"]])
    (folder / "config.json").unlink()
    assert sweep.index().find(["seed=0"]) is None


def test_words_are_told_from_others(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    index = Index(tmp_path, "inputs")
    index._names = {index._key(["a=1", "b=2"]): ["run"]}
    assert index.find(["a=1", "b=2"]) == tmp_path / "run"
    for other in (["a=1 b=2"], ["a=1,b=2"], ['a=1", "b=2'], ["b=2", "a=1"], ["a=1"], []):
        assert index.find(other) is None
    assert Index(tmp_path, "other").find(["a=1", "b=2"]) is None


def test_a_folder_of_an_earlier_version_that_is_put_there_later(tmp_path: Path) -> None:
    """Which of its names a run has depends on the folders that are there."""
    sweep, job = Sweep(tmp_path), ["dataset=pacs", "test_domains=[sketch]", "dataset.root=./data/"]
    (folder,) = _filled(sweep, [job])
    assert sweep.index().find(job) == folder
    names = sweep.index()._names.popitem()[1]
    assert len(names) > 1
    assert names[-1] == folder.name
    _make(tmp_path / names[0])
    assert sweep.index().find(job) == sweep.run_of(job)[1] == tmp_path / names[0]
    (tmp_path / names[0] / "config.json").unlink()
    assert sweep.index().find(job) == sweep.run_of(job)[1] == folder


def test_the_same_inputs_give_the_same_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = Sweep(tmp_path).digest()
    assert digest is not None
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    monkeypatch.chdir(tmp_path)
    for words in (["seed=0,1"], ["trainer=erm,fishr", "sweep_name=${now:%H}"], ["output_dir=x"]):
        assert Sweep(tmp_path, *words).digest() == digest


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with an option of one's own, which is on the search path."""
    (tmp_path / "own" / "trainer").mkdir(parents=True)
    (tmp_path / "own" / "trainer" / "mine.yaml").write_text("defaults: [erm]\nl2: 0.5\n")
    return tmp_path / "own"


def test_each_input_is_in_the_digest(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"hydra.searchpath=[file://{own}]", "+dataset.root=${oc.env:THE_DATA,data}"]
    words += ["+more=${variable:OTHER,x}"]
    digests = [Sweep(tmp_path, *words).digest()]
    assert digests[0] is not None

    def differs(*more: str) -> bool:
        digests.append(Sweep(tmp_path, *words, *more).digest())
        assert digests[-1] is not None
        return digests[-1] not in digests[:-1]

    monkeypatch.setenv("THE_DATA", "/data")
    assert differs()
    monkeypatch.setenv("OTHER", "/data")
    assert differs()
    monkeypatch.setenv("HOME", "/home/other")
    assert differs()
    assert differs("allow_targets=[mylab]")
    assert differs("hydra.job.chdir=true")
    monkeypatch.setenv("FISHR_EXP_ALLOW_TARGETS", "theirlab")
    assert differs()
    option = own / "trainer" / "mine.yaml"
    option.write_text("defaults: [erm]\nl2: 0.75\n")
    assert differs()
    option.write_text("defaults: [erm]\nl2: '${oc.env:ITS,1}'\n")
    assert differs()
    monkeypatch.setenv("ITS", "2")
    assert differs()
    option.rename(own / "trainer" / "ours.yaml")
    assert differs()
    (own / "dataset").mkdir()
    (own / "dataset" / "pacs.yaml").write_text("name: pacs\n")
    assert differs()
    (own / "dataset" / "notes.txt").write_text("not read")
    assert not differs()
    with monkeypatch.context() as patch:
        patch.setattr(fishr_exp, "__version__", "0.0.1")
        assert differs()
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "version", lambda package: f"another {package}")
        assert differs()


@pytest.mark.parametrize(
    "word",
    [
        "+when=${now:%H}",
        "sweep_name=${now:%H},${now:%M}",
        "output_dir=runs/${sweep_name}",
        "dataset.root=${tracker.sweep}",
        "dataset.root=${oc.select:sweep_name}",
        "dataset.root=${.sweep_name}",
        "dataset.root=${${other}}",
        "dataset.root=${oc.env:${which}}",
        "dataset.root=${oc.decode:'${oc.env:X}'}",
        "seed=${hydra:job.num}",
        "seed=${hydra.job.num}",
        "seed=${mine:}",
        "hydra.sweep.subdir=a",
        "hydra.sweep.subdir=${hydra.job.num}",
        "trainer._target_=mylab.Mine",
        "++trainer._target_=mylab.Mine,mylab.Other",
    ],
)
def test_words_whose_runs_no_index_can_name(master: DictConfig, word: str) -> None:
    config = copy.deepcopy(master)
    assert digest_of_inputs(config) is not None
    config.hydra.overrides.task.append(word)
    assert digest_of_inputs(config) is None


@pytest.mark.parametrize(
    "text",
    [
        "seed: ${now:%S}\n",
        "sweep_name: ${now:%S}\n",
        'seed: "\\x24{now:%S}"\n',
        "seed: ${hydra:job.num}\n",
        "seed: ${mine:}\n",
        "# @package _global_\nhydra: {sweep: {subdir: a}}\n",
        "# @package _global_\nhydra: {sweeper: {params: {trainer._target_: 'a,b'}}}\n",
        "defaults: [../../elsewhere]\n",
    ],
)
def test_files_whose_runs_no_index_can_name(tmp_path: Path, own: Path, text: str) -> None:
    words = [f"hydra.searchpath=[file://{own}]"]
    assert Sweep(tmp_path, *words).digest() is not None
    (own / "trainer" / "other.yaml").write_text(text)
    assert Sweep(tmp_path, *words).digest() is None


def test_sources_whose_content_is_not_known(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"hydra.searchpath=[file://{own}]"]
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "_MOST_FILES", 100)
        assert Sweep(tmp_path, *words).digest() is None
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "_MOST_BYTES", 1000)
        assert Sweep(tmp_path, *words).digest() is None
    with pytest.warns(UserWarning, match="not available"):
        assert Sweep(tmp_path, "hydra.searchpath=[pkg://mylab.conf]").digest() is None
    (own / "trainer" / "gone.yaml").symlink_to(own / "nothing")
    assert Sweep(tmp_path, *words).digest() is None
    (own / "trainer" / "gone.yaml").unlink()
    (own / "trainer" / "round").symlink_to(own)  # ends at the system's limit of links
    assert Sweep(tmp_path, *words).digest() is not None
    monkeypatch.setitem(ConfigStore.instance().repo, "trainer", {})
    assert Sweep(tmp_path, *words).digest() is None


def test_a_packaged_file_that_a_person_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (conf_dir() / "config.yaml").read_text()
    check = index_module._is_constant_file
    assert check(text, "config.yaml", is_ours=True)
    for old, new in {
        "seed: 0 ": "seed: ${now:%S} ",
        "subdir: ${run_name:}": "subdir: ${hydra.job.num}",
    }.items():
        assert old in text
        assert not check(text.replace(old, new), "config.yaml", is_ours=True)
    assert not check(text, "config.yaml", is_ours=False)
    trackers = sorted((conf_dir() / "tracker").glob("*.yaml"))
    assert len(trackers) >= 5
    for path in trackers:
        name, tracker = f"tracker/{path.name}", path.read_text()
        assert check(tracker, name, is_ours=True)
        assert check(tracker, name, is_ours=False) == ("${sweep_name}" not in tracker)


def test_without_inputs_it_knows_and_keeps_nothing(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    _filled(sweep, [["seed=0"]])
    content = (tmp_path / NAME).read_bytes()
    index = Index(tmp_path, None)
    assert index.find(["seed=0"]) is None
    index.add(["seed=1"], sweep.run_of(["seed=1"])[0])
    index.write()
    assert (tmp_path / NAME).read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}', b'{"a": []}', b'{"a": [1]}'],
)
def test_a_damaged_index_is_made_again(
    tmp_path: Path, composed: DictConfig, content: bytes
) -> None:
    (tmp_path / NAME).write_bytes(content)
    config = copy.deepcopy(composed)
    config.output_dir = str(tmp_path)
    index = Index(tmp_path, "inputs")
    assert index.find(["seed=0"]) is None
    index.add(["seed=0"], config)
    index.write()
    ((_, names),) = json.loads((tmp_path / NAME).read_bytes()).items()
    _make(tmp_path / names[-1])
    assert Index(tmp_path, "inputs").find(["seed=0"]) == tmp_path / names[-1]


@pytest.mark.parametrize("name", ["../other", "a/b", "..", ".", "", "a\\b", "a\nb", "/etc"])
def test_an_index_that_names_other_folders_is_not_believed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "runs"
    for place in (folder, tmp_path, tmp_path / "other", folder / "a" / "b"):
        _make(place)
    index = Index(folder, "inputs")
    (folder / NAME).write_text(json.dumps({index._key(["seed=0"]): ["run", name]}))
    assert Index(folder, "inputs").find(["seed=0"]) is None


def test_a_huge_index_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(tmp_path)
    (folder,) = _filled(sweep, [["seed=0"]])
    assert sweep.index().find(["seed=0"]) == folder
    monkeypatch.setattr(index_module, "_MOST_BYTES", 10)
    assert Index(tmp_path, "inputs")._read() == {}


def test_an_index_that_cannot_be_written_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(tmp_path)
    config, _ = sweep.run_of(["seed=0"])
    (tmp_path / NAME).mkdir()
    index = sweep.index()
    index.add(["seed=0"], config)
    index.write()
    (tmp_path / NAME).rmdir()

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(index_module, "write_atomically", full)
    index.add(["seed=0"], config)
    index.write()
    assert not list(tmp_path.glob("*composed*"))
    gone = Index(tmp_path / "gone", index.inputs)
    gone._added = {"a": ["b"]}
    gone.write()
    assert not (tmp_path / "gone").exists()


def test_what_two_commands_add_at_the_same_time_is_kept(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    one, other = sweep.index(), sweep.index()
    for index, job in ((one, ["seed=0"]), (other, ["seed=1"])):
        config, folder = sweep.run_of(job)
        _make(folder)
        index.add(job, config)
    one.write()
    other.write()
    assert sweep.index().find(["seed=0"]) is not None
    assert sweep.index().find(["seed=1"]) is not None


def test_the_entries_that_were_added_last_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_MOST_ENTRIES", 2)
    sweep = Sweep(tmp_path)
    jobs = [[f"seed={seed}"] for seed in range(3)]
    folders = _filled(sweep, jobs)
    index = sweep.index()
    assert [index.find(job) for job in jobs] == [None, *folders[1:]]


def test_runs_in_another_folder_are_not_noted(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    index = sweep.index()
    job = [f"output_dir={tmp_path / 'other'}"]
    index.add(job, sweep.run_of(job)[0])
    index.write()
    assert not (tmp_path / NAME).exists()


def test_no_word_is_on_the_disk(tmp_path: Path) -> None:
    _filled(Sweep(tmp_path), [["tracker.tracking_uri='https://me:secret@server'"]])
    assert "secret" not in (tmp_path / NAME).read_text()


def test_a_reference_of_a_word_is_resolved_as_ever(tmp_path: Path) -> None:
    config, _ = Sweep(tmp_path).run_of(["batch_size=${epochs}", "epochs=7"])
    assert OmegaConf.select(config, "batch_size") == 7


def test_what_a_killed_command_left_half_written_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, alive = (tmp_path / f".{NAME}.{pid}.tmp" for pid in (dead.pid, os.getpid()))
    for path in (left, alive):
        path.write_text("{")
    Index(tmp_path, "inputs").write()
    assert not left.exists()
    assert alive.exists()  # it is being written
