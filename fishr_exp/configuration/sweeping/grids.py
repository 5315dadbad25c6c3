"""The overrides of every run of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser

from fishr_exp.core.errors import ConfigError


def split(params: Any, typed: Sequence[str], loader: ConfigLoader) -> list[list[str]]:
    """Return the overrides of every run, each once, in their order.

    Args:
        params: What the configuration sweeps: None, a grid, or a sequence of grids, which follow
            one another. A grid maps keys to values as on the command line; its runs are those that
            Hydra's basic sweeper makes.
        typed: The overrides of the command line, which go with each grid; they replace its keys.
        loader: Knows the groups of options.

    Raises:
        ConfigError: If `params` is something else.
    """
    parser = OverridesParser.create(config_loader=loader)
    of_all = parser.parse_overrides(list(typed))
    replaced = {override.get_key_element().lstrip("+") for override in of_all}
    grids = params if isinstance(params, Sequence) and not isinstance(params, str) else [params]
    found: dict[tuple[str, ...], None] = {}
    for grid in grids or [None]:
        if not isinstance(grid, Mapping | None):
            reason = "must map keys to values, or list such mappings"
            raise ConfigError("hydra.sweeper.params", grid, reason)
        own = {key: value for key, value in (grid or {}).items() if key not in replaced}
        of_grid = parser.parse_overrides([f"{key}={value}" for key, value in own.items()])
        (runs,) = BasicSweeper.split_arguments([*of_grid, *of_all], None)
        found |= dict.fromkeys(map(tuple, runs))
    return [list(run) for run in found]
