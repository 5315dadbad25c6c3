"""No password stands in what Hydra writes and shows, or in a log.

Importing this module sees to it for the whole process, which a command owns. The callbacks import
it, so a launcher's processes do as well, before anything is written there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import OmegaConfDumper, get_omega_conf_dumper

from fishr_exp.core.secrets import masked, masked_value

_represent_text = OmegaConfDumper.str_representer
_format = logging.Formatter.format


def _masked_text(dumper: yaml.Dumper, text: str) -> yaml.Node:
    return _represent_text(dumper, masked(text))


def _masked_mapping(dumper: yaml.Dumper, mapping: dict[Any, Any]) -> yaml.Node:
    shown = {key: masked_value(str(key), value) for key, value in mapping.items()}
    return dumper.represent_dict(shown)


def _masked_line(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return masked(_format(formatter, record))


# What every YAML file of Hydra's goes through (`.hydra`, `multirun.yaml`), and `--cfg`.
get_omega_conf_dumper()  # which sets its own, once
OmegaConfDumper.add_representer(str, _masked_text)
OmegaConfDumper.add_representer(dict, _masked_mapping)
logging.Formatter.format = _masked_line  # type: ignore[method-assign, assignment]


def with_variables(config: DictConfig, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration for the record: of the tracker, variables by their names.

    `tracker.token: ${oc.env:TOKEN}` is recorded as it was written, since the name of a variable
    does not always say that it is secret.

    Args:
        config: The configuration as it was composed.
        plain: The same, resolved.
    """
    if not isinstance(plain.get("tracker"), Mapping):
        return dict(plain)
    written = OmegaConf.to_container(config, resolve=False)["tracker"]  # type: ignore[index, call-overload]
    return {**plain, "tracker": _with_variables(written, plain["tracker"])}


def _with_variables(written: Any, resolved: Any) -> Any:
    if isinstance(written, str):
        return written if "${oc.env:" in written.replace(" ", "") else resolved
    if isinstance(written, dict) and isinstance(resolved, dict):
        return {k: _with_variables(written.get(k), value) for k, value in resolved.items()}
    if isinstance(written, list) and isinstance(resolved, list) and len(written) == len(resolved):
        return [_with_variables(*pair) for pair in zip(written, resolved, strict=True)]
    return resolved
