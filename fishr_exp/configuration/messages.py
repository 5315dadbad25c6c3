"""What is wrong with a command line, in one line: key, value, what is allowed, and the fix."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fishr_exp.configuration.binding import unknown_key
from fishr_exp.configuration.options import conf_dir
from fishr_exp.configuration.several import GROUP
from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.runs.keys import CHOICES, PARTS

# What Hydra's launchers come with, by the extra of this package that installs it.
_EXTRAS = {"joblib": "parallel", "submitit_local": "slurm", "submitit_slurm": "slurm"}

# How PyTorch says it without a type of its own.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")


def one_line(error: Exception) -> str | None:
    """Explain an error that a user can be expected to make; None of any other."""
    error = _of_a_resolver(error) or error
    decided_by = "hydra.run.dir"  # if it is given, output_dir has no effect
    if getattr(error, "key", "") == "output_dir" and decided_by in _overrides():
        assert isinstance(error, ConfigError)
        error.key, error.hint = decided_by, error.hint.replace("output_dir", decided_by)
    if isinstance(error, ConfigError | TrainingError):
        return " ".join(str(error).split())
    if is_out_of_memory(error):
        return (
            f"out of memory ({_flat(error)}); lower batch_size, evaluation_batch_size, "
            "trainer.memory_limit or the model's size, and pass retry_failed=true"
        )
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        missing = str(error.missing_cfg_file)
        group, _, name = missing.rpartition("/")
        if not group.startswith("hydra/") and not any((of / group).is_dir() for of in _folders()):
            group, _, name = missing.partition("/")
        return str(_no_option(group, name))
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        unknown = re.match(r"Could not override '(.+)'", str(error))
        if ambiguous := re.match(r"Ambiguous value for argument '(.+)'", str(error)):
            key, _, values = ambiguous.group(1).partition("=")
            hint = "pass -m to run each"
            many = "to have them all" if key == GROUP else "for one list"
            hint += "" if _is_group(key) and key != GROUP else f", or write {key}=[{values}] {many}"
            return str(ConfigError(key, values, "several values are a sweep", hint))
        if "INTERVAL_SWEEP" in str(error):
            reason = "does not draw from an interval"
            sweeper = _overrides().get("hydra/sweeper", "fishr_exp")
            return str(ConfigError("hydra/sweeper", sweeper, reason, "pass hydra/sweeper=optuna"))
        removed = [word[1:].partition("=")[0] for word in sys.argv[1:] if word.startswith("~")]
        if removed and "Could not delete" not in str(error):  # Hydra speaks of keys that name it
            value = "NAME" if removed[0] in PARTS else "VALUE"
            return str(ConfigError(removed[0], None, "was removed", f"pass {removed[0]}={value}"))
        return str(_unknown(unknown.group(1))) if unknown else _flat(error)
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was asked for that is not there, on the CPU or on a device."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # PyTorch's, which need not be imported
        or any(said in str(error) for said in _NO_MEMORY)
    )


def before_the_run(error: Exception) -> str:
    """Explain any error that Hydra met before it called us: it is about the command line."""
    overrides = _overrides()
    if isinstance(error, OSError):  # Hydra makes the run's folder
        key = "hydra.run.dir" if "hydra.run.dir" in overrides else "output_dir"
        reason = f"this folder cannot be written ({error.strerror})"
        place = error.filename or overrides.get(key, "outputs/runs")
        return str(ConfigError(key, place, reason, f"choose another {key}"))
    for group in set(PARTS) & set(overrides):  # Hydra wants text there, and does not say where
        if not overrides[group][:1].isalpha() or overrides[group] == "null":
            return str(_no_option(group, overrides[group]))
    return f"{_flat(error)}; HYDRA_FULL_ERROR=1 shows where"


def _of_a_resolver(error: Exception) -> ConfigError | None:
    """Return the error of ours that a resolver raised, which OmegaConf and Hydra wrap."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, ConfigError):
        inner = inner.__cause__ or inner.__context__
    return inner


def _overrides() -> dict[str, str]:
    """Return what the command line sets, by key without the `+` in front."""
    typed = [word.partition("=") for word in sys.argv[1:] if not word.startswith(("-", "~"))]
    return {key.lstrip("+"): value for key, equals, value in typed if equals}


def _folders() -> Iterator[Path]:
    """The folders of the configuration: the package's, and those of the command line."""
    yield conf_dir()
    words = [part for word in sys.argv[1:] for part in word.split("=", 1)]
    for flag, value in itertools.pairwise(words):
        if flag in ("--config-dir", "-cd"):
            yield Path(value)
    for place in _overrides().get("hydra.searchpath", "").strip("[]").split(","):
        kind, _, path = place.strip(" '\"").rpartition("://")
        if path and kind in ("", "file"):
            yield Path(path)
        elif path and kind == "pkg" and find_spec(path.partition(".")[0]):
            yield Path(str(resources.files(path.replace("/", "."))))


def _search_path() -> list[str]:
    """Return the override by which Hydra finds the options of `--config-dir`."""
    own = [f"file://{folder.absolute()}" for folder in _folders() if folder != conf_dir()]
    return [f"hydra.searchpath=[{','.join(own)}]"] if own else []


def _no_option(group: str, name: str) -> ConfigError:
    known = sorted({path.stem for of in _folders() for path in (of / group).glob("*.yaml")})
    if group.startswith("hydra/"):
        with _composing():
            known = GlobalHydra.instance().config_loader().get_group_options(group)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    hint = f"did you mean {group}={near[0]}?" if near else ""
    if group == "hydra/launcher" and name in _EXTRAS and name not in known:
        hint = f"{name} is not installed: pip install -e '.[{_EXTRAS[name]}]'"
    return ConfigError(group, name, f"no such option; choose from {', '.join(known)}", hint)


def _unreadable(error: OverrideParseException) -> str:
    """Explain an override that does not follow Hydra's grammar."""
    lines = [line.strip() for line in str(error.message).splitlines()]
    reason = [line for line in lines if line and not line.startswith(("Error parsing", "See "))]
    if str(error.override).endswith(","):
        return f"{error.override}: a sweep is written without spaces, as in trainer.gamma=1,10"
    return (
        f"{error.override}: cannot be read as KEY=VALUE ({', '.join(reason)}); "
        "put quotes around a value with special characters: 'KEY=\"VALUE\"'"
    )


def _unknown(key: str) -> ConfigError:
    """Explain an unknown key, with the keys that are there on this command line."""
    overrides = _overrides()
    group = key.partition(".")[0]
    if "," in overrides.get(group, "").partition("[")[0]:
        return _unknown_to_some(group, key, overrides)
    choices = [f"{group}={value}" for group, value in overrides.items() if _is_group(group)]
    node: DictConfig = OmegaConf.create()
    if not key.startswith("hydra."):
        try:
            with _composing():
                words = [*choices, *_search_path()]
                node = hydra.compose("config", words, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ConfigError):
            pass  # of a sweep over a group, the keys depend on the job
    chosen = OmegaConf.select(node, f"hydra.runtime.choices.{group}")
    node = OmegaConf.masked_copy(node, [str(name) for name in node if name != "hydra"])
    place = ""
    if group in PARTS and group in node and node[group] is None:  # its option builds nothing
        option = overrides.get(group, "none")
        reason = f"{group}={option} has no keys"
        return ConfigError(key, overrides.get(key, ""), reason, "leave it out, or choose another")
    for name in key.split("."):
        inner = node.get(name)
        if not isinstance(inner, DictConfig):
            break
        node, place = inner, f"{place}{name}."
    if place and name in node and node[name] is None:  # a mapping that is not given
        value, reason = overrides.get(key, ""), f"{place}{name} holds no such key"
        return ConfigError(key, value, reason, f"pass +{key}={value} to add it")
    known = _own_keys(node)
    known += () if place or key.startswith("hydra.") else CHOICES
    error = unknown_key(f"{place}{name}", "", known)
    if f"{group}._target_" in overrides:  # it may well take a key that the option lacks
        error.hint = f"write +{key}={overrides.get(key, 'VALUE')} for a key of your own"
    elif not place and not error.hint:
        of = [
            part for part in PARTS if isinstance(node.get(part), DictConfig) and key in node[part]
        ]
        error.hint = f"did you mean {of[0]}.{key}?" if of else ""
    elif place == f"{GROUP}." and (of := [n for n in known if name in (node[n] or ())]):
        error.hint = f"did you mean {place}{of[0]}.{name}?"
    elif group in PARTS and chosen and group not in overrides and not error.hint:
        error.hint = f"these are the keys of {group}={chosen}; for others, pass {group}=NAME"
    return ConfigError(key, *_given(key, overrides, error.allowed, error.hint))


def _given(key: str, overrides: Mapping[str, str], reason: str, hint: str) -> tuple[str, str, str]:
    """Return a key's value, what is wrong with it, and the fix; it may not have been typed."""
    if key in overrides:
        return overrides[key], reason, hint
    by_experiment = "the experiment sets or sweeps this key; choose one that fits the method"
    return "...", reason, hint or by_experiment


def _unknown_to_some(group: str, key: str, overrides: Mapping[str, str]) -> ConfigError:
    """Explain a key that an option of a sweep over a group has not, or none of them."""
    name, keys = key.partition(".")[2], {}
    for option in overrides[group].split(","):
        with contextlib.suppress(HydraException, OmegaConfBaseException, ConfigError), _composing():
            node = hydra.compose("config", [f"{group}={option}", *_search_path()])[group]
            keys[option] = _own_keys(node)
    without = [option for option, own in keys.items() if name.partition(".")[0] not in own]
    if without and len(without) < len(keys):
        reason = f"{group}={without[0]} has no such key"
        hint = f"sweep over the options of {group} that have it, and run {without[0]} separately"
        return ConfigError(key, *_given(key, overrides, reason, hint))
    known = dict.fromkeys(own for all_own in keys.values() for own in all_own)
    error = unknown_key(key, "", known)
    return ConfigError(key, *_given(key, overrides, error.allowed, error.hint))


def _composing() -> contextlib.AbstractContextManager[Any]:
    """Set Hydra up, unless a plan of a sweep has done so."""
    if GlobalHydra.instance().is_initialized():
        return contextlib.nullcontext()
    return hydra.initialize_config_dir(str(conf_dir()), version_base="1.3")


def _own_keys(node: DictConfig) -> list[str]:
    """Return the keys of a node that a user sets, without those that begin with an underscore."""
    return [str(key) for key in node if not str(key).startswith("_")]


def _is_group(name: str) -> bool:
    return name in (*PARTS, *CHOICES)


def _flat(error: Exception) -> str:
    """Return the first paragraph of an error and of its cause, with the key that it is about."""
    key = getattr(error, "full_key", None)
    text = f"{key}: " if key else ""
    text += _paragraph(str(error)) or type(error).__name__
    return f"{text} ({_flat(error.__cause__)})" if isinstance(error.__cause__, Exception) else text


def _paragraph(text: str) -> str:
    """Return the first paragraph of a text as one line, without what OmegaConf says of a node."""
    lines = [line.strip() for line in text.strip().splitlines()]
    ends = ("full_key:", "object_type=", "reference_type=")
    first = itertools.takewhile(lambda line: line and not line.startswith(ends), lines)
    return " ".join(first)
