"""Adds the ERM baseline to a sweep over gamma: gamma 0, at the same seeds."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from fishr_exp.configuration import outcomes

GAMMA = "trainer.gamma"


class AddBaseline(Callback):
    """Add gamma 0, which is ERM to the last bit, to a sweep over gammas that lacks it.

    Every other key that is swept, the seed above all, goes with it as with the other gammas.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Change what the sweeper is about to read."""
        del kwargs
        added = None
        task, params = config.hydra.overrides.task, config.hydra.sweeper.get("params") or {}
        with open_dict(config):
            for place, override in enumerate(task):
                if (more := with_zero(override)) is not None:
                    task[place] = added = more
            # The command line replaces what the configuration sweeps.
            replaced = any(_key(override) == GAMMA for override in task)
            if GAMMA in params and not replaced:
                added = with_zero(f"{GAMMA}={params[GAMMA]}")
                params[GAMMA] = added.partition("=")[2] if added else params[GAMMA]
        if added:
            outcomes.sweep.notes.append(f"{added}: gamma 0 is added, the ERM baseline")
            if "SharingSweeper" not in str(config.hydra.sweeper.get("_target_")):
                outcomes.tell_notes()  # ours tells them when it has checked the runs


def with_zero(override: str) -> str | None:
    """Put 0 in front of what an override sweeps `trainer.gamma` over; None if that is not to do."""
    parsed = _parse(override)
    if parsed is None or parsed.get_key_element().lstrip("+") != GAMMA:
        return None
    if not parsed.is_discrete_sweep():  # one gamma, or a range that a sweeper draws from
        return None
    values = [str(value) for value in parsed.sweep_string_iterator()]
    if any(_is_zero(value) for value in values):
        return None
    return f"{parsed.get_key_element()}={','.join(['0', *values])}"


def _key(override: str) -> str:
    parsed = _parse(override)
    return "" if parsed is None else parsed.get_key_element().lstrip("+")


def _parse(override: str) -> Override | None:
    key = override.partition("=")[0].lstrip("+")
    return OverridesParser.create().parse_override(override) if key == GAMMA else None


def _is_zero(value: str) -> bool:
    try:
        return float(value) == 0
    except ValueError:
        return False  # a mistake, which the job will name
