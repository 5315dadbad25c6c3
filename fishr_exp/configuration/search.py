"""A search over settings that can be stopped at any moment: a study of Optuna's on the disk.

A trial is one choice of what is searched. It is made by ordinary runs, in ordinary run folders, and
its value is their validation accuracy. The choice follows from the search's seed, the trial's
number and the values so far alone. So a search that was stopped makes the trials that it would have
made, and one whose study is lost finds the runs again, done.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.utils import JobReturn
from hydra.utils import instantiate
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial, TrialState, create_trial

from fishr_exp.core.errors import ConfigError
from fishr_exp.core.seeding import derive
from fishr_exp.runs.identity import TARGET, digest, flatten, settings

log = logging.getLogger(__name__)

# A search over seeds would choose the luckiest. They repeat a trial, and its value is their mean.
REPEATS = ("seed", "protocol.trial_seed")

FAILED = 1  # the status of an error of a run that began, and could not continue

Launch = Callable[[Sequence[Sequence[str]]], Sequence[JobReturn]]


@dataclass(frozen=True)
class Space:
    """What a sweep's overrides say: what is searched, what repeats a trial, and what is fixed."""

    searched: Mapping[str, BaseDistribution]
    repeats: Sequence[Sequence[str]]
    fixed: Sequence[str]
    typed: Sequence[str]  # what is searched, as it was typed

    @classmethod
    def of(cls, overrides: Sequence[Override]) -> Space:
        """Sort the overrides; of two with the same key, the later one holds.

        Raises:
            ConfigError: If there is nothing to search, or a range cannot be drawn from.
        """
        last = {override.get_key_element().lstrip("+"): override for override in overrides}
        swept = {key: o for key, o in last.items() if o.is_sweep_override()}
        repeated = [key for key in REPEATS if key in swept and swept[key].is_discrete_sweep()]
        searched = [override for key, override in swept.items() if key not in repeated]
        if not searched:
            hint = "pass, for one, 'trainer.gamma=tag(log, interval(1, 1e6))'"
            raise ConfigError("hydra/sweeper", "optuna", "there is nothing to search", hint)
        repeats = [[f"{key}={text}" for text in _texts(swept[key])] for key in repeated]
        return cls(
            searched={override.get_key_element(): _distribution(override) for override in searched},
            repeats=list(itertools.product(*repeats)),
            fixed=[str(override.input_line) for key, override in last.items() if key not in swept],
            typed=sorted(str(override.input_line) for override in searched),
        )

    def jobs(self, params: Mapping[str, Any]) -> list[list[str]]:
        """Return the overrides of each run of a trial."""
        drawn = [f"{key}={value}" for key, value in params.items()]
        return [[*drawn, *repeat, *self.fixed] for repeat in self.repeats]

    def names(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """Name the study by all that its values depend on, as a run's folder is named.

        Args:
            config: The configuration with what is fixed.

        Returns:
            The name, and the one that earlier versions gave it, by numbers as they are spelled.
        """
        normal, flat = settings(config), flatten(config)
        spelled = {key: flat[key] if not key.endswith(TARGET) else normal[key] for key in normal}
        both = [digest([values, self.typed, self.repeats]) for values in (normal, spelled)]
        return f"search-{both[0]}", f"search-{both[1]}"


def _distribution(override: Override) -> BaseDistribution:
    """Return what Optuna draws from; choices are drawn as they are typed."""
    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(_texts(override))
    kind = IntDistribution if isinstance(value.start, int) else FloatDistribution
    try:
        return kind(value.start, value.end, log="log" in value.tags)  # type: ignore[arg-type]
    except ValueError as error:
        key, _, typed = str(override.input_line).partition("=")
        raise ConfigError(key, typed, f"cannot be drawn from ({error})") from error


def _texts(override: Override) -> list[str]:
    """Return the values of a discrete sweep as they are typed."""
    return [str(text) for text in override.sweep_string_iterator()]


def open_study(storage: str, names: Sequence[str], *, resume: bool, retry_failed: bool) -> Study:
    """Open a study, or make it; trials that a stop left unfinished wait to be taken up again.

    Args:
        storage: A URL, such as `sqlite:///outputs/study.db`.
        names: The study's name there, and names that it may have from earlier versions.
        resume: False forgets the trials of an earlier search.
        retry_failed: Trials that failed wait, too, to be made once more.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stored = optuna.storages.get_storage(storage)
    there = optuna.get_all_study_names(stored)
    name = next((known for known in names if known in there), names[0])
    if not resume:
        with contextlib.suppress(KeyError):  # there is none
            optuna.delete_study(study_name=name, storage=stored)
    study = optuna.create_study(
        storage=stored, study_name=name, direction="maximize", load_if_exists=True
    )
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        # The same trial, with the same number: its draw, and those to come, stay what they were.
        stored.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    if retry_failed:
        again = {str(t.params): t for t in study.get_trials(states=(TrialState.FAIL,))}
        for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.WAITING)):
            again.pop(str(trial.params), None)
        for trial in again.values():
            drawn, drawn_from = trial.params, trial.distributions
            study.add_trial(
                create_trial(state=TrialState.WAITING, params=drawn, distributions=drawn_from)
            )
    return study


def search(
    study: Study,
    space: Space,
    launch: Launch,
    *,
    n_trials: int,
    n_jobs: int,
    sampler: Mapping[str, Any],
    seed: int,
) -> None:
    """Make trials until the study holds `n_trials` that are finished, those that failed included.

    A trial that waits to be made once more counts as not finished.

    Args:
        study: From `open_study`.
        space: What is searched.
        launch: Makes the runs with the overrides given, and returns what each came to.
        n_trials: Trials in all.
        n_jobs: Trials to launch at a time.
        sampler: What chooses, as a configuration with a `_target_` that takes a seed.
        seed: Of the choices.

    Raises:
        Exception: What a run raised. A mistake or a stop ends the search, and its trials wait; what
            failed in training is reported to the study, and raised when the search has ended.
    """
    todo = n_trials - _count_finished(study)
    failure: Exception | None = None
    while todo > 0:
        trials = [_ask(study, space, sampler, seed) for _ in range(min(n_jobs, todo))]
        todo -= len(trials)
        returns = iter(launch([job for trial in trials for job in space.jobs(trial.params)]))
        ended: Exception | None = None
        for trial in trials:
            try:
                value = _value(list(itertools.islice(returns, len(space.repeats))))
            except Exception as error:  # noqa: BLE001 - whatever a run raised
                if getattr(error, "status", None) == FAILED:
                    study.tell(trial, state=TrialState.FAIL)
                    failure = failure or error
                else:
                    ended = ended or error
            else:
                study.tell(trial, value)
                log.info("trial %d: %s, %.1f %%", trial.number, _line(trial.params), 100 * value)
        if ended is not None:
            raise ended
    if done := study.get_trials(states=(TrialState.COMPLETE,)):
        best = study.best_trial
        log.info(
            "best of %d trials: %s, validation accuracy %.1f %% (trial %d)",
            len(done),
            _line(best.params),
            100 * study.best_value,
            best.number,
        )
    if failure is not None:
        raise failure


def _count_finished(study: Study) -> int:
    """Count the trials that came to an end; those that failed, unless they are made once more."""
    done = study.get_trials(states=(TrialState.COMPLETE,))
    again = {str(t.params) for t in (*done, *study.get_trials(states=(TrialState.WAITING,)))}
    failed = {str(t.params) for t in study.get_trials(states=(TrialState.FAIL,))}
    return len(done) + len(failed - again)


def _value(returns: Sequence[JobReturn]) -> float:
    """Return the mean of what the runs returned, or raise what one of them raised."""
    values = [each.return_value for each in returns]
    if None in values:
        reason = "a run has no validation accuracy that a search may use"
        hint = "holdout_fraction must be above 0, and observer.monitor not name a test domain"
        raise ConfigError("hydra/sweeper", "optuna", reason, hint)
    return sum(values) / len(values)


def _line(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in params.items())


def _ask(study: Study, space: Space, sampler: Mapping[str, Any], seed: int) -> Trial:
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    number = waiting[0].number if waiting else len(study.get_trials(deepcopy=False))
    study.sampler = instantiate(sampler, seed=derive(seed, "trial", number) % 2**32)
    return study.ask(dict(space.searched))
