"""The functions for notebooks: a run made by them is that of the command, and can be loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException

import fishr_exp
from fishr_exp import compose, draw_runs, load_model, load_records, load_runs, model_card, run
from fishr_exp.configuration.recorded import recorded_arguments
from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.facts import ModelFacts
from fishr_exp.runs.names import MODEL
from fishr_exp.runs.reading import Run, read_runs
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.training.prepare import prepare

TINY = ("tracker=none", "epochs=2", "model.hidden=8", "evaluate_train=false")
METHODS = {
    "Fishr": (),
    "a mean of weights": ("trainer=erm", "averaging=ema"),
    "SWAD": ("trainer=erm", "averaging=swad", "epochs=8"),
    "networks that predict": ("trainer=sagnet",),
    "a network beside": ("trainer=dann",),
    "a reference network": ("trainer=miro",),
    "its context": ("trainer=arm",),
    "an embedding": ("trainer=mtl",),
    "ten classes": ("dataset=rotated_digits", "test_domains=['0']"),
}


def _made(tmp_path: Path, *words: str) -> Run:
    return run(compose(*TINY, *words, f"output_dir={tmp_path}"))


@pytest.mark.parametrize("words", METHODS.values(), ids=METHODS)
def test_a_loaded_model_has_the_accuracies_of_its_run(words: tuple[str, ...], tmp_path) -> None:
    found = _made(tmp_path, *words)
    state = torch.random.get_rng_state()
    model = load_model(found.path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    prepared = prepare(recorded_arguments(found))
    domain = prepared.domains.by_name[found.test_domains[0]]
    x, y = domain.read(torch.arange(len(domain)))
    with torch.no_grad():
        # Some adapt to the minibatch that they are given, as an evaluation gives it.
        logits = torch.cat([model(part) for part in x.split(256)])
    predicted = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
    accuracy = (predicted == y).double().mean().item()
    if words[:1] not in (("trainer=arm",), ("trainer=mtl",)):
        assert accuracy == pytest.approx(found.test_accuracy[domain.name], abs=1e-12)
    facts = ModelFacts.read(found.path)
    assert facts is not None
    assert facts.input_shape == prepared.domains.input_shape
    assert facts.class_names == prepared.domains.class_names
    assert len(facts.class_names) == facts.num_classes
    (found.path / MODEL).unlink()  # as an earlier version left it
    again = load_model(found)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_images_are_not_needed(images: Path, tmp_path: Path) -> None:
    """Nor the weights that it started from."""
    words = ["dataset=image_folder", f"dataset.root={images}", "dataset.image_size=32"]
    words += ["model=resnet18", "test_domains=[art]", "batch_size=2", "epochs=1"]
    first = run(compose(*TINY[:1], *words, f"output_dir={tmp_path}"))
    start = first.path / "checkpoints" / "best.pt"
    words += [f"model.weights_file={start}", f"output_dir={tmp_path}"]
    second = run(compose(*TINY[:1], *words))
    start.unlink()
    for path in images.rglob("*.png"):
        path.unlink()
    model = load_model(second)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 2)
    facts = ModelFacts.read(second.path)
    assert facts is not None
    assert facts.class_names == ("cat", "dog")
    assert facts.normalization == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    from PIL import Image

    for domain, color in (("art", 0), ("photo", 128), ("sketch", 255)):
        for k, name in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / domain / name
            folder.mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (8, 8), (color, 40 * i, 99 * k)).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_a_card_has_what_a_user_of_the_network_asks(tmp_path: Path) -> None:
    found = _made(tmp_path, "trainer.gamma=3", "trainer.anneal_steps=1")
    card = model_card(found.path)
    accuracy = f"{100 * found.test_accuracy['minus90']:.1f}"
    for words in (
        "# Fishr on colored_digits, tested on minus90",
        "gamma 3 (seed 0) on the domains plus90, plus80",
        "[n, 2, 8, 8], values in [0, 1]. Output: one logit, [n, 1]: above 0 the class is 0 to 4",
        "| minus90 | test | 480 | 119 |",
        f"| test domain minus90 | {accuracy} |",
        "| trainer.anneal_steps | 1 |",
        "Creative Commons",
        f"fishr-exp {fishr_exp.__version__}",
    ):
        assert words in card
    assert "selected by a test domain" not in card
    assert str(tmp_path) not in card
    (found.path / MODEL).unlink()
    (found.path / "environment.json").unlink()
    assert "Input:" not in model_card(found)
    chosen = _made(tmp_path, "observer.monitor=accuracy/minus90/validation")
    assert "selected by a test domain" in model_card(chosen)


def test_a_run_is_that_of_the_command(tmp_path: Path, fishr_exp) -> None:
    words = [*TINY, "trainer.gamma=3"]
    done = fishr_exp(*words, tiny=())
    assert done.status == 0
    config = compose(*words, f"output_dir={done.folder.parent}")
    found = run(config)
    assert found.path == done.folder  # and it is not made again
    config.seed = 1
    other = run(config)
    assert other.path != found.path
    assert other.seed == 1
    assert RunFolder(other.path).config()["seed"] == 1


def test_a_run_of_a_protocol_says_how_it_stands_to_it(tmp_path: Path) -> None:
    words = ["protocol=paper_2022", "dataset=rotated_digits", "test_domains=['0']", "trainer=erm"]
    words += ["total_steps=4", "steps_per_epoch=2", "batch_size=8", "model=mlp"]
    found = run(compose("tracker=none", *words, f"output_dir={tmp_path}"))
    assert "total_steps" in found.config["protocol"]["departures"]


def test_a_frame_has_a_row_a_run_and_a_row_a_record(tmp_path: Path) -> None:
    runs = [_made(tmp_path, f"seed={seed}", "trainer.gamma=2") for seed in (0, 1)]
    frame = load_runs(tmp_path).set_index("seed")
    assert sorted(frame.index) == [0, 1]
    for each in runs:
        row = frame.loc[each.seed]
        assert row["path"] == str(each.path)
        assert row["validation_accuracy"] == each.validation_accuracy
        assert row["test_accuracy/minus90"] == each.test_accuracy["minus90"] == row["test_accuracy"]
        assert (row["trainer.gamma"], row["gamma"], row["model.hidden"]) == (2, 2.0, 8)
    records = load_records(tmp_path)
    assert sorted(zip(records["seed"], records["epoch"], strict=True)) == [
        (0, 1), (0, 2), (1, 1), (1, 2),
    ]  # fmt: skip
    last = RunFolder(runs[0].path).records()[-1]
    row = records[(records["seed"] == 0) & (records["epoch"] == 2)].iloc[0]
    assert row["validation_accuracy"] == last["validation_accuracy"]
    assert row["penalty"] == last["losses"]["penalty"]
    assert row["accuracy/minus90/validation"] == last["accuracy"]["minus90"]["validation"]
    (file,) = draw_runs(tmp_path)
    assert file.read_bytes()[:4] == b"\x89PNG"


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(HydraException, match="did you mean trainer=fish") as caught:
        compose("trainer=fisher")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=r"optimizer\.lrr"):
        run(compose(*TINY, "+optimizer.lrr=1", f"output_dir={tmp_path}"))
    with pytest.raises(ConfigError, match="pass what compose returns"):
        run({"seed": 1})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is not a run folder"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_runs(tmp_path / "none")
    with pytest.raises(ConfigError, match="no run that is done"):
        draw_runs(tmp_path)
    for seed in (0, 1):
        found = _made(tmp_path, f"seed={seed}")
        if seed == 0:
            assert load_model(tmp_path).training is False  # the only run there
    with pytest.raises(ConfigError, match="holds several runs"):
        load_model(tmp_path)
    (found.path / MODEL).write_text('{"input_shape": [3')
    with pytest.raises(ConfigError, match=MODEL):
        load_model(found)
    (found.path / "done").unlink()
    with pytest.raises(ConfigError, match="is not done"):
        load_model(found.path)
    (found.path / "checkpoints" / "best.pt").unlink()
    assert [r.seed for r in read_runs(tmp_path).done] == [0]


def test_nothing_is_allowed_that_was_not_typed(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "own_network.py").write_text(
        "from fishr_exp.models.mlp import mlp\n\n\n"
        "def own(hidden=8, **given):\n"
        "    return mlp(hidden=hidden, hidden_layers=1, single_logit=True, **given)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [*TINY[:2], "~model.hidden_layers", "~model.single_logit"]
    words += ["model.hidden=8", "model._target_=own_network.own", f"output_dir={tmp_path / 'runs'}"]
    with pytest.raises(ConfigError, match="allow_targets"):
        run(compose(*words))
    found = run(compose(*words, "allow_targets=[own_network]"))
    with pytest.raises(ConfigError, match="allow"):
        load_model(found)
    assert load_model(found, allow_targets=["own_network"]).classifier.in_features == 8


def test_the_names_are_imported_when_they_are_asked_for() -> None:
    code = "import sys, fishr_exp; assert 'run' in dir(fishr_exp); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    with pytest.raises(AttributeError, match="no_such"):
        _ = fishr_exp.no_such
