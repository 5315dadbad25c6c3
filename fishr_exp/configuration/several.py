"""Several trackers at once: each option of a list has its own place in the configuration.

Hydra merges the options of a list, `tracker=[mlflow,csv]`, into one node, in which the last
`_target_` would win. Importing this module gives each of them a node of its own: `tracker.mlflow`
and `tracker.csv`. A single option stays what it is. The callbacks import it, so a launcher's
processes do as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import ResultDefault
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.identity import NEUTRAL, TARGET

GROUP = "tracker"  # the group of which a run may have several
_NONE = "none"

_merge = ConfigLoaderImpl._compose_config_from_defaults_list


def _compose(self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: Any) -> DictConfig:
    names = [_option(default) for default in defaults]
    chosen = [name for name in names if name]
    if len(chosen) > 1:
        if _NONE in chosen:
            listed = f"[{','.join(chosen)}]"
            raise ConfigError(GROUP, listed, f"{_NONE} cannot stand beside others", "leave it out")
        defaults = [
            replace(default, package=f"{GROUP}.{name}") if name else default
            for name, default in zip(names, defaults, strict=True)
        ]
    return _merge(self, defaults=defaults, repo=repo)


def _option(default: ResultDefault) -> str:
    """Return the option of the group that a default is; empty of any other."""
    group, _, name = (default.config_path or "").rpartition("/")
    of_the_group = group == GROUP and default.package in (GROUP, "") and not default.is_self
    return ConfigSource._normalize_file_name(name).removesuffix(".yaml") if of_the_group else ""


ConfigLoaderImpl._compose_config_from_defaults_list = _compose  # type: ignore[method-assign]


def is_several(node: object) -> bool:
    """Whether a node of the group holds several parts, by name."""
    if not isinstance(node, Mapping) or TARGET in node:
        return False
    parts = [part for name, part in node.items() if name != NEUTRAL]
    return bool(parts) and all(isinstance(part, Mapping) for part in parts)
