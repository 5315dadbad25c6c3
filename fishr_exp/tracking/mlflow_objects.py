"""What MLflow holds: its tables, and how a run's numbers, model and data are called there."""

from __future__ import annotations

import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fishr_exp.core.files import expanded
from fishr_exp.core.secrets import masked
from fishr_exp.runs.facts import ModelFacts
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.address import SQLITE
from fishr_exp.tracking.content import Point, origin

log = logging.getLogger(__name__)

MODEL = "model"  # its name in the run
TAG_LENGTH = 5000  # MLflow's limit of a tag, characters
_OF_MODELS = ("mlflow.user", "mlflow.source.name", "mlflow.source.type", "sweep")  # tags
_DIGEST = 36  # MLflow's limit, characters
_NAME = 500  # the same


def saved_model(
    folder: RunFolder, build: Callable[[Path], Any]
) -> tempfile.TemporaryDirectory[str] | None:
    """Save the network of a done run's result; None, and a line in the log, where that fails.

    Args:
        folder: The run folder.
        build: What builds the network from the path of the folder.

    Returns:
        A folder that holds it under the name `MODEL`, until it is deleted.
    """
    try:
        place = tempfile.TemporaryDirectory(prefix="fishr-exp-")
        facts = ModelFacts.read(folder.path)
        if facts is None:
            raise ValueError("an earlier version made the run, without model.json")
        step = folder.result_of_done()["selected"]["step"]
        save_model(build(folder.path), facts, step, Path(place.name) / MODEL)
    except Exception as error:  # noqa: BLE001 - of any network; the numbers are sent
        why = next(iter(str(error).strip().splitlines()), "")
        log.warning("no model in MLflow: %s: %s", type(error).__name__, masked(why)[:300])
        return None
    return place


def save_model(model: Any, facts: ModelFacts, step: int, path: Path) -> None:
    """Save a network as an MLflow model that needs PyTorch, and nothing of this package.

    It is a program of `torch.export`, for any number of samples. Its signature and an input
    example say what it reads; the metadata name the classes, and how values in [0, 1] are scaled.

    Args:
        model: The network, on the CPU and in evaluation mode; maps x [n, *input_shape] to logits.
        facts: What it was built for.
        step: The step of its weights.
        path: The folder to write.

    Raises:
        Exception: Of any kind, if `torch.export` cannot follow the network.
    """
    import mlflow.pytorch
    import torch
    from mlflow.models import infer_signature

    # Eighths have few digits: the text of two images of 224 x 224 takes 4 MB, and not 8.
    drawn = torch.Generator().manual_seed(0)
    x = torch.randint(0, 9, (2, *facts.input_shape), generator=drawn) / 8
    with torch.no_grad():
        logits = model(x)
    levels = {name: logging.getLogger(name).level for name in ("mlflow", "torch")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            mlflow.pytorch.save_model(
                model,
                str(path),
                serialization_format="pt2",
                signature=infer_signature(x.numpy(), logits.numpy()),
                input_example=x.numpy(),
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
                metadata={
                    "class_names": list(facts.class_names),
                    "normalization": facts.normalization,
                    "training_domains": list(facts.training_domains),
                    "step": step,
                },
            )
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def log_model(client: Any, run: Any, path: Path, step: int) -> str:
    """Send a saved model, unless the run has one; return its id.

    It is named as the run, and has the run's parameters, so that the page of models can tell.

    Args:
        client: MLflow's.
        run: The run, as the client returned it.
        path: What `save_model` wrote.
        step: The step of its weights.
    """
    from mlflow.entities import LoggedModelOutput

    there = run.outputs.model_outputs if run.outputs else []
    if there:
        return str(there[-1].model_id)
    name = re.sub(r"[/:.%\"']", "_", run.info.run_name or MODEL)
    tags = {k: v for k, v in run.data.tags.items() if k in _OF_MODELS}
    tags["mlflow.note.content"] = (
        f"The network at step {step}: samples, scaled as `metadata` in the file `MLmodel` says, to "
        "logits. `mlflow.pyfunc.load_model('models:/MODEL_ID')` needs MLflow and PyTorch."
    )
    made = client.create_logged_model(
        run.info.experiment_id, name, run.info.run_id, tags, dict(run.data.params)
    )
    try:
        client.log_model_artifacts(made.model_id, str(path))
    except BaseException:
        client.finalize_logged_model(made.model_id, "FAILED")
        raise
    client.finalize_logged_model(made.model_id, "READY")
    client.log_outputs(run.info.run_id, [LoggedModelOutput(made.model_id, step)])
    return str(made.model_id)


def log_domains(client: Any, run_id: str, folder: RunFolder, dataset: str) -> None:
    """Send of each domain the number of samples and its digest, unless the run has them.

    Args:
        client: MLflow's.
        run_id: The run.
        folder: The run folder, which has the digests.
        dataset: What the dataset is called.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    domains, config = folder.data(), folder.config()
    inputs = client.get_run(run_id).inputs
    if not domains or (inputs and inputs.dataset_inputs):
        return
    tested = {str(name) for name in config.get("test_domains", ())}
    sent = []
    for name, said in domains.items():
        samples, _, digest = said.partition(" ")
        of_data = Dataset(
            name=f"{dataset}/{name}"[:_NAME],
            digest=(digest or samples)[:_DIGEST],
            source_type="local",
            source=json.dumps(_source(config.get("dataset") or {}, dataset)),
            profile=json.dumps({"num_rows": int(samples)}),
        )
        context = InputTag("mlflow.data.context", "testing" if name in tested else "training")
        sent.append(DatasetInput(of_data, [context]))
    client.log_inputs(run_id, sent)


def _source(settings: Mapping[str, Any], dataset: str) -> dict[str, str]:
    root = settings.get("root")
    return {"dataset": dataset, **({"uri": str(expanded(str(root)))} if root else {})}


class Tables:
    """The tables of the installed MLflow; `artifacts`: the place of its default experiment."""

    def __init__(self, artifacts: str) -> None:
        self._artifacts = artifacts

    def head(self) -> str | None:
        return self._revisions().get_current_head()

    def knows(self, revision: str) -> bool:
        return any(script.revision == revision for script in self._revisions().walk_revisions())

    def make(self, file: Path) -> None:
        self._store(file).engine.dispose()

    close = make  # both open the file, unless it is open

    def _revisions(self) -> Any:
        import mlflow
        from alembic.script import ScriptDirectory

        return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))

    def _store(self, file: Path) -> Any:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        return SqlAlchemyStore(f"{SQLITE}{file}", self._artifacts)


def tags_of_origin(folder: Path) -> dict[str, str]:
    """Return MLflow's own tags of who and what made a run, wherever it is sent from.

    MLflow's pages show only the part of a source's name after its last slash, so the command, with
    its paths, is the run's description.
    """
    user, command, commit = origin(folder)
    found = {
        "mlflow.user": user,
        "mlflow.note.content": f"`{command}`" if command else "",
        "mlflow.source.name": command.partition(" ")[0],
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
    }
    return {name: value[:TAG_LENGTH] for name, value in found.items() if value}


def milliseconds(seconds: float) -> int:
    """Return a time as MLflow writes it."""
    return int(1000 * seconds)


def valid_name(name: str) -> str:
    """Replace what MLflow's names must not hold."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def metrics_of(point: Point, model: str | None = None) -> list[Any]:
    """Return the numbers of a point as MLflow's metrics; `model`: the id of a model they are of."""
    from mlflow.entities import Metric

    written = milliseconds(point.time)
    return [
        Metric(valid_name(name), value, written, point.step, model_id=model)
        for name, value in point.numbers.items()
    ]
