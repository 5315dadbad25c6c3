"""The configurations of a sweep, composed in a tenth of Hydra's time where only values differ.

Hydra reads all files and builds the list of defaults again for every run. Both depend only on the
options that are selected, so they are kept here; so is each interpolation, parsed. Everything else
is done by Hydra itself, for each run: it applies the overrides and fills in its own section, and
`permissions` checks the result.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import (
    CachingConfigRepository,
    ConfigRepository,
    IConfigRepository,
)
from hydra._internal.defaults_list import DefaultsList
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, _utils, base

_active = False


@contextlib.contextmanager
def composing_once() -> Iterator[None]:
    """In the block, let Hydra read each file once, and merge each selection of options once.

    The configurations are the same as without it. A file that is changed meanwhile is not read
    again. Enter it inside `permissions_of`, which also checks the files. A block in a block has no
    effect of its own.
    """
    global _active
    if _active:
        yield
        return
    kept = _Kept()
    load, merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    select = config_loader_impl.create_defaults_list
    parse = base.parse

    def load_config(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        return kept.file(self, config_path, load)

    def create_defaults_list(**given: Any) -> DefaultsList:
        return kept.defaults_list(given, select)

    def compose(
        self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        return kept.config(defaults, repo, lambda: merge(self, defaults=defaults, repo=repo))

    class Parser(OverridesParser):
        def parse_rule(self, s: str, rule_name: str) -> Any:
            return kept.word(s, rule_name, super().parse_rule)

    try:
        _active = True
        ConfigRepository.load_config = load_config  # type: ignore[method-assign]
        ConfigLoaderImpl._compose_config_from_defaults_list = compose  # type: ignore[method-assign]
        config_loader_impl.create_defaults_list = create_defaults_list  # type: ignore[assignment]
        config_loader_impl.OverridesParser = Parser  # type: ignore[misc]
        config_loader_impl.CachingConfigRepository = _Repository  # type: ignore[misc]
        base.parse = _utils.parse = functools.lru_cache(maxsize=1000)(parse)
        yield
    finally:
        _active = False
        ConfigRepository.load_config = load  # type: ignore[method-assign]
        ConfigLoaderImpl._compose_config_from_defaults_list = merge  # type: ignore[method-assign]
        config_loader_impl.create_defaults_list = select
        config_loader_impl.OverridesParser = OverridesParser  # type: ignore[misc]
        config_loader_impl.CachingConfigRepository = CachingConfigRepository  # type: ignore[misc]
        base.parse = _utils.parse = parse


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a copy without Hydra's part, as `OmegaConf.masked_copy` does, in a third of its time.

    Args:
        config: A composed configuration.
    """
    nodes = {k: node for k, node in config.__dict__["_content"].items() if k != "hydra"}
    try:
        for node in nodes.values():  # else everything is copied
            node.__dict__["_parent"] = None
        copies = _Copies(nodes).another()
    finally:
        for node in nodes.values():
            node.__dict__["_parent"] = config
    own = DictConfig({})
    for node in copies.values():
        node._set_parent(own)
    own.__dict__["_content"].update(copies)
    return own


class _Repository(CachingConfigRepository):
    """Hydra's own, without its deep copy of all registered options, which are only read."""

    def __init__(self, delegate: IConfigRepository) -> None:
        self.delegate = copy.copy(delegate)  # the copy may get another list of sources
        self.cache = {}


class _Kept:
    """What was read, selected, merged and parsed. What raises is not kept."""

    def __init__(self) -> None:
        self._files: dict[object, _Copies] = {}
        self._lists: dict[object, DefaultsList] = {}
        self._configs: dict[object, _Copies] = {}
        self._words: dict[str, Override] = {}
        self._varies = False  # the default of a file is computed by a resolver

    def file(
        self, repo: ConfigRepository, path: str, load: Callable[..., ConfigResult | None]
    ) -> ConfigResult | None:
        """Return the content of a file; the caller may change it."""
        key = (_sources(repo), path)
        if key not in self._files:
            found = load(repo, config_path=path)
            defaults = found.defaults_list if found else None
            self._varies |= any(_is_computed(default) for default in defaults or ())
            self._files[key] = _Copies(found)
        content: ConfigResult | None = self._files[key].another()
        return content

    def defaults_list(
        self, given: dict[str, Any], select: Callable[..., DefaultsList]
    ) -> DefaultsList:
        """Return the options that the overrides select, and the overrides that set values."""
        repo, overrides = given["repo"], given["overrides_list"]
        of_values: list[Override] = []
        of_groups: list[Override] = []
        for override in overrides:
            if override.is_sweep_override():
                continue  # as Hydra does, which leaves it to the sweeper
            # As Hydra distinguishes them.
            is_group = repo.group_exists(override.key_or_group)
            is_value = isinstance(override.value(), dict) or not is_group
            (of_values if is_value else of_groups).append(override)
        others = sorted((k, v) for k, v in given.items() if k not in ("repo", "overrides_list"))
        key = (_sources(repo), *others, *(override.input_line for override in of_groups))
        if key not in self._lists:
            selected = select(**given)
            if self._varies:
                return selected
            self._lists[key] = selected
        return DefaultsList(
            defaults=self._lists[key].defaults,
            defaults_tree=self._lists[key].defaults_tree,
            config_overrides=of_values,
            overrides=self._lists[key].overrides,
        )

    def config(
        self,
        defaults: Sequence[ResultDefault],
        repo: IConfigRepository,
        merge: Callable[[], DictConfig],
    ) -> DictConfig:
        """Return what the selected options hold together; the caller may change it."""
        key = (_sources(repo), *(repr(default) for default in defaults))
        if key not in self._configs:
            self._configs[key] = _Copies(merge())
        config: DictConfig = self._configs[key].another()
        return config

    def word(self, word: str, rule: str, parse: Callable[[str, str], Any]) -> Any:
        """Return the override that a word is."""
        if rule != "override":
            return parse(word, rule)
        if word not in self._words:
            self._words[word] = parse(word, rule)
        return copy.copy(self._words[word])


class _Copies:
    """Equal copies of a value, by `pickle`, which copies a configuration faster than `deepcopy`."""

    def __init__(self, value: Any) -> None:
        try:
            self._pickled: bytes | None = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        except Exception:  # noqa: BLE001 - a class of a schema may not be pickled, for any reason
            self._pickled, self._value = None, copy.deepcopy(value)

    def another(self) -> Any:
        if self._pickled is None:
            return copy.deepcopy(self._value)
        return pickle.loads(self._pickled)


def _sources(repo: IConfigRepository) -> tuple[str, ...]:
    """Return where the files are looked for, in order."""
    return tuple(f"{source.provider} {source.full_path()}" for source in repo.get_sources())


def _is_computed(default: InputDefault) -> bool:
    """Whether a default names a resolver, which may return another option for the next run."""
    texts = [text for text in vars(default).values() if isinstance(text, str)]
    return any(":" in text.partition("${")[2] for text in texts)
