"""What a configuration may build, and who may allow more: the person who types the command.

A configuration may come from somebody else. By default, each group builds only its own parts, the
targets of the options in `conf/GROUP/`, and optimizers and schedulers of `torch.optim`. More is
allowed by the words of the command line (`allow_targets=[mylab]`) or by the environment, never by
a file.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, ListConfig, OmegaConf

from fishr_exp.configuration.dangers import danger
from fishr_exp.configuration.options import registered
from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.identity import TARGET, place_of

ALLOW_TARGETS = "allow_targets"
ALLOW_TARGETS_VARIABLE = "FISHR_EXP_ALLOW_TARGETS"  # of the environment; names, with commas between
# What else a group may build: the subclasses of the second in the first.
_OF_TORCH = {
    "optimizer": ("torch.optim", "Optimizer"),
    "scheduler": ("torch.optim.lr_scheduler", "LRScheduler"),
}
_LARGEST_FILE = 100_000  # values in a YAML file, its aliases written out
_ONLY_SHOWN = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help", "--version")


def _names(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[\w.]+", text))


# At the import, before a configuration can change the environment of a launcher's process.
_allowed = _names(os.environ.get(ALLOW_TARGETS_VARIABLE, ""))


@contextlib.contextmanager
def permissions_of(words: Sequence[str] = (), names: str | Sequence[str] = ()) -> Iterator[None]:
    """In the block, apply what the words of a command line and the environment allow.

    Processes that are started in the block have the same permissions. Configurations that are
    composed in it are checked before anything is built from them.

    Args:
        words: The command line, without the name of the command.
        names: Names that are allowed as well; or one of them, a text.
    """
    global _allowed
    outside = _allowed
    inherited = os.environ.get(ALLOW_TARGETS_VARIABLE)
    # The value of a flag is not a key: `--config-dir hydra` allows nothing.
    keys = {_key(w): w.partition("=")[2] for w in words if "=" in w and not w.startswith("-")}
    names = [names] if isinstance(names, str) else names
    _allowed = _names(",".join((inherited or "", keys.get(ALLOW_TARGETS, ""), *names)))
    os.environ[ALLOW_TARGETS_VARIABLE] = ",".join(_allowed)
    composed, loaded = ConfigLoaderImpl.load_configuration, OmegaConf.load
    shown = any(word.partition("=")[0] in _ONLY_SHOWN for word in words)

    @functools.wraps(composed)
    def compose(*given: Any, **named: Any) -> DictConfig:
        config = composed(*given, **named)
        if not shown:
            _check_choices(config)
            allowed_targets(OmegaConf.select(config, ALLOW_TARGETS))
            check_hydra(config, list(keys))
        return config

    def load(file: Any) -> Any:
        try:
            _check_file(file)
            return loaded(file)
        except RecursionError as error:
            name, reason = getattr(file, "name", file), "this file is nested too deeply to be read"
            raise ConfigError("configuration", name, reason, "write fewer levels") from error

    try:
        ConfigLoaderImpl.load_configuration = compose  # type: ignore[method-assign]
        OmegaConf.load = staticmethod(load)  # type: ignore[method-assign, assignment]
        yield
    finally:
        ConfigLoaderImpl.load_configuration = composed  # type: ignore[method-assign]
        OmegaConf.load = staticmethod(loaded)  # type: ignore[method-assign, assignment]
        _allowed = outside
        if inherited is None:
            del os.environ[ALLOW_TARGETS_VARIABLE]
        else:
            os.environ[ALLOW_TARGETS_VARIABLE] = inherited


def allowed_targets(given: object = None) -> list[str]:
    """Return what `_target_` may name besides the registered parts.

    Args:
        given: `allow_targets` of a configuration; it must hold nothing else.

    Raises:
        ConfigError: If a configuration allows what the person who typed the command does not.
    """
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence | ListConfig | None):
        hint = f"write {ALLOW_TARGETS}=[PACKAGE]"
        raise ConfigError(ALLOW_TARGETS, given, "must be a list of names", hint)
    for name in names or ():
        if not _within(str(name), _allowed):
            reason = (
                "a file cannot allow this; only the command line can, or the variable "
                f"{ALLOW_TARGETS_VARIABLE} of the environment"
            )
            hint = f"pass {ALLOW_TARGETS}=[{name}] if you trust it"
            raise ConfigError(ALLOW_TARGETS, given, reason, hint)
    return list(_allowed)


def target(name: str, group: str, allowed: Sequence[str]) -> Callable[..., Any]:
    """Return what a group's `_target_` names.

    Args:
        name: A dotted path, or the id of a part.
        group: The group whose part it is to build.
        allowed: Packages, modules or names that it may name besides the registered parts.

    Raises:
        ConfigError: If it is not a part of this group and not allowed, or cannot be imported.
    """
    key, place = f"{group}.{TARGET}", place_of(name)
    home = [_OF_TORCH[group][0]] if group in _OF_TORCH else []
    of_torch = _within(place, home)
    is_part = place in registered(group)
    if not is_part and not of_torch and not _within(place, allowed):
        raise _refused(key, name, group, place)
    module, _, attribute = place.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of a user's own may do anything
        reason = f"cannot be imported ({type(error).__name__}: {error})"
        raise ConfigError(key, name, reason, _how_to_import(name, group, error)) from error
    if is_part:
        return found
    if not callable(found):
        raise ConfigError(key, name, "cannot be called", "name a class or a function")
    # A name that a module has only imported belongs to where it is defined.
    if inspect.isclass(found) or inspect.isroutine(found):
        defined = f"{found.__module__}.{found.__qualname__}"
        if not _within(defined, [*allowed, *(home if of_torch else [])]):
            raise _refused(key, name, group, defined)
    if of_torch and not _is_of_torch(found, group):
        article = "an" if group[0] in "aeiou" else "a"
        raise ConfigError(key, name, f"is not {article} {group}", f"pass {group}=NAME")
    return found


def _is_of_torch(found: Callable[..., Any], group: str) -> bool:
    module, name = _OF_TORCH[group]
    kind = getattr(importlib.import_module(module), name)
    return inspect.isclass(found) and issubclass(found, kind) and found is not kind


def check_hydra(config: DictConfig, typed: Sequence[str] = ()) -> None:
    """Refuse a `hydra` section from a file that would call, run or overwrite anything.

    Hydra builds what its section names before a run begins.

    Args:
        config: A composed configuration.
        typed: The keys of the command line; what is typed may be anything.

    Raises:
        ConfigError: At the first key that a file may not set so.
    """
    if OmegaConf.is_missing(config, "hydra") or "hydra" not in config:
        return
    plain = OmegaConf.to_container(config.hydra, resolve=False)
    for key, value in _leaves(plain, "hydra"):
        reason = danger(key, value)
        if reason and not any(f"{key}.".startswith(f"{word}.") for word in typed):
            is_name = key.rpartition(".")[2] in (TARGET, "class", "()")
            if _within(str(value) if is_name else key, _allowed):
                continue
            hint = f"{ALLOW_TARGETS}=[{value}]" if is_name else f"{key}=VALUE yourself"
            shown = value if str(value).isprintable() else repr(value)
            raise ConfigError(key, shown, f"a file cannot set this: {reason}", _if_trusted(hint))


def _check_choices(config: DictConfig) -> None:
    """Refuse another spelling of an option's name, which would be part of a run's name."""
    for group, option in (OmegaConf.select(config, "hydra.runtime.choices") or {}).items():
        name = str(option)
        if name.endswith((".yaml", ".yml")) or {"..", "."} & {*name.split("/")}:
            hint = f"write {group}={re.sub(r'[.]ya?ml$', '', name.rpartition('/')[2])}"
            raise ConfigError(group, name, "is not the name of an option", hint)


def _leaves(node: object, prefix: str) -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{prefix}.{name}")
        return
    if isinstance(node, list):
        for number, value in enumerate(node):
            if isinstance(value, Mapping | list):
                yield from _leaves(value, f"{prefix}.{number}")
    yield prefix, node


def _check_file(file: Any) -> None:
    """Refuse a YAML file whose aliases stand for too many values; leave it as it was."""
    if hasattr(file, "seek"):
        text = file.read()
        file.seek(0)
    else:
        text = Path(file).read_text(encoding="utf-8")
    if "*" in text and "&" in text:
        _check_aliases(yaml.compose(text, Loader=yaml.SafeLoader), getattr(file, "name", file))


def _check_aliases(root: yaml.Node | None, name: object) -> None:
    sizes: dict[int, float] = {}

    def size(node: Any) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = float("inf")  # of an alias to what it is in
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            pairs = isinstance(node, yaml.MappingNode)
            sizes[id(node)] = 1 + sum(
                size(part) for item in inner for part in (item if pairs else [item])
            )
        return sizes[id(node)]

    if root is not None and size(root) > _LARGEST_FILE:
        reason = f"its aliases stand for more than {_LARGEST_FILE} values"
        raise ConfigError("configuration", name, reason, "write them out")


def _refused(key: str, name: str, group: str, place: str) -> ConfigError:
    also = f" and no {group} of {_OF_TORCH[group][0]}" if group in _OF_TORCH else ""
    reason = f"is not what an option of {group} builds{also}"
    package = place.partition(".")[0]
    least = place if package == "fishr_exp" else package
    near = difflib.get_close_matches(place, registered(group), n=1, cutoff=0.8)
    hint = f"did you mean {near[0]}? Or " if near else ""
    hint += f"pass {group}=NAME, or {ALLOW_TARGETS}=[{least}] if you trust it"
    return ConfigError(key, name, reason, hint)


def _if_trusted(word: str) -> str:
    return f"pass {word} if you trust it"


def _how_to_import(name: str, group: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        if name.startswith(("fishr_exp.", "torch.optim.")):
            own = error.name.startswith(("fishr_exp", "torch"))
            return f"pass {group}=NAME" if own else f"install {error.name}"
        return (
            f"install {error.name}, or name the folder that contains it: PYTHONPATH=DIR before the "
            "command, PYTHONPATH=. for the current folder"
        )
    module, _, attribute = name.rpartition(".")
    if isinstance(error, AttributeError) and module in sys.modules:
        known = [n for n, v in vars(sys.modules[module]).items() if callable(v)]
        near = difflib.get_close_matches(attribute, known, n=1)
        return f"did you mean {module}.{near[0]}?" if near else f"pass {group}=NAME"
    return (
        "HYDRA_FULL_ERROR=1 shows where" if module else f"write MODULE.CLASS, or pass {group}=NAME"
    )


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _within(name: str, places: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{place}.") for place in places)
