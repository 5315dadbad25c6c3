"""The runs of a sweep: found, checked, and put in order before the first one starts."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from fishr_exp.configuration.binding import arguments, check_output_dir, typed_words
from fishr_exp.configuration.composing import without_hydra
from fishr_exp.configuration.messages import one_line
from fishr_exp.configuration.mistakes import MistakesError
from fishr_exp.runs.content import UnreadableError
from fishr_exp.runs.identity import folder_name, settings
from fishr_exp.runs.names import CHECKPOINTS, CONFIG, DONE
from fishr_exp.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from fishr_exp.core.contracts import Trainer
    from fishr_exp.core.errors import ConfigError
    from fishr_exp.training.arguments import Arguments
    from fishr_exp.training.trunk import Trunk

log = logging.getLogger(__name__)

# What repeats a run: breadth before depth goes over the others first.
REPEATS = ("seed", "data_seed", "protocol.trial_seed")


_DEPENDS = {  # a mistake's key, or its first word -> the parts of a run that it depends on
    "dataset.root": ("dataset",),
    "model": ("dataset", "model", "method"),
    "test_domains": ("dataset", "test_domains", "method"),
    "tracker": ("tracker",),
}


@dataclass
class SweptRun:
    """One run of a sweep.

    Attributes:
        words: Its overrides, as Hydra has them.
        folder: Its run folder.
        position: Its place in the sweep as it was written, from 1.
        varied: Those of its words that not all runs have.
        is_baseline: Whether it is the ERM baseline.
        kind: What runs of equal cost share.
        parts: What it is made of, as far as mistakes depend on it.
        mistake: What its configuration was refused for, once it was launched.
        candidates: The steps that it could share with others, the longest first.
        trunk: Those that it does share.
        to_send: Whether it is done, and its tracker lacks something of it.
        from_scratch: Whether it is to be trained again, whatever is in its folder.
        failed_before: Whether what its folder says of a failure is of an earlier try.
    """

    words: tuple[str, ...]
    folder: Path
    position: int
    varied: Sequence[str] = ()
    is_baseline: bool = False
    kind: tuple[object, ...] = ()
    parts: Mapping[str, object] = field(default_factory=dict)
    mistake: ConfigError | None = None
    candidates: Sequence[Trunk] = field(default_factory=list)
    trunk: Trunk | None = None
    to_send: bool = False
    from_scratch: bool = False
    failed_before: bool = False

    @property
    def cell(self) -> tuple[str, ...]:
        """Its words, without those that repeat it."""
        return tuple(word for word in self.words if word.partition("=")[0] not in REPEATS)

    def has_mistake_of(self, other: SweptRun) -> bool:
        """Whether this run would be refused for what another one was refused for."""
        if not (other.mistake and self.parts):
            return False
        key = other.mistake.key
        depends = _DEPENDS.get(key) or _DEPENDS.get(key.partition(".")[0], ())
        return bool(depends) and all(self.parts[on] == other.parts.get(on) for on in depends)

    @property
    def is_done(self) -> bool:
        """Whether it has its result, and nothing is to be done for it."""
        return not (self.to_send or self.from_scratch) and self.has_result

    @property
    def has_result(self) -> bool:
        """Whether it has its result."""
        return (self.folder / DONE).exists() and (self.folder / CONFIG).exists()

    @property
    def has_failed(self) -> bool:
        """Whether it failed in this sweep, as its folder says."""
        if self.failed_before:
            return False
        with contextlib.suppress(UnreadableError):  # of which its own message tells
            return RunFolder(self.folder).state == "failed"
        return False

    @property
    def reached(self) -> int:
        """The step of its newest checkpoint; 0 if it has none."""
        states = (self.folder / CHECKPOINTS).glob("step-*.pt")
        steps = [path.stem.removeprefix("step-") for path in states]
        return max((int(step) for step in steps if step.isdigit()), default=0)


def describe(run: SweptRun, config: DictConfig, *, shares: bool) -> None:
    """Check the configuration of a run as far as that is cheap, and note what it is.

    Args:
        run: The run.
        config: Composed.
        shares: Whether it may share steps with others.

    Raises:
        ConfigError: If what was asked for cannot be.
    """
    from fishr_exp.training.prepare import check

    run.folder, given, own = bound(config)
    trainer = check(given).trainer
    run.is_baseline = trainer.gamma == 0 or given.labels["trainer"] == "erm"
    run.kind = _kind(given, settings(given.config))
    run.parts = {
        "dataset": {k: v for k, v in given.config["dataset"].items() if k != "seed"},
        "model": given.config["model"],
        "method": given.config["trainer"]["_target_"],
        "test_domains": given.config["test_domains"],
        "tracker": str(own.tracker),  # as it is written
    }
    run.candidates = candidates(given, trainer, run.folder) if shares else []


def candidates(given: Arguments, trainer: Trainer, folder: Path) -> list[Trunk]:
    """Return the steps that a run could share with others of its sweep."""
    from fishr_exp.training.trunk import trunks

    if not (given.share_steps and given.resume):
        return []
    values = settings(given.config)
    return trunks(folder.parent, trainer, values, diagnostics=given.diagnostics)


def bound(config: DictConfig) -> tuple[Path, Arguments, DictConfig]:
    """Return a run's folder, its arguments, and its configuration without Hydra's part.

    Raises:
        ConfigError: If a key or a value is not as it must be.
    """
    runs = check_output_dir(config.hydra.sweep.dir, "hydra.sweep.dir")
    own, choices = without_hydra(config), config.hydra.runtime.choices
    raw: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    try:
        checked = arguments(own, choices, typed_words(config.hydra))
    except Exception:
        OmegaConf.select(config, "hydra.sweep.subdir")  # what is wrong with it is said first
        raise
    if raw["subdir"] == "${run_name:}":  # the name is made of what is resolved already
        check_output_dir(checked.config.get("output_dir"))
        return Path(runs) / folder_name(checked.config, str(choices.get("trainer"))), checked, own
    return Path(runs) / config.hydra.sweep.subdir, checked, own


def folder_of(config: DictConfig) -> Path:
    """Return the run folder of a composed configuration.

    Raises:
        ConfigError: If it names none.
    """
    runs = check_output_dir(config.hydra.sweep.dir, "hydra.sweep.dir")
    return Path(runs) / config.hydra.sweep.subdir


def _kind(given: Arguments, values: dict[str, Any]) -> tuple[object, ...]:
    """Return what runs of equal cost share."""
    keys = (
        "batch_size",
        "epochs",
        "total_steps",
        "steps_per_epoch",
        "precision",
        "dataset.domains",
    )
    words = [f"{k}={v}" for k, v in values.items() if k.startswith("trainer.") and not _number(v)]
    words += [f"{key}={value}" for key, value in values.items() if key.startswith("batch_size.")]
    return (*given.labels.values(), *sorted(words), *(str(values.get(key)) for key in keys))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def share(runs: Iterable[SweptRun]) -> None:
    """Let runs share what several of them have in common: the longest such steps of each."""
    left = [run for run in runs if run.candidates]
    members: dict[Path, list[SweptRun]] = {}
    for run in left:
        reached = run.reached
        run.candidates = [trunk for trunk in run.candidates if trunk.step > reached]
        for trunk in run.candidates:
            members.setdefault(trunk.folder, []).append(run)
    for run in left:
        common = (t for t in run.candidates if len(members[t.folder]) > 1 or t.is_there)
        run.trunk = next(common, None)
    chosen = Counter(run.trunk.folder for run in left if run.trunk)
    for run in left:
        if run.trunk and chosen[run.trunk.folder] < 2 and not run.trunk.is_there:
            run.trunk = None


def in_order(runs: Sequence[SweptRun]) -> list[SweptRun]:
    """Put runs in order: what others start from first, then a run of each kind before repeats."""
    seen: dict[tuple[str, ...], int] = {}
    depths = {}
    for run in sorted(runs, key=lambda run: run.position):
        depths[run.position] = seen[run.cell] = seen.get(run.cell, -1) + 1
    first = {run.position for run in leaders(runs)}

    def key(run: SweptRun) -> tuple[bool, int, int]:
        return (
            not (run.is_baseline or run.position in first),
            depths[run.position],
            run.position,
        )

    return sorted(runs, key=key)


def leaders(runs: Sequence[SweptRun]) -> list[SweptRun]:
    """Return the runs that train the steps that others share: a baseline, where there is one."""
    found: dict[Path, SweptRun] = {}
    for run in sorted(runs, key=lambda run: (not run.is_baseline, run.position)):
        if run.trunk and not run.trunk.is_there:
            found.setdefault(run.trunk.folder, run)
    return list(found.values())


def raise_mistakes(mistakes: Iterable[tuple[Exception, Sequence[str]]]) -> None:
    """Raise all that is wrong with the runs of a sweep, if anything is.

    Raises:
        MistakesError: With the mistakes that people make, each once.
        Exception: Any other error, as it is.
    """
    lines: dict[str, list[str]] = {}
    for error, varied in mistakes:
        if (message := one_line(error)) is None:
            raise error
        lines.setdefault(message, []).append(" ".join(varied))
    if lines:
        raise MistakesError(lines)
