"""Which runs a table counts: those with the values that `--where KEY=VALUE` asks for."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.files import to_json
from fishr_exp.runs.history import DOMAINBED, Histories, History
from fishr_exp.runs.identity import flatten, normal
from fishr_exp.runs.reading import Run, Runs

Conditions = Mapping[str, Sequence[str]]  # key -> the values of which a run must have one


def parse_conditions(words: Iterable[str]) -> dict[str, list[str]]:
    """Return the conditions of words KEY=VALUE or KEY=VALUE,VALUE; of one key, any value counts.

    Raises:
        ConfigError: If a word is of another form.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key.strip():
            raise ConfigError("--where", word, "must be KEY=VALUE, such as trainer.gamma=100")
        values = [value] if value.lstrip().startswith("[") else value.split(",")
        found.setdefault(key.strip(), []).extend(part.strip() for part in values)
    return found


def runs_where(runs: Runs, conditions: Conditions) -> Runs:
    """Return `runs` with those of its done ones that meet all conditions."""
    if not conditions:
        return runs
    return replace(runs, done=[run for run in runs.done if _meets(_of_run(run), conditions)])


def histories_where(found: Histories, conditions: Conditions) -> Histories:
    """Return `found` with those of DomainBed's own runs that meet all conditions."""
    return replace(
        found,
        runs=[
            run
            for run in found.runs
            if run.source != DOMAINBED or _meets(_of_imported(run), conditions)
        ],
    )


def none_left(items: Iterable[Run | History], conditions: Conditions) -> ConfigError:
    """Return the error for runs that do not meet the conditions: which one, and what there is."""
    facts = [_of_run(item) if isinstance(item, Run) else _of_imported(item) for item in items]
    keys = list(dict.fromkeys(key for of in facts for key in of))
    for key, values in conditions.items():
        word = f"{key}={','.join(values)}"
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {near[0]}?" if near else "see the keys in a run's config.json"
            return ConfigError("--where", word, "no run has this key", hint)
        if not any(_meets(of, {key: values}) for of in facts):
            there = list(dict.fromkeys(to_json(of[key]) for of in facts if key in of))
            shown = ", ".join(there[:10]) + (", ..." if len(there) > 10 else "")
            return ConfigError("--where", word, f"no run has this value; there are {shown}")
    words = " ".join(f"{key}={','.join(values)}" for key, values in conditions.items())
    return ConfigError("--where", words, "no run meets all of these conditions", "leave one out")


def _meets(facts: Mapping[str, Any], conditions: Conditions) -> bool:
    return all(
        key in facts and any(_equals(key, facts[key], value) for value in values)
        for key, values in conditions.items()
    )


def _equals(key: str, fact: Any, text: str) -> bool:
    value = _read(key, text)
    if isinstance(fact, list) and not isinstance(value, list):
        value = [value]  # one test domain may be written without brackets
    return bool(normal(key, fact) == normal(key, value))


def _read(key: str, text: str) -> Any:
    """Return a value as a configuration holds it: a number, true, null, a list, or text."""
    if text.startswith("[") and text.endswith("]"):
        return normal(key, [_read("", item.strip()) for item in text[1:-1].split(",") if item])
    try:
        return normal(key, json.loads(text))
    except ValueError:
        return normal(key, text.strip("'\""))


def _of_run(run: Run) -> dict[str, Any]:
    return {
        **flatten(run.config),
        "method": run.method,
        "trainer": run.option,
        "dataset": run.dataset,
        "model": run.model,
        "test_domains": list(run.test_domains),
        "gamma": run.gamma,
    }


def _of_imported(run: History) -> dict[str, Any]:
    return {
        **run.settings,
        "method": run.method.partition(" (")[0],
        "dataset": run.dataset,
        "trial_seed": run.trial_seed,
        "hparams_seed": run.hparams_seed,
        "test_envs": sorted(run.test_domains),
    }
