"""The runs of a sweep: a grid as Hydra's own, and several grids one after another."""

from __future__ import annotations

from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fishr_exp.configuration.options import conf_dir
from fishr_exp.configuration.sweeping.grids import split
from fishr_exp.core.errors import ConfigError

LOADER = ConfigLoaderImpl(create_config_search_path(str(conf_dir())))


@pytest.mark.parametrize(
    ("params", "typed"),
    [
        (None, ["trainer.gamma=1,10", "seed=range(3)"]),
        ({}, ["seed=0"]),
        ({"seed": "range(3)", "trainer": "glob(fishr*)"}, ["batch_size=8"]),
    ],
)
def test_one_grid_is_that_of_hydras_sweeper(params: Any, typed: list[str]) -> None:
    words = [*(f"{key}={value}" for key, value in (params or {}).items()), *typed]
    parsed = OverridesParser.create(config_loader=LOADER).parse_overrides(words)
    given = OmegaConf.create(params) if params is not None else None
    assert split(given, typed, LOADER) == BasicSweeper.split_arguments(parsed, None)[0]


def test_grids_follow_one_another_and_have_each_run_once() -> None:
    grids = [{"seed": "0,1", "trainer": "erm"}, {"trainer": "erm,coral", "seed": 1}, None]
    assert split(
        OmegaConf.create([grids[0], {"seed": "1,2", "trainer": "erm"}]), ["a=b"], LOADER
    ) == [
        ["seed=0", "trainer=erm", "a=b"],
        ["seed=1", "trainer=erm", "a=b"],
        ["seed=2", "trainer=erm", "a=b"],
    ]
    assert split(OmegaConf.create(grids), [], LOADER) == [
        ["seed=0", "trainer=erm"],
        ["seed=1", "trainer=erm"],
        ["trainer=erm", "seed=1"],
        ["trainer=coral", "seed=1"],
        [],
    ]
    assert split(OmegaConf.create([]), ["seed=1"], LOADER) == [["seed=1"]]


def test_what_is_typed_replaces_the_keys_of_every_grid() -> None:
    grids = OmegaConf.create([{"seed": "range(3)", "trainer": "erm"}, {"seed": 7}])
    assert split(grids, ["seed=4,5", "+new=1"], LOADER) == [
        ["trainer=erm", "seed=4", "+new=1"],
        ["trainer=erm", "seed=5", "+new=1"],
        ["seed=4", "+new=1"],
        ["seed=5", "+new=1"],
    ]


@pytest.mark.parametrize("params", ["seed=1", ["seed=1"], [{"seed": 1}, 3]])
def test_what_is_no_grid_is_refused(params: Any) -> None:
    given = OmegaConf.create({"params": params}).params
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.params=.*must map keys to values"):
        split(given, [], LOADER)
