"""MLflow has the domains, and if asked for the network, which loads without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from fishr_exp import load_model
from fishr_exp.tracking import mlflow as module
from fishr_exp.tracking import mlflow_objects

from .conftest import Command, Outcome

TINY = ("model.hidden=8", "epochs=2", "steps_per_epoch=2")

# Another environment: this package cannot be imported there.
ELSEWHERE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fishr_exp", "hydra", "omegaconf"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
import mlflow, numpy as np

model = mlflow.pyfunc.load_model(sys.argv[1])
x = np.load(sys.argv[2])
found = [model.predict(x[:n]).tolist() for n in (1, 2, len(x))]
print(json.dumps([found, model.metadata.metadata, str(model.metadata.signature)]))
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def run_of(uri: str) -> Any:
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("fishr-exp").experiment_id])
    return run


def models(run: Any) -> list[tuple[str, int]]:
    return [(output.model_id, output.step) for output in run.outputs.model_outputs]


@pytest.fixture
def tracked(fishr_exp: Command, uri: str) -> Any:
    def call(*words: str) -> Outcome:
        outcome = fishr_exp(tiny=(*TINY, f"tracker.tracking_uri={uri}", *words))
        assert outcome.status == 0
        return outcome

    return call


def test_the_network_loads_where_this_package_is_not(
    tracked: Any, uri: str, tmp_path: Path
) -> None:
    outcome = tracked("tracker.log_model=true")
    run = run_of(uri)
    ((model_id, step),) = models(run)
    assert step == outcome.result()["selected"]["step"]
    x = np.random.default_rng(0).random((300, 2, 8, 8), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE, f"models:/{model_id}", "x.npy"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env={"MLFLOW_TRACKING_URI": uri, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, metadata, signature = json.loads(done.stdout.splitlines()[-1])
    with torch.no_grad():
        expected = load_model(outcome.folder)(torch.from_numpy(x)).numpy()
    for logits in found:
        np.testing.assert_allclose(np.array(logits), expected[: len(logits)], atol=1e-6)
    assert [len(logits) for logits in found] == [1, 2, 300]
    assert metadata["class_names"] == ["5 to 9", "0 to 4"]
    assert metadata["step"] == step
    assert "(-1, 2, 8, 8)" in signature

    logged = MlflowClient(uri).get_logged_model(model_id)
    assert logged.status.value == "READY"
    assert logged.name == outcome.folder.name.replace(".", "_")
    assert logged.params["trainer.gamma"] == "1.0"
    of_model = {metric.key: metric.value for metric in logged.metrics}
    assert of_model["test_accuracy/minus90"] == outcome.result()["test_accuracy"]["minus90"]
    assert of_model["test_accuracy/minus90"] == run.data.metrics["test_accuracy/minus90"]


def test_a_done_run_gets_its_network_later_and_once(tracked: Any, uri: str) -> None:
    tracked()
    assert models(run_of(uri)) == []
    for _ in range(2):
        assert "done already" in tracked("tracker.log_model=true").err
        assert len(models(run_of(uri))) == 1


def test_a_network_that_cannot_be_exported_costs_one_line(
    tracked: Any, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("cannot be followed\nand a long trace")

    monkeypatch.setattr(mlflow_objects, "save_model", refuse)
    outcome = tracked("tracker.log_model=true")
    assert outcome.err.count("no model in MLflow: RuntimeError: cannot be followed") == 1
    assert "long trace" not in outcome.err
    run = run_of(uri)
    assert (run.info.status, models(run)) == ("FINISHED", [])
    assert "test_accuracy/minus90" in run.data.metrics


def test_domains_are_inputs_with_their_digests(tracked: Any, uri: str) -> None:
    outcome = tracked()
    found = {
        given.dataset.name: (
            given.dataset.digest,
            json.loads(given.dataset.profile)["num_rows"],
            given.tags[0].value,
        )
        for given in run_of(uri).inputs.dataset_inputs
    }
    data = json.loads((outcome.folder / "data.json").read_text())
    assert len(data) == 3
    for domain, said in data.items():
        samples, digest = said.split()
        context = "testing" if domain == "minus90" else "training"
        assert found[f"colored_digits/{domain}"] == (digest, int(samples), context)
    assert len(found) == 3


def test_without_psutil_one_line_says_what_to_install(
    fishr_exp: Command, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    words = (f"tracker.tracking_uri={uri}", "tracker.system_metrics=true")
    outcome = fishr_exp(tiny=(*TINY, *words))
    assert outcome.status == 2
    assert outcome.err.splitlines() == [
        "fishr-exp: tracker.system_metrics=True: needs the package psutil; pip install psutil"
    ]
