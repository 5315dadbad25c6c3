"""The runs of a sweep: found, checked, and put in order before the first one starts."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from fishr_exp.configuration.binding import arguments, check_output_dir, typed_words
from fishr_exp.configuration.messages import one_line
from fishr_exp.configuration.planning import MistakesError
from fishr_exp.runs.content import UnreadableError
from fishr_exp.runs.identity import settings
from fishr_exp.runs.names import CHECKPOINTS, CONFIG, DONE
from fishr_exp.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from fishr_exp.training.arguments import Arguments
    from fishr_exp.training.trunk import Trunk

log = logging.getLogger(__name__)

# What repeats a run: breadth before depth goes over the others first.
REPEATS = ("seed", "data_seed", "protocol.trial_seed")


@dataclass
class SweptRun:
    """One run of a sweep.

    Attributes:
        words: Its overrides, as Hydra has them.
        folder: Its run folder.
        position: Its place in the sweep as it was written, from 1.
        is_baseline: Whether it is the ERM baseline.
        kind: What runs of equal cost share.
        candidates: The steps that it could share with others, the longest first.
        trunk: Those that it does share.
    """

    words: tuple[str, ...]
    folder: Path
    position: int
    is_baseline: bool = False
    kind: tuple[object, ...] = ()
    candidates: Sequence[Trunk] = field(default_factory=list)
    trunk: Trunk | None = None

    @property
    def cell(self) -> tuple[str, ...]:
        """Its words, without those that repeat it."""
        return tuple(word for word in self.words if word.partition("=")[0] not in REPEATS)

    @property
    def is_done(self) -> bool:
        """Whether it has its result."""
        return (self.folder / DONE).exists() and (self.folder / CONFIG).exists()

    @property
    def has_failed(self) -> bool:
        """Whether it failed, as its folder says."""
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
    from fishr_exp.training.trunk import trunks

    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    given = arguments(own, config.hydra.runtime.choices, typed_words(config.hydra))
    trainer = check(given).trainer
    values = settings(given.config)
    run.is_baseline = trainer.gamma == 0 or given.labels["trainer"] == "erm"
    run.kind = _kind(given, values)
    if shares and given.share_steps and given.resume:
        parent, looks = run.folder.parent, given.diagnostics
        run.candidates = trunks(parent, trainer, values, diagnostics=looks)


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
    """Return the runs that make the steps that others share: a baseline, where there is one."""
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
