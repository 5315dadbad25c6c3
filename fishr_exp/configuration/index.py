"""The runs that a sweep's words name, kept so that the next command need not compose them again.

A run's folder is named by its whole configuration. The index says it for the words of a job, as
long as all that the name follows from is the same: see `digest_of_inputs`. An entry that is wrong
or missing costs the time to compose one configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

import fishr_exp
from fishr_exp.configuration.binding import plain_of, typed_words
from fishr_exp.configuration.options import conf_dir
from fishr_exp.configuration.permissions import allowed_targets
from fishr_exp.core.files import expanded
from fishr_exp.runs.files import write_atomically
from fishr_exp.runs.identity import folder_names, name_in
from fishr_exp.runs.names import CONFIG

NAME = ".composed.json"
_MOST_BYTES = 64_000_000  # of an index, and of the files that a configuration is made of
_MOST_FILES = 5_000
_MOST_ENTRIES = 100_000  # those that were added last stay

# What may stand in a user's words and files: references to keys of the run, and resolvers whose
# value follows from their arguments, or from a variable of the environment.
_REFERENCE = re.compile(r"\$\{\s*\.*[A-Za-z_][\w.\-]*\s*\}")
_PURE = re.compile(
    r"\$\{\s*(?:(?:draw|run_seed|of_dataset|unless|any)\s*:|oc\.select\s*:\s*[A-Za-z_][\w.\-]*\s*[,}])"
)
_VARIABLE = re.compile(r"\$\{\s*(?:oc\.env|variable)\s*:\s*['\"]?(\w+)['\"]?\s*[,}]")
# The time, Hydra's own keys, folders named otherwise, and targets whose signatures decide a name.
_APART = re.compile(r"sweep_name|\b(hydra|job|runtime|id|num|tracker|sweep)\b")
_NOT_INDEXED = re.compile(r"subdir|\._target_['\"]?\s*[:=]")
_NOT_READ = re.compile(r"\.\./|\\[xuU]0*24")  # of a file: options elsewhere, a hidden dollar sign
_SWEEP_NAME = re.compile(r"\+*sweep_name=[^,]*")  # a word; what it sets is in no name
# Of this package's files, the lines with the time, which are in no name either.
_WITH_TIME = {
    "config.yaml": re.compile(r"^sweep_name: .*$", re.MULTILINE),
    **dict.fromkeys(
        [f"tracker/{name}.yaml" for name in ("mlflow", "csv", "tensorboard", "wandb")],
        re.compile(r"^sweep: \$\{sweep_name\}$", re.MULTILINE),
    ),
}


class Index:
    """The names of the run folders of a sweep, by the words of its jobs.

    Args:
        folder: The sweep's folder, which holds the runs and the index.
        inputs: What `digest_of_inputs` returns; with None, nothing is known and nothing is kept.
    """

    def __init__(self, folder: Path, inputs: str | None) -> None:
        self.folder = folder
        self.inputs = inputs
        self._added: dict[str, list[str]] = {}
        self._names = self._read() if inputs is not None else {}

    def find(self, words: Sequence[str]) -> Path | None:
        """Return the folder of the run, which is there; None if it must be composed to know it.

        Args:
            words: All overrides of a job.
        """
        if self.inputs is None or not (names := self._names.get(self._key(words))):
            return None
        found = self.folder / name_in(self.folder, names)
        return found if (found / CONFIG).is_file() else None

    def add(self, words: Sequence[str], config: DictConfig) -> None:
        """Note a composed configuration; nothing if its run lies in another folder.

        Args:
            words: All overrides of its job.
            config: The whole configuration, Hydra's part included.
        """
        if self.inputs is None:
            return
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        plain = plain_of(own, typed_words(config.hydra))
        if expanded(str(plain["output_dir"])) != self.folder:
            return
        names = folder_names(plain, str(config.hydra.runtime.choices.get("trainer")))
        if all(map(_is_name, names)):
            self._names[self._key(words)] = self._added[self._key(words)] = names

    def write(self) -> None:
        """Write what was added, beside what another command has written; if it can be written."""
        self._sweep()
        if not self._added:
            return
        names = {**self._read(), **self._added}
        last = dict([*names.items()][-_MOST_ENTRIES:])
        with contextlib.suppress(OSError):
            write_atomically(self.folder / NAME, json.dumps(last, separators=(",", ":")))
        self._added = {}

    def _sweep(self) -> None:
        """Remove what a command left that was killed while it wrote."""
        for path in self.folder.glob(f".{NAME}.*.tmp"):
            process = path.name.split(".")[-2]
            if process.isdigit() and not _is_alive(int(process)):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _key(self, words: Sequence[str]) -> str:
        # Hashed: words may hold passwords.
        text = json.dumps([self.inputs, *words])
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]

    def _read(self) -> dict[str, list[str]]:
        path = self.folder / NAME
        try:
            if not path.is_file() or path.stat().st_size > _MOST_BYTES:
                return {}
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict):
            return {}
        return {
            key: names
            for key, names in content.items()
            if isinstance(names, list) and names and all(map(_is_name, names))
        }


def _is_name(name: object) -> bool:
    """Whether it is the name of a file in a folder."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and name.isprintable()
        and not any(separator in name for separator in "/\\")
    )


def digest_of_inputs(config: DictConfig) -> str | None:
    """Return what stands for all that the names of a sweep's runs follow from, beside their words.

    These are the versions and the code that names them, the content of all files that can be read,
    the words for Hydra, the variables of the environment that files or words name, the home folder
    and the permissions.

    Args:
        config: The configuration of the sweep, as Hydra gives it to a sweeper.

    Returns:
        A digest, or None if the names may follow from anything else: the time, the number of a job,
        a module of the user's, options that are registered by code, or a file that is not found.
    """
    store = ConfigStore.instance().repo
    if any(isinstance(node, Mapping) and group != "hydra" for group, node in store.items()):
        return None
    for_hydra: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    words = [*for_hydra, *typed_words(config.hydra)]  # as they were typed
    if not all(_SWEEP_NAME.fullmatch(word) or _is_constant(word) for word in words):
        return None
    texts: list[tuple[str, str]] = []
    try:
        for source in config.hydra.runtime.config_sources:
            if source.schema == "structured":
                continue
            of_hydra, folders = _folders(source)
            is_ours = [folder.resolve() for folder in folders] == [conf_dir().resolve()]
            for path, text in _files(folders):
                if not of_hydra and not _is_constant_file(text, path, is_ours=is_ours):
                    return None
                texts.append((path, text))
        code = [
            path.read_text(encoding="utf-8")
            for room in ("configuration", "core", "runs")
            for path in sorted((Path(fishr_exp.__file__).parent / room).rglob("*.py"))
        ]
    except (OSError, ValueError, ImportError):
        return None
    named = {name for text in (*words, *(text for _, text in texts)) for name in _variables(text)}
    inputs = [
        [fishr_exp.__version__, version("hydra-core"), version("omegaconf")],
        platform.python_version(),
        code,
        texts,
        for_hydra,
        str(config.hydra.job.config_name),
        sorted((name, os.environ.get(name)) for name in named),
        os.path.expanduser("~"),
        sorted(allowed_targets()),
    ]
    return hashlib.sha256(json.dumps(inputs).encode(errors="surrogatepass")).hexdigest()


def _variables(text: str) -> list[str]:
    return _VARIABLE.findall(text)


def _is_constant(text: str) -> bool:
    """Whether what a user wrote says the same in every run, and at any time."""
    if _NOT_INDEXED.search(text):
        return False
    for start in (match.start() for match in re.finditer(r"\$\{", text)):
        reference = _REFERENCE.match(text, start)
        found = reference or _PURE.match(text, start)
        if _VARIABLE.match(text, start) or (found and not _APART.search(found[0])):
            continue
        return False
    return True


def _is_constant_file(text: str, path: str, *, is_ours: bool) -> bool:
    """Whether a file says the same in every run; of this package's, apart from `hydra`."""
    if is_ours and path.startswith("hydra/"):
        return True
    if is_ours and path == "config.yaml":
        text, _, of_hydra = text.partition("\nhydra:")
        if "\n    subdir: ${run_name:}\n" not in of_hydra:
            return False
    if is_ours and path in _WITH_TIME:
        text = _WITH_TIME[path].sub("", text)
    return _is_constant(text) and not _NOT_READ.search(text)


def _folders(source: Any) -> tuple[bool, list[Path]]:
    """Return whether a source is Hydra's own, or a plugin's, and its folders.

    Raises:
        ValueError: If it is a package of the user's, or something else.
    """
    if source.schema == "file":
        return False, [Path(source.path)]
    if source.schema != "pkg" or not re.match(r"hydra(_plugins)?\.", source.path):
        raise ValueError(source.schema)
    spec = importlib.util.find_spec(source.path.replace("/", "."))
    return True, [Path(place) for place in (spec and spec.submodule_search_locations) or ()]


def _files(folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield path and text of all files that can be read.

    Raises:
        ValueError: If they are more than can be read at each start.
    """
    count = size = 0
    for folder in folders:
        for parent, inner, names in os.walk(folder, followlinks=True):
            inner.sort()
            count += len(names)
            if count > _MOST_FILES:
                raise ValueError(folder)
            for path in sorted(Path(parent, name) for name in names if name.endswith(".yaml")):
                size += path.stat().st_size
                if not path.is_file() or size > _MOST_BYTES:
                    raise ValueError(path)
                yield path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8")


def _is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine; one of another may have it, too."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
