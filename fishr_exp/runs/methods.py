"""What the method of a run is: by what was built, whatever option configured it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fishr_exp.runs.identity import TARGET, id_of

ERM = "ERM"
_ERM_ID = "fishr_exp.trainers.erm.Erm"
# Results of earlier versions do not hold a method's name. These are the methods that they had.
_EARLIER = {
    _ERM_ID: ERM,
    "fishr_exp.trainers.fishr.Fishr": "Fishr",
    "fishr_exp.trainers.irm.Irm": "IRM",
    "fishr_exp.trainers.vrex.Vrex": "V-REx",
}


def is_erm(config: Mapping[str, Any]) -> bool:
    """Whether a run's trainer is the ERM baseline."""
    return _target(config) == _ERM_ID


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


def _target(config: Mapping[str, Any]) -> str:
    return id_of(str((config.get("trainer") or {}).get(TARGET)))
