"""What the method of a run is: by what was built, whatever option configured it.

And whether a result is of the method, gamma, seed and test domains that a configuration asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fishr_exp.runs.identity import TARGET, differences, id_of
from fishr_exp.runs.records import Outline

ERM = "ERM"
# In the configuration of the average of several runs: how, and of how many (`fishr-average`).
AVERAGE_OF = "average_of"
_ERM_ID = "fishr_exp.trainers.erm.Erm"
# Results of earlier versions do not hold a method's name. These are the methods that they had.
_EARLIER = {
    _ERM_ID: ERM,
    "fishr_exp.trainers.fishr.Fishr": "Fishr",
    "fishr_exp.trainers.irm.Irm": "IRM",
    "fishr_exp.trainers.vrex.Vrex": "V-REx",
}


def is_erm(config: Mapping[str, Any]) -> bool:
    """Whether a run's trainer is the ERM baseline; an average of several runs is none."""
    return _target(config) == _ERM_ID and AVERAGE_OF not in config


def averaging_of(config: Mapping[str, Any]) -> str:
    """Return what tables call a run's averaging scheme, by its class; empty without one."""
    return averaging_called(str(_part(config, "averaging").get(TARGET, "")))


def averaging_called(target: str) -> str:
    """Return what tables call the averaging scheme of a class, given by its path."""
    name = target.rpartition(".")[2]
    return name.upper() if target.startswith("fishr_exp.") else name  # SWAD


def method_of(config: Mapping[str, Any], recorded: str | None) -> str:
    """Return what tables call the method of a run.

    Args:
        config: The resolved configuration.
        recorded: What the method called itself; None in results of earlier versions.
    """
    if recorded:
        return recorded
    target = _target(config)
    return _EARLIER.get(target, target.rpartition(".")[2])


def misfit(config: Mapping[str, Any], outline: Outline) -> str:
    """Name what a result is of and its configuration is not; empty where they fit.

    The method and gamma of a trainer from outside this package are not compared: what it calls
    itself, and what its gamma is, are not in the configuration.
    """
    asked = {key: config[key] for key in ("seed", "test_domains") if key in config}
    if isinstance(asked.get("test_domains"), str):
        asked["test_domains"] = [asked["test_domains"]]
    found: dict[str, Any] = {"seed": outline.seed, "test_domains": outline.test_domains}
    target, trainer = _target(config), _part(config, "trainer")
    if target in _EARLIER and AVERAGE_OF not in config:
        asked |= {"method": _EARLIER[target]}
        found |= {"method": outline.method or _EARLIER[target]}
        if "gamma" in trainer:
            asked, found = asked | {"gamma": trainer["gamma"]}, found | {"gamma": outline.gamma}
    return differences({key: found[key] for key in asked}, asked)


def _target(config: Mapping[str, Any]) -> str:
    return id_of(str(_part(config, "trainer").get(TARGET)))


def _part(config: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    """Return a part of a configuration; empty where there is none, or it is damaged."""
    part = config.get(group)
    return part if isinstance(part, Mapping) else {}
