"""A search with runs that cost nothing: what is drawn, told, counted, and taken up again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from fishr_exp.configuration import outcomes
from fishr_exp.configuration.options import conf_dir
from fishr_exp.configuration.starting import prefer_own_sweepers
from fishr_exp.core.errors import ConfigError, TrainingError

pytest.importorskip("optuna")

from optuna import Study
from optuna.trial import TrialState

from fishr_exp.configuration.search import Space, open_study, search

GAMMA = "trainer.gamma=tag(log, interval(1, 1e6))"
TPE = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 3}


@pytest.fixture(autouse=True)
def no_sweep_before() -> None:
    """Forget the sweep that another test made in this process; a search is a command of its own."""
    outcomes.begin()


def space(*words: str) -> Space:
    return Space.of(OverridesParser.create().parse_overrides(list(words)))


def value_of(words: Sequence[str]) -> float:
    """What a run comes to: best at gamma 1000, a little better at a higher seed."""
    given = dict(word.split("=") for word in words)
    gamma, seed = float(given["trainer.gamma"]), int(given.get("seed", 0))
    return 0.8 - abs(math.log10(gamma) - 3) / 10 + seed / 100


class Runs:
    """Stands in for a launcher, and keeps what was launched."""

    def __init__(self, value: Callable[[Sequence[str]], Any] = value_of) -> None:
        self.value = value
        self.jobs: list[tuple[str, ...]] = []

    def __call__(self, jobs: Sequence[Sequence[str]]) -> list[JobReturn]:
        return [self.one(tuple(job)) for job in jobs]

    def one(self, job: tuple[str, ...]) -> JobReturn:
        self.jobs.append(job)
        value = self.value(job)
        if isinstance(value, BaseException) and not isinstance(value, Exception):
            raise value
        failed = isinstance(value, Exception)
        return JobReturn(
            status=JobStatus.FAILED if failed else JobStatus.COMPLETED, _return_value=value
        )


def failing(error: Exception, status: int | None) -> Exception:
    if status is not None:
        error.status = status  # type: ignore[attr-defined]
    return error


def reopened(folder: Path, *, resume: bool = True, retry_failed: bool = False) -> Study:
    url = f"sqlite:///{folder}/study.db"
    return open_study(url, ["study"], resume=resume, retry_failed=retry_failed)


def go_on(
    folder: Path, runs: Runs, *words: str, n_trials: int = 8, n_jobs: int = 1, **how: bool
) -> list[tuple[int, dict[str, Any], float | None, str]]:
    """Start the search, or start it again; return its trials."""
    study = reopened(folder, **how)
    options: dict[str, Any] = {"n_trials": n_trials, "n_jobs": n_jobs, "sampler": TPE, "seed": 0}
    search(study, space(*(words or (GAMMA,))), runs, **options)
    return trials(folder)


def trials(folder: Path) -> list[tuple[int, dict[str, Any], float | None, str]]:
    import optuna

    study = optuna.load_study(study_name="study", storage=f"sqlite:///{folder}/study.db")
    return [(t.number, t.params, t.value, t.state.name) for t in study.trials]


def test_finds_a_good_gamma_and_holds_what_the_runs_returned(tmp_path: Path) -> None:
    runs = Runs()
    found = go_on(tmp_path, runs, n_trials=20)
    assert [number for number, *_ in found] == list(range(20))
    assert [value for _, _, value, _ in found] == [value_of(job) for job in runs.jobs]
    gammas = [params["trainer.gamma"] for _, params, _, _ in found]
    assert min(gammas) < 30
    assert max(gammas) > 30_000
    assert 300 < max(found, key=lambda trial: trial[2] or 0)[1]["trainer.gamma"] < 3000
    assert all(type(gamma) is float for gamma in gammas)


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_stopped_anywhere_it_makes_the_trials_that_it_would_have_made(
    tmp_path: Path, n_jobs: int
) -> None:
    (tmp_path / "whole").mkdir()
    whole = go_on(tmp_path / "whole", Runs(), n_jobs=n_jobs)
    for last in (0, 4, 7):  # the run at which the process dies
        folder = tmp_path / f"stopped{last}"
        folder.mkdir()

        def value(words: Sequence[str], last: int = last, seen: list[int] = []) -> Any:  # noqa: B006
            seen.append(last)
            return KeyboardInterrupt() if seen.count(last) == last + 1 else value_of(words)

        with pytest.raises(KeyboardInterrupt):
            go_on(folder, Runs(value), n_jobs=n_jobs)
        assert "RUNNING" in [state for *_, state in trials(folder)]
        assert go_on(folder, Runs(), n_jobs=n_jobs) == whole


def test_dead_before_it_drew(tmp_path: Path) -> None:
    whole = go_on(tmp_path, Runs())
    (tmp_path / "stopped").mkdir()
    go_on(tmp_path / "stopped", Runs(), n_trials=5)
    reopened(tmp_path / "stopped").ask()  # the trial is there, and nothing is drawn for it
    assert go_on(tmp_path / "stopped", Runs()) == whole


def test_trials_are_counted_over_all_starts(tmp_path: Path) -> None:
    first, second, none = Runs(), Runs(), Runs()
    go_on(tmp_path, first, n_trials=3)
    go_on(tmp_path, second, n_trials=5)
    go_on(tmp_path, none, n_trials=5)
    assert (len(first.jobs), len(second.jobs), len(none.jobs)) == (3, 2, 0)
    assert len({*first.jobs, *second.jobs}) == 5


def test_a_lost_study_is_made_of_the_same_runs(tmp_path: Path) -> None:
    first, again = Runs(), Runs()
    study = go_on(tmp_path, first)
    (tmp_path / "study.db").unlink()
    assert go_on(tmp_path, again) == study
    assert first.jobs == again.jobs


def test_resume_false_forgets_the_study(tmp_path: Path) -> None:
    again = Runs()
    assert go_on(tmp_path, Runs()) == go_on(tmp_path, again, resume=False)
    assert len(again.jobs) == 8


def test_a_run_that_failed_is_told_and_the_search_goes_on(tmp_path: Path) -> None:
    errors = []

    def value(words: Sequence[str]) -> Any:
        if value_of(words) > 0.7:
            return value_of(words)
        errors.append(failing(TrainingError("NaN"), 1))
        return errors[-1]

    with pytest.raises(TrainingError) as caught:
        go_on(tmp_path, Runs(value))
    assert caught.value is errors[0]
    found = trials(tmp_path)
    assert [state for *_, state in found].count("FAIL") == len(errors) > 0
    assert all((value is None) == (state == "FAIL") for *_, value, state in found)
    assert len(found) == 8

    none = Runs()
    assert go_on(tmp_path, none) == found  # it is over: what failed counts
    assert none.jobs == []
    again = Runs()
    more = go_on(tmp_path, again, retry_failed=True)
    failed = [params for _, params, _, state in found if state == "FAIL"]
    assert [params for _, params, _, _ in more[8:]] == failed
    assert len(again.jobs) == len(errors)
    assert all(state == "COMPLETE" for *_, state in more[8:])
    assert go_on(tmp_path, none, retry_failed=True) == more
    assert none.jobs == []


@pytest.mark.parametrize(
    "error",
    [failing(ConfigError("epochs", 0, "must be 1 or more"), 2), failing(RuntimeError("stop"), 143)],
)
def test_a_mistake_or_a_stop_is_no_value(tmp_path: Path, error: Exception) -> None:
    whole = go_on(tmp_path, Runs(), n_jobs=2)
    (tmp_path / "refused").mkdir()
    seen = []

    def value(words: Sequence[str]) -> Any:
        seen.append(words)
        return error if len(seen) == 4 else value_of(words)

    with pytest.raises(type(error)):
        go_on(tmp_path / "refused", Runs(value), n_jobs=2)
    found = trials(tmp_path / "refused")
    assert [state for *_, state in found] == ["COMPLETE", "COMPLETE", "COMPLETE", "RUNNING"]
    assert len(seen) == 4
    assert go_on(tmp_path / "refused", Runs(), n_jobs=2)[:4] == whole[:4]


def test_a_run_without_validation_accuracy_ends_the_search(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="monitor not name a test domain"):
        go_on(tmp_path, Runs(lambda words: None))
    assert [state for *_, state in trials(tmp_path)] == ["RUNNING"]


def test_seeds_repeat_a_trial_and_are_not_searched(tmp_path: Path) -> None:
    runs = Runs()
    found = go_on(tmp_path, runs, GAMMA, "seed=0,1,2", "epochs=3", n_trials=2)
    assert len(runs.jobs) == 6
    assert [job[1:] for job in runs.jobs[:3]] == [(f"seed={s}", "epochs=3") for s in range(3)]
    assert len({job[0] for job in runs.jobs[:3]}) == 1
    for (_, params, value, _), job in zip(found, runs.jobs[::3], strict=True):
        assert set(params) == {"trainer.gamma"}
        assert value == pytest.approx(value_of(job[:1]) + 0.01)


def test_choices_and_whole_numbers() -> None:
    read = space("trainer=fishr,irm", "model.hidden=int(tag(log, interval(8, 64)))", "seed=1")
    choices, hidden = read.searched.values()
    assert choices.choices == ("fishr", "irm")
    assert (hidden.low, hidden.high, hidden.log) == (8, 64, True)
    assert type(hidden.low) is int
    assert (read.repeats, read.fixed) == ([()], ["seed=1"])


def test_the_command_line_goes_before_the_configuration() -> None:
    read = space("trainer.gamma=interval(1, 9)", "seed=0,1", GAMMA, "seed=5")
    assert read.searched["trainer.gamma"].high == 1e6
    assert (read.repeats, read.fixed) == ([()], ["seed=5"])


def test_nothing_to_search() -> None:
    for words in (["seed=0,1"], ["trainer.gamma=5"], []):
        with pytest.raises(ConfigError, match="nothing to search"):
            space(*words)


def test_a_range_that_has_no_logarithm() -> None:
    with pytest.raises(ConfigError, match=r"trainer.gamma=tag\(log, interval\(0, 9\)\): cannot"):
        space("trainer.gamma=tag(log, interval(0, 9))")


def test_a_study_is_named_by_what_its_values_depend_on() -> None:
    config = {"epochs": 3, "trainer": {"gamma": 1.0}, "output_dir": "a", "resume": True}
    (name, _) = space(GAMMA, "seed=0,1").names(config)
    other = {**config, "output_dir": "b", "resume": False}
    assert name == space("seed=0,1", GAMMA).names(other)[0]
    others = [
        space(GAMMA, "seed=0,1").names({**config, "epochs": 4})[0],
        space(GAMMA, "seed=0,2").names(config)[0],
        space("trainer.gamma=tag(log, interval(1, 1e5))", "seed=0,1").names(config)[0],
    ]
    assert len({name, *others}) == 4


def test_the_option_is_ours_beside_another_plugin_of_that_name() -> None:
    theirs = {"_target_": "hydra_plugins.theirs.Sweeper", "defaults": [{"sampler": "tpe"}]}
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=theirs)
    prefer_own_sweepers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", ["experiment=search_gamma"], return_hydra_config=True)
    assert config.hydra.sweeper._target_ == "hydra_plugins.fishr_exp_optuna.OptunaSweeper"
    params = OmegaConf.to_container(config.hydra.sweeper.params)
    assert params == {"trainer.gamma": "tag(log, interval(1, 1e6))", "seed": "0,1,2"}


def test_a_running_trial_of_the_study_is_not_told_twice(tmp_path: Path) -> None:
    go_on(tmp_path, Runs(), n_trials=2)
    reopened(tmp_path).ask(dict(space(GAMMA).searched))
    waiting = reopened(tmp_path).get_trials(states=(TrialState.WAITING,))
    assert [trial.number for trial in waiting] == [2]
    assert waiting[0].params == trials(tmp_path)[2][1] != {}
