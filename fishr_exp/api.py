"""What a notebook needs: compose a configuration, run it, read runs, load a trained network.

from fishr_exp import compose, load_model, load_runs, run

result = run(compose("trainer=fishr", "trainer.gamma=100", "epochs=5"))
runs = load_runs("outputs/runs")
model = load_model(result.path)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from fishr_exp.cli.given_runs import read_done
from fishr_exp.configuration.binding import check_output_dir
from fishr_exp.configuration.command_line import quoted
from fishr_exp.configuration.composing import without_hydra
from fishr_exp.configuration.messages import before_the_run, one_line
from fishr_exp.configuration.options import search_path
from fishr_exp.configuration.permissions import ALLOW_TARGETS, permissions_of
from fishr_exp.configuration.recorded import recorded_arguments
from fishr_exp.configuration.starting import application, checked_arguments
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.download.sources import terms_of
from fishr_exp.reports.card import model_card as write_card
from fishr_exp.reports.output import draw_all
from fishr_exp.reports.tables.table import build_tables
from fishr_exp.runs.facts import ModelFacts
from fishr_exp.runs.frames import records_frame, runs_frame
from fishr_exp.runs.reading import Run, Runs, read_runs
from fishr_exp.runs.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas

    from fishr_exp.core.contracts import Model

__all__ = [
    "compose", "draw_runs", "load_model", "load_records", "load_runs", "model_card", "run",
]  # fmt: skip


def compose(*words: str, config_dir: str | os.PathLike[str] | None = None) -> DictConfig:
    """Compose the configuration of a run, as `fishr-exp` does from the words of a command line.

    Args:
        words: Overrides: `trainer=fishr`, `trainer.gamma=100`, `experiment=NAME`, ...
        config_dir: A folder with options of your own, as `--config-dir`.

    Returns:
        The configuration. Its values may be changed before it is passed to `run`; the name of the
        run's folder follows.

    Raises:
        ConfigError: If a word has no key, or the folder is not there.
        hydra.errors.HydraException: If there is no such option or key.
    """
    more = search_path(None if config_dir is None else os.fspath(config_dir))
    with permissions_of(words), application(), _in_one_line():
        return hydra.compose("config", [*quoted(words), *more], return_hydra_config=True)


def run(config: DictConfig) -> Run:
    """Make the run of a configuration, in its own folder under `output_dir`.

    As with the command, a run that is done is not trained again, and one that was stopped resumes.

    Args:
        config: What `compose` returned.

    Returns:
        The run, with its folder (`path`) and accuracies, as `fishr-table` reads it.

    Raises:
        ConfigError: If what was asked for cannot be; nothing was trained.
        TrainingError: If the run could not continue; what it has written stays.
    """
    from fishr_exp.training.run import run as make

    if "hydra" not in config:
        reason = "was not made by fishr_exp.compose"
        raise ConfigError("config", type(config).__name__, reason, "pass what compose returns")
    with permissions_of(names=config.get(ALLOW_TARGETS) or ()):
        with application():
            arguments = checked_arguments(without_hydra(config), config.hydra)
        folder = Path(check_output_dir(config.hydra.run.dir, "hydra.run.dir"))
        make(arguments, folder)
    return _only(folder)


def load_runs(folder: str | os.PathLike[str]) -> pandas.DataFrame:
    """Read all runs under a folder that are done: a row for each.

    Returns:
        Columns: `path`, `name`, `dataset`, `model`, `method`, `gamma`, `seed`, `test_domains`,
        `step` (of the checkpoint), `monitor` (what selected it), `seconds` (its own),
        `train_accuracy`, `validation_accuracy`, `test_accuracy` (means over domains),
        `test_accuracy/DOMAIN`; and every setting by its key, `optimizer.lr`. Accuracies are
        fractions.

    Raises:
        ConfigError: If the folder cannot be read.
    """
    return runs_frame(_read(folder).done)


def load_records(folder: str | os.PathLike[str]) -> pandas.DataFrame:
    """Read all evaluations of the runs under a folder that are done: a row for each.

    Returns:
        Columns: `path`, `name`, `method`, `gamma`, `seed`, `test_domains`, and what the records
        hold: `step`, `epoch`, `seconds`, losses such as `risk` and `penalty`, `METRIC/DOMAIN/PART`,
        the means over the training domains, `validation_accuracy`, and `diagnostics/NAME`.

    Raises:
        ConfigError: If the folder or a record cannot be read.
    """
    return records_frame(_read(folder).done)


def draw_runs(
    folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Draw the figures of `fishr-table`, accuracy over gamma, for the runs under a folder.

    Args:
        folder: That holds the runs.
        out: Where the figures are written; by default `table` in the folder.

    Returns:
        The PNG files, one for each dataset and choice of test domains; `IPython.display.Image`
        shows one.

    Raises:
        ConfigError: If the folder cannot be read, or holds no run that is done.
    """
    runs = _read(folder)
    if not runs.done:
        raise ConfigError("folder", folder, "it contains no run that is done")
    target = Path(folder) / "table" if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    files = draw_all(build_tables(runs.done), target, str, False)
    return [file for file in files if file.suffix == ".png"]


def load_model(run: Run | str | os.PathLike[str], allow_targets: str | Sequence[str] = ()) -> Model:
    """Build the network of a run that is done, with the weights of its result.

    The data of the run are not needed; `model.json` beside the weights says what the network reads.

    Args:
        run: The run, or its folder.
        allow_targets: Packages, modules or classes of your own that its configuration may name;
            one may be given as a text.

    Returns:
        On the CPU, in evaluation mode; maps x [n, *input_shape] to logits [n, C], or [n, 1] for two
        classes. `model.featurizer` gives features, `model.classifier` is linear.

    Raises:
        ConfigError: If it is not such a run, or its weights are not there.
    """
    from fishr_exp.training.trained import trained_model

    found = run if isinstance(run, Run) else _only(Path(run))
    with permissions_of(names=allow_targets):
        return trained_model(found, recorded_arguments(found))


def model_card(run: Run | str | os.PathLike[str]) -> str:
    """Write the model card of a run that is done.

    Args:
        run: The run, or its folder.

    Returns:
        Markdown: what the network reads and returns, data and their terms of use as far as they
        are known, accuracies, settings, versions.

    Raises:
        ConfigError: If it is not such a run.
    """
    found = run if isinstance(run, Run) else _only(Path(run))
    folder = RunFolder(found.path)
    return write_card(
        found,
        ModelFacts.read(found.path),
        folder.environment(),
        folder.result_of_done().get("counts") or {},
        terms_of(found.dataset),
    )


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """Say what is wrong with the words as the command does, and not in Hydra's fifty lines."""
    try:
        yield
    except HydraException as error:
        raise HydraException(one_line(error) or before_the_run(error)) from None


def _read(folder: str | os.PathLike[str]) -> Runs:
    try:
        return read_runs(Path(folder))
    except OSError as error:
        raise ConfigError("folder", folder, f"cannot be read ({error.strerror})") from error


def _only(folder: Path) -> Run:
    """Return the run that a folder is, or the only one in it."""
    found = read_done([folder], averages=True)
    if len(found) > 1:
        raise ConfigError("RUN", folder, "holds several runs", "pass one of them")
    return found[0]
