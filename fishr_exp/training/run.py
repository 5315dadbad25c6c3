"""One run, read top to bottom: prepare, fit, evaluate, record."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fishr_exp.core import distributed
from fishr_exp.core.contracts import printed_name
from fishr_exp.core.errors import ConfigError, SharedStepsMade, TrainingError
from fishr_exp.runs.identity import settings
from fishr_exp.runs.records import PARTS, Evaluation, Outline, Result, Scores, Selected
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.runs.shared import Shared
from fishr_exp.training.arguments import Arguments, Mirror
from fishr_exp.training.built import as_mirror
from fishr_exp.training.changes import changes_since
from fishr_exp.training.checkpoint import Checkpoints, Interval
from fishr_exp.training.early_stopping import Verdict
from fishr_exp.training.evaluation import Counts
from fishr_exp.training.loop import fit
from fishr_exp.training.prepare import prepare
from fishr_exp.training.prepared import Prepared
from fishr_exp.training.profiling import profiling
from fishr_exp.training.resuming import device_name, start_or_continue
from fishr_exp.training.signals import InterruptedEvaluationError, Signals
from fishr_exp.training.trunk import Trunk, find_trunk, trunks

log = logging.getLogger(__name__)

T = TypeVar("T")


def run(arguments: Arguments, folder: Path) -> tuple[dict[str, Any], bool]:
    """Train a method on the training domains and evaluate it on all.

    Within `distributed.process_group`, the processes do so together, and only the first writes.

    Args:
        arguments: What is asked for.
        folder: The run folder. A done run found there is returned as it is, and a stopped one is
            continued, unless `arguments.resume` is false.

    Returns:
        The result, and whether this call made it: False for a run that was found done.

    Raises:
        ConfigError: If what was asked for cannot be; nothing was trained.
        TrainingError: If the run could not continue, or failed before; what it had written stays.
        Stopped: If a signal asked for it, after a checkpoint.
        SharedStepsMade: If `arguments.share_steps` is `only`, and there is nothing left to share.
    """
    run_folder = RunFolder(folder)
    if (earlier := _result_of_earlier(run_folder, arguments)) is not None:
        return earlier, False
    prepared = prepare(arguments)
    steps, device = prepared.total_steps, device_name(prepared.device)
    log.info("%d step%s on %s", steps, "s" * (steps != 1), device)
    training = prepared.training
    signals = Signals()
    with run_folder:
        distributed.from_first(run_folder.acquire)
        # Another process may have trained the run while this one prepared it.
        if (earlier := _result_of_earlier(run_folder, arguments)) is not None:
            return earlier, False
        mirror = None
        if arguments.tracker and distributed.is_first():
            mirror = as_mirror(arguments.tracker(run_folder))
        checkpoints = Checkpoints(run_folder.checkpoints, settings(arguments.config))
        trunk = start_or_continue(
            prepared, run_folder, checkpoints, lambda: _trunk(prepared, run_folder)
        )
        only_shared = arguments.share_steps == "only"
        if only_shared and (trunk is None or trunk.is_there):
            raise SharedStepsMade
        journal = _Journal(prepared, run_folder, checkpoints, mirror, trunk)
        with (
            _failure_recorded(run_folder, journal, prepared.outline),
            distributed.failing_together(),
            signals,
            profiling(arguments.profile_steps, run_folder.path, prepared.device) as note,
        ):
            training.after_step = note

            def evaluate() -> tuple[Scores, dict[str, float | None] | None]:
                diagnostics = prepared.diagnose()
                evaluated = prepared.averaged(signals)
                counted = prepared.count(evaluated, prepared.evaluated, signals)
                return prepared.scores(counted), diagnostics

            fit(
                training,
                prepared.loaders(),
                evaluate,
                journal.record,
                journal.save,
                Interval(arguments.checkpoint_every, trunk.step if trunk else None),
                signals,
                total_steps=prepared.total_steps,
                steps_per_epoch=prepared.steps_per_epoch,
                title=folder.name,
            )
            model, step = training.averaging.averaged(training.model), training.step
            if training.averaging.selects:
                model, step = _repeated(signals, lambda: prepared.selected(signals))
            if training.observer.keep == "last":
                if distributed.is_first():
                    checkpoints.save_best({"step": step, "model": model.state_dict()})
            else:
                best = distributed.from_first(
                    lambda: checkpoints.best(training.observer.best_step, model.state_dict())
                )
                model.load_state_dict(best["model"])
                step = best["step"]
            log.info("evaluating all domains at step %d", step)
            counted = _repeated(signals, lambda: prepared.count(model, PARTS, signals))
            result = _result(prepared, counted, step, journal)
            if not distributed.is_first():
                return result.to_json(), True
            run_folder.finish(result.to_json())
            checkpoints.tidy()
        anneal_steps, gamma = training.trainer.anneal_steps, training.trainer.gamma
        if step <= anneal_steps < training.step and gamma != 0:
            log.warning(
                "at the selected step %d gamma had not acted yet: trainer.anneal_steps=%d",
                step,
                anneal_steps,
            )
        log.info("%s", _line(result))
        journal.end("FINISHED")  # it may have to wait
        log.info("%s", folder)
    return result.to_json(), True


class _Journal:
    """Writes down what happens in a run: records, checkpoints, the tracker's share."""

    def __init__(
        self,
        prepared: Prepared,
        run_folder: RunFolder,
        checkpoints: Checkpoints,
        mirror: Mirror | None,
        trunk: Trunk | None,
    ) -> None:
        self._prepared = prepared
        self._trunk = trunk
        self.training = prepared.training
        self.run_folder = run_folder
        self.checkpoints = checkpoints
        self._mirror = mirror
        self._mirrored = False
        earlier = run_folder.records()
        self.shared = Shared.read(run_folder.path) if distributed.is_first() else None
        self._started = time.perf_counter()
        self._seconds_before = (
            earlier[-1].get("seconds", 0.0) if earlier else 0.0
        ) + self.training.seconds
        self._best_step = self.training.observer.best_step

    @property
    def seconds(self) -> float:
        """What the run took so far, with steps that it took over, its pauses left out."""
        return self._seconds_before + time.perf_counter() - self._started

    def record(self, evaluation: Evaluation, verdict: Verdict) -> None:
        """Write an evaluation, and the weights where they are the best so far."""
        if not distributed.is_first():
            return
        if self._prepared.arguments.show_test_accuracy:
            found = self._prepared.test_accuracy(evaluation.scores)
            shown = "  ".join(f"test {name} {100 * value:5.1f} %" for name, value in found.items())
            log.info("step %d  %s", evaluation.step, shown)
        evaluation = replace(evaluation, seconds=self.seconds, time=time.time())
        self.run_folder.append(evaluation.to_json())
        if verdict.improved and not self.training.averaging.selects:
            best = self.training.averaging.averaged(self.training.model)
            state = {"step": self.training.step, "model": best.state_dict()}
            self.checkpoints.save_best(state, self._best_step)
            self._best_step = self.training.step

    def save(self) -> None:
        """Write a checkpoint; every process calls it."""
        state, trunk = self.training.state_dict(), self._trunk
        # The evaluation at that step is each run's own.
        shares = trunk is not None and state["step"] == trunk.step and state["logged"]
        if trunk and shares and not trunk.is_there:
            trunk.write(state, self._prepared.data, self.run_folder)
        if distributed.is_first():
            self.checkpoints.save(state)
        if trunk and state["step"] >= trunk.step:
            trunk.release(self.run_folder.path.name)
            self._trunk = None
        if mirror := self._begun():
            mirror.sync()
        if shares and self._prepared.arguments.share_steps == "only":
            raise SharedStepsMade

    def end(self, status: str) -> None:
        """Let the mirror end; status is of MLflow's words."""
        if mirror := self._begun():
            mirror.finish(status)

    def _begun(self) -> Mirror | None:
        """Return the mirror, which begins late: of a mistake at the first step it sees nothing."""
        if self._mirror and not self._mirrored:
            self._mirrored = True
            self._mirror.start(self._prepared.arguments.config, self._prepared.arguments.labels)
        return self._mirror


def _trunk(prepared: Prepared, run_folder: RunFolder) -> Trunk | None:
    """Return the steps that a sweep wants the run to share."""
    arguments = prepared.arguments
    if not (arguments.share_steps and arguments.resume) or distributed.is_active():
        return None
    return find_trunk(
        lambda: trunks(
            run_folder.path.parent,
            prepared.training.trainer,
            settings(arguments.config),
            diagnostics=arguments.diagnostics,
        ),
        run_folder.path,
    )


def _result_of_earlier(run_folder: RunFolder, arguments: Arguments) -> dict[str, Any] | None:
    """Return the result of a run that is done; None if there is something to do.

    Raises:
        TrainingError: If the run failed before, and is not to be tried again.
    """
    state = distributed.from_first(lambda: run_folder.state) if arguments.resume else "planned"
    if state == "done":
        return distributed.from_first(lambda: _done(run_folder, arguments))
    if state == "failed" and not arguments.retry_failed:
        raise TrainingError(
            f"this run failed before ({_error(run_folder)}); pass retry_failed=true to resume from "
            f"its last checkpoint in {run_folder.path}"
        )
    return None


def _done(run_folder: RunFolder, arguments: Arguments) -> dict[str, Any] | None:
    """Return the result of a run that is done, and bring its mirror up to date."""
    with run_folder:
        run_folder.open(arguments.config)  # refuses other settings
        result = run_folder.result()
        if result is not None:
            log.info("%s", _line(Result.from_json(result)))
            log.info("done already: %s (resume=false runs it again)", run_folder.path)
            if arguments.tracker:
                mirror = as_mirror(arguments.tracker(run_folder))
                mirror.catch_up(arguments.config, arguments.labels)
            if changed := changes_since(result.get("data"), arguments):
                log.warning("the data have changed since this run: %s", changed)
        return result


def _error(run_folder: RunFolder) -> str:
    """Return why a run failed."""
    error = str((run_folder.result() or {}).get("error", ""))
    return error.removeprefix("TrainingError: ").partition("; records and")[0]


def _repeated(signals: Signals, evaluate: Callable[[], T]) -> T:
    """Evaluate after the last checkpoint, where a signal finds nothing to save."""
    while True:
        try:
            return evaluate()
        except InterruptedEvaluationError:
            signals.handle(signals.pending)


def _result(
    prepared: Prepared, counted: Mapping[str, Mapping[str, Counts]], step: int, journal: _Journal
) -> Result:
    """Put together what the run came to, with the checkpoint of `step`."""
    observer, outline = prepared.training.observer, prepared.outline
    averaging, is_best = prepared.training.averaging, observer.keep == "best"
    monitor = observer.monitor if is_best else "last step"
    records = journal.run_folder.records() if distributed.is_first() else []
    evaluated = Evaluation.from_json(records[-1]) if records else None
    last = evaluated.scores.by_domain["accuracy"] if evaluated else {}
    logged = evaluated.losses if evaluated else ()
    # Methods with several weights have no gamma, and log each penalty by its name.
    several = outline.gamma is None and any(name.startswith("penalty") for name in logged)
    has_penalty = bool(outline.gamma) or several
    return Result(
        outline=outline,
        selected=Selected(
            step=step,
            epoch=-(-step // prepared.steps_per_epoch),
            monitor=printed_name(averaging) if averaging.selects else monitor,
            uses_test_domain=is_best and observer.watches(outline.test_domains),
            penalty_had_acted=has_penalty and step > prepared.training.trainer.anneal_steps,
            only_choice=averaging.selects,
        ),
        scores=prepared.scores(counted),
        test=prepared.test_scores(counted),
        counts={n: {p: len(parts[p]) for p in PARTS} for n, parts in prepared.parts.items()},
        skipped=prepared.domains.skipped,
        data=prepared.data,
        last={"step": prepared.training.step, "accuracy": last},
        seconds=journal.seconds - (journal.shared.seconds if journal.shared else 0.0),
        shared=journal.shared,
    )


@contextlib.contextmanager
def _failure_recorded(run_folder: RunFolder, journal: _Journal, outline: Outline) -> Iterator[None]:
    """Mark a run that fails as failed, in its folder and in the mirror; its records stay."""
    try:
        yield
    except BaseException as error:
        # See training/signals.py.
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | SharedStepsMade)
        refused = isinstance(error, ConfigError) and not (
            any(run_folder.checkpoints.glob("*.pt")) or run_folder.records()
        )
        if distributed.is_first() and not stopped and not refused:
            with contextlib.suppress(OSError):  # a full disk may be why the run failed
                run_folder.fail(f"{type(error).__name__}: {error}", outline.to_json())
        if not refused:
            journal.end("KILLED" if stopped else "FAILED")
        if distributed.is_first() and refused:  # met at the first step: nothing was begun
            run_folder.clear()
        if isinstance(error, TrainingError | OSError):
            raise TrainingError(
                f"{error}; records and checkpoints are in {run_folder.path}"
            ) from error
        raise


def _line(result: Result) -> str:
    """The result as a line for people."""
    shown = [f"test {name} {100 * (a or 0):.1f} %" for name, a in result.test["accuracy"].items()]
    for part in reversed(PARTS):
        mean = result.scores.mean("accuracy", part)
        if mean is not None:
            shown.append(f"{part} {100 * mean:.1f} %")
    selected = result.selected
    return f"{', '.join(shown)} at step {selected.step} (selected by {selected.monitor})"
