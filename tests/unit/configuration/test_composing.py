"""Configurations composed once are those that Hydra composes for each run by itself."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, _utils, base

from fishr_exp.configuration.composing import composing_once, without_hydra
from fishr_exp.configuration.options import conf_dir
from fishr_exp.configuration.permissions import permissions_of
from fishr_exp.configuration.starting import prefer_own_sweepers, register_run_name
from fishr_exp.core.errors import ConfigError

# The words of a sweep, and those of its jobs, all of which one block composes.
Load = Callable[[list[str]], DictConfig]
DRAWN = ["protocol=paper_2022", "dataset=colored_mnist_domainbed", "protocol.trial_seed=1"]
JOBS = [
    ["trainer.gamma=1", "seed=0"],
    ["trainer.gamma=2.5", "seed=1"],
    ["trainer=erm", "seed=1"],
    ["trainer=erm", "seed=2", "optimizer.lr=0.1", "test_domains=[minus90,plus80]"],
    ["seed=2", "trainer=fishr", "optimizer.lr=0.1", "trainer.gamma=1"],
    ["model=mlp", "+model.more={a:1,b:[2,{c:3}]}"],
    ["+own=1", "++trainer.gamma=3", "++new.deep.key='a text'"],
    ["+own={a:{b:1}}", "own.a.b=2"],
    ["~tracker.tracking_uri", "~optimizer.lr"],
    ["~tracker", "seed=4"],
    ["tracker=[mlflow,csv]", "tracker.csv.directory=tables"],
    ["tracker=[csv,mlflow]", "trainer=erm"],
    ["~averaging=none"],
    ["averaging=ema"],
    ["dataset=colored_mnist", "model=mlp"],
    ["dataset=pacs", "test_domains=[sketch]", "optimizer=sgd"],
    ["search=domainbed", "protocol=paper_2022", "dataset=pacs", "trainer=fishr_domainbed"],
    ["search=domainbed", "protocol=paper_2022", "dataset=pacs", "trainer=irm"],
    [*DRAWN, "trainer=coral", "protocol.hparams_seed=3"],
    [*DRAWN, "trainer=erm", "protocol.hparams_seed=4"],
    ["experiment=quickstart", "trainer.gamma=10", "seed=0"],
    ["experiment=quickstart", "trainer.gamma=100", "seed=0"],
    ["experiment=quickstart", "dataset=rotated_digits", "test_domains=['0']"],
    ["experiment=domainbed_colored_mnist", "trainer=erm", "protocol.hparams_seed=1"],
    ["experiment=gamma_colored_mnist", "trainer.gamma=1"],
    ["trainer=composed", "trainer.penalties={fishr:{gamma:1},coral:{gamma:0.1}}"],
    ["trainer={gamma:3}"],  # the value of a group, not an option
    ["hydra.sweep.subdir=${seed}", "seed=7", "hydra.job.chdir=true"],
    ["hydra/job_logging=default", "seed=7"],
    ["hydra/job_logging=disabled", "seed=7", "hydra.verbose=true"],
    ["epochs=3", "total_steps=${seed}", "seed=8"],
    ["loss@other_loss=cross_entropy"],
    ["+loss@other_loss=cross_entropy", "other_loss.label_smoothing=0.5"],
    ["device='${oc.env:HOME}'", "batch_size=null", "output_dir=''"],
]
MISTAKES = [
    ["trainer.gama=1"],
    ["trainer=unknown"],
    ["trainer=erm.yaml"],
    ["~nothing"],
    ["+trainer=erm"],
    ["seed=1,2"],
    ["seed=[1"],
    ["++trainer=erm"],
    ["optimizer.lr=0.1", "+optimizer.lr=0.2"],
    ["tracker=[mlflow,csv]", "tracker.directory=tables"],
]


@pytest.fixture
def load() -> Iterator[Load]:
    """Hydra's way to a job's configuration, in a sweep of ours."""
    with _sweep([]) as given:
        yield given


def _sweep(words: list[str], folder: Path | None = None) -> Any:
    class Sweep:
        def __enter__(self) -> Load:
            GlobalHydra.instance().clear()
            register_run_name()
            prefer_own_sweepers()
            self.permissions = permissions_of(words)
            self.permissions.__enter__()
            self.hydra = hydra.initialize_config_dir(str(folder or conf_dir()), version_base="1.3")
            inner = GlobalHydra.instance().hydra
            assert inner is not None
            self.master = inner.compose_config("config", words, RunMode.MULTIRUN)
            OmegaConf.select(self.master, "sweep_name")  # so that all jobs have the same
            return self.load

        def load(self, job: list[str]) -> DictConfig:
            inner = GlobalHydra.instance().hydra
            assert inner is not None
            return inner.config_loader.load_sweep_config(self.master, job)

        def __exit__(self, *error: object) -> None:
            GlobalHydra.instance().clear()
            self.permissions.__exit__(*error)

    return Sweep()


def _all(node: Any) -> Any:
    """Everything that a configuration holds, with the types and flags of its nodes."""
    of = node._metadata
    known = {name: value for name, value in vars(of).items() if name != "resolver_cache"}
    known["cache"] = {key: value for key, value in of.resolver_cache.items() if value}
    content = node.__dict__["_content" if isinstance(node, DictConfig | ListConfig) else "_val"]
    if isinstance(content, dict | list):
        assert all(
            value._parent is node
            for value in (content.values() if isinstance(content, dict) else content)
        )
    if isinstance(content, dict):
        content = [(key, _all(value)) for key, value in content.items()]  # in their order
    elif isinstance(content, list):
        content = [_all(value) for value in content]
    return type(node), known, content


def _tried(load: Load, job: list[str]) -> Any:
    try:
        config = load(job)
        return _all(config), config.hydra.sweep.subdir
    except Exception as error:  # noqa: BLE001 - compared
        return type(error), str(error), repr(error.__cause__)


def test_they_are_equal_to_hydras_own(load: Load) -> None:
    alone = [_tried(load, job) for job in JOBS + MISTAKES]
    composed = [isinstance(found[0], tuple) for found in alone]
    assert composed.count(True) > 25, [f for f in alone if not isinstance(f[0], tuple)]
    with composing_once():
        for _ in range(2):  # the second time, everything is kept
            for job, expected in zip(JOBS + MISTAKES, alone, strict=True):
                assert _tried(load, job) == expected, job
        for job, expected in zip(reversed(JOBS + MISTAKES), reversed(alone), strict=True):
            assert _tried(load, job) == expected, job


@pytest.mark.parametrize("job", [*MISTAKES])
def test_mistakes_are_refused_in_the_same_words(load: Load, job: list[str]) -> None:
    alone = _tried(load, job)
    with composing_once():
        load(["seed=0"])
        assert _tried(load, job) == alone == _tried(load, job)
    assert issubclass(alone[0], Exception)


def test_what_is_done_to_one_is_not_done_to_the_next(load: Load) -> None:
    with composing_once():
        first = load(["seed=0"])
        before = _all(load(["seed=0"]))
        OmegaConf.set_struct(first, False)
        first.trainer.gamma, first.hydra.job.name, first.new = 77, "other", {"a": 1}
        del first["model"]
        first.hydra.overrides.task.append("x=1")
        assert _all(load(["seed=0"])) == before


@pytest.mark.parametrize("job", [JOBS[0], JOBS[5], JOBS[7], ["protocol=paper_2022", *JOBS[13]]])
def test_a_copy_without_hydras_part_is_omegaconfs(load: Load, job: list[str]) -> None:
    config = load([*job, "sweep_name=test"])  # else it is the time
    before = _all(config)
    own = without_hydra(config)
    expected = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    assert _all(own) == _all(expected)
    assert OmegaConf.to_container(own, resolve=True) == OmegaConf.to_container(
        expected, resolve=True
    )
    own.seed, own.trainer = 77, {}
    assert _all(config) == before


def test_options_from_elsewhere(tmp_path: Path) -> None:
    """A folder on the search path, whose file a later block reads again."""
    (tmp_path / "trainer").mkdir()
    option = tmp_path / "trainer" / "mine.yaml"
    option.write_text("defaults: [erm]\nl2: 0.5\n")
    path = f"hydra.searchpath=[file://{tmp_path}]"
    jobs = [["trainer=mine", path, f"seed={seed}"] for seed in (0, 1)]
    jobs += [["trainer=erm", f"seed={seed}"] for seed in (0, 1)]
    with _sweep([]) as load:
        alone = [_tried(load, job) for job in jobs]
        with composing_once():
            assert [_tried(load, job) for job in jobs] == alone
            assert load(jobs[1]).trainer.l2 == 0.5
            option.write_text("defaults: [erm]\nl2: 0.75\n")
            assert load(jobs[1]).trainer.l2 == 0.5  # one sweep, one state of its files
        with composing_once():
            assert load(jobs[1]).trainer.l2 == 0.75


def test_a_default_that_a_resolver_computes_is_computed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "part").mkdir()
    for name in ("a", "b"):
        (tmp_path / "part" / f"{name}.yaml").write_text(f"name: {name}\n")
    defaults = "[_self_, part: '${oc.env:PART}', override hydra/sweeper: basic]"  # ours is not here
    (tmp_path / "config.yaml").write_text(f"defaults: {defaults}\nseed: 0\n")
    monkeypatch.setenv("PART", "a")
    with _sweep([], tmp_path) as load, composing_once():
        assert [load([f"seed={seed}"]).part.name for seed in (0, 1)] == ["a", "a"]
        monkeypatch.setenv("PART", "b")
        assert load(["seed=1"]).part.name == "b"


def test_a_schema_that_cannot_be_pickled(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def dumps(*given: object) -> bytes:
        raise pickle.PicklingError

    jobs = [*JOBS[:3], ["model=mlp", "seed=1"]]
    alone = [_tried(load, job) for job in jobs]
    monkeypatch.setattr(pickle, "dumps", dumps)
    with composing_once():
        for _ in range(2):
            assert [_tried(load, job) for job in jobs] == alone


def test_permissions_stay_in_force(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    allows = "# @package _global_\ndefaults: [/trainer/erm]\nallow_targets: [mine]\n"
    (tmp_path / "trainer" / "allows.yaml").write_text(allows)
    calls = "# @package _global_\nhydra: {callbacks: {x: {_target_: os.system}}}\n"
    (tmp_path / "trainer" / "calls.yaml").write_text(calls)
    path = f"hydra.searchpath=[file://{tmp_path}]"
    with _sweep([]) as load, composing_once():
        for option in ("allows", "calls"):
            for seed in (0, 1):
                with pytest.raises(ConfigError, match="a file cannot"):
                    load([f"trainer={option}", path, f"seed={seed}"])


def test_hydra_is_as_before_after_it(load: Load) -> None:
    def ours() -> list[object]:
        return [
            ConfigRepository.load_config,
            ConfigLoaderImpl._compose_config_from_defaults_list,
            config_loader_impl.create_defaults_list,
            config_loader_impl.OverridesParser,
            config_loader_impl.CachingConfigRepository,
            base.parse,
            _utils.parse,
        ]

    before = ours()
    with composing_once():
        with composing_once():
            load(["seed=0"])
        assert all(now is not was for now, was in zip(ours(), before, strict=True))
    assert ours() == before
    with contextlib.suppress(ZeroDivisionError), composing_once():
        raise ZeroDivisionError
    assert ours() == before


def test_files_are_read_once(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = OmegaConf.load
    monkeypatch.setattr(
        OmegaConf, "load", staticmethod(lambda file: read.append(file.name) or real(file))
    )
    with composing_once():
        load(["seed=0"])
        assert read
        for job in (["seed=0"], ["seed=1", "optimizer.lr=0.5"], ["+own=1"]):
            read.clear()
            load(job)
            assert not read
        load(["trainer=irm"])
        assert [Path(name).name for name in read] == ["irm.yaml"]
