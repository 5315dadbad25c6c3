"""`fishr-eval`: a run's network in every domain, of its own data or of others."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishr_exp.cli import average, evaluate
from fishr_exp.runs.names import EVALUATIONS, OF_EVALUATIONS

from .conftest import Command, stop_before

SHORT = ("model.hidden=8", "epochs=1", "steps_per_epoch=4", "tracker=none", "optimizer.lr=0.01")
METHODS = {
    "erm": (),
    "averaged": ("averaging=ema", "averaging.decay=0.5"),
    "swad": ("averaging=swad", "epochs=3"),
    "mtl": (),
    "sagnet": (),
    "dann": (),
    "bf16": ("precision=bf16", "holdout_fraction=0.3"),
    "few": ("limit_samples=50", "batch_size=16"),
}


def files(folder: Path) -> dict[str, str]:
    """What is in a run folder, without its evaluations."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and EVALUATIONS not in path.parts
    }


def written(folder: Path, name: str = "colored_digits") -> dict:
    return json.loads((folder / EVALUATIONS / name / "evaluation.json").read_text())


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture
def run(fishr_exp: Command) -> Path:
    outcome = fishr_exp("trainer=erm", tiny=SHORT)
    assert outcome.status == 0, outcome.err
    return outcome.folder


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("averaged", "sagnet", "few") else ())
        for name in METHODS
    ],
)
def test_figures_are_those_of_the_result(
    name: str, fishr_exp: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = name if name in ("erm", "mtl", "sagnet", "dann") else "erm"
    outcome = fishr_exp(f"trainer={trainer}", *METHODS[name], tiny=SHORT)
    assert outcome.status == 0, outcome.err
    folder = outcome.folder
    before = files(folder)
    assert evaluate.main([str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "Test accuracies are those in result.json." in out
    assert err == ""
    assert files(folder) == before
    recorded, found = result(folder), written(folder)
    assert found["step"] == recorded["selected"]["step"]
    for of in found["domains"]:
        for metric in ("accuracy", "loss"):
            there = (
                recorded[f"test_{metric}"][of["domain"]]
                if of["part"] == "all"
                else recorded[metric][of["domain"]][of["part"]]
            )
            assert of["metrics"][metric] == pytest.approx(there, rel=1e-12)
        counts = recorded["counts"][of["domain"]]
        assert of["samples"] == counts.get(of["part"], sum(counts.values()))
    assert [(of["domain"], of["part"]) for of in found["domains"]] == [
        *((name, part) for name in ("plus90", "plus80") for part in ("train", "validation")),
        ("minus90", "all"),
    ]


def test_an_average_of_runs_and_a_run_of_an_earlier_version(
    fishr_exp: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        fishr_exp(
            f"trainer={trainer}", f"optimizer.lr={lr}", f"batch_size={size}", tiny=SHORT[:-1]
        ).folder
        for lr, trainer, size in ((0.01, "erm", 32), (0.02, "coral", 64))
    ]
    assert average.main([*map(str, runs), "--how", "uniform"]) == 0
    mean = Path(capsys.readouterr().out.splitlines()[-1])
    config = json.loads((runs[0] / "config.json").read_text())
    for key in ("metrics", "averaging", "share_steps", "precision", "channels_last", "compile"):
        del config[key]
    (runs[0] / "config.json").write_text(json.dumps(config))
    (runs[0] / "model.json").unlink()
    assert evaluate.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.count("Test accuracies are those in result.json.") == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        mean.name, *(run.name for run in runs),
    }  # fmt: skip
    assert not (runs[0] / EVALUATIONS).exists()


def test_what_is_written(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = tmp_path / "new" / "predictions.csv"
    assert evaluate.main([str(run), "--predictions", str(predictions)]) == 0
    out = capsys.readouterr().out
    folder = run / EVALUATIONS / "colored_digits"
    assert out.startswith("ERM, step 4, on colored_digits\n")
    for name in ("evaluation", "classes", "confusion", "calibration"):
        assert (folder / f"{name}.csv").exists()
    for name in ("confusion", "reliability"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    each = lines(predictions)
    assert list(each[0]) == [
        "run", "domain", "part", "sample", "label", "predicted", "p_5 to 9", "p_0 to 4",
    ]  # fmt: skip
    assert len({(row["domain"], row["sample"]) for row in each}) == len(each) == 3 * 599
    for row in each:
        likely = "5 to 9" if float(row["p_5 to 9"]) > 0.5 else "0 to 4"
        assert float(row["p_5 to 9"]) == 0.5 or row["predicted"] == likely
    tested = [row for row in each if row["domain"] == "minus90"]
    right = sum(row["label"] == row["predicted"] for row in tested)
    assert right / len(tested) == result(run)["test_accuracy"]["minus90"]
    cells = Counter((row["label"], row["predicted"]) for row in tested)
    confusion = [row for row in lines(folder / "confusion.csv") if row["domain"] == "minus90"]
    for row in confusion:
        for name in ("5 to 9", "0 to 4"):
            assert int(row[f"predicted {name}"]) == cells[row["label"], name]
    bins = [row for row in lines(folder / "calibration.csv") if row["domain"] == "minus90"]
    assert sum(int(row["n"]) for row in bins) == 599
    evaluation = {row["domain"]: row for row in lines(folder / "evaluation.csv")}
    gaps = [
        int(row["n"]) * abs(float(row["accuracy"]) - float(row["confidence"]))
        for row in bins
        if row["accuracy"]
    ]
    assert float(evaluation["minus90"]["ece"]) == pytest.approx(100 * sum(gaps) / 599, abs=1e-3)


def test_a_run_from_scratch_has_no_evaluation_of_the_network_before(
    run: Path, fishr_exp: Command
) -> None:
    assert evaluate.main([str(run), "dataset=colored_digits", "dataset.label_noise=0.1"]) == 0
    assert evaluate.main([str(run)]) == 0
    (own, other) = sorted((run / EVALUATIONS).iterdir())
    assert all(OF_EVALUATIONS.fullmatch(file.name) for file in [*own.iterdir(), *other.iterdir()])
    (other / "notes.txt").write_text("mine")
    assert fishr_exp("trainer=erm", "resume=false", tiny=SHORT).status == 0
    assert [path.name for path in (run / EVALUATIONS).rglob("*")] == [other.name, "notes.txt"]


def test_predictions_as_parquet_and_only_some_domains(run: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "predictions.parquet"
    assert evaluate.main([str(run), "--domains", "minus90", "--predictions", str(file)]) == 0
    table = parquet.read_table(file)
    assert table.num_rows == 599
    assert set(table["domain"].to_pylist()) == {"minus90"}
    total = np.array(table["p_5 to 9"]) + np.array(table["p_0 to 4"])
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert [of["domain"] for of in written(run)["domains"]] == ["minus90"]


# --- other data -----------------------------------------------------------------------------


def draw_images(root: Path, domains: str, classes: str, numbers: range) -> None:
    """Images of one gray per class, which a domain changes a little."""
    shades = {"ant": 20, "cat": 120, "dog": 230, "cow": 75}
    for i, domain in enumerate(domains.split()):
        for name in classes.split():
            (root / domain / name).mkdir(parents=True)
            for number in numbers:
                pixels = np.full((8, 8, 3), shades[name] + 3 * i + number % 4, np.uint8)
                Image.fromarray(pixels).save(root / domain / name / f"{number}.png")


IMAGES = ("dataset=image_folder", "dataset.image_size=8", "model=mlp", "model.hidden=32",
          "batch_size=8", "epochs=20", "steps_per_epoch=5", "tracker=none")  # fmt: skip


@pytest.fixture
def trained(fishr_exp: Command, tmp_path: Path) -> Path:
    draw_images(tmp_path / "own", "a b c", "ant cat dog", range(12))
    words = ("trainer=erm", f"dataset.root={tmp_path / 'own'}", "test_domains=[c]")
    outcome = fishr_exp(*words, "optimizer.lr=0.01", tiny=IMAGES)
    assert outcome.status == 0, outcome.err
    assert outcome.result()["test_accuracy"]["c"] > 0.9
    return outcome.folder


def test_classes_of_other_data_are_matched_by_name(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_images(tmp_path / "other", "x y", "cat dog", range(5))
    words = ["dataset=image_folder", f"dataset.root={tmp_path / 'other'}"]
    file = tmp_path / "predictions.csv"
    assert evaluate.main([str(trained), *words, "--predictions", str(file)]) == 0
    out = capsys.readouterr().out
    assert "Classes that are not in these data: ant." in out
    (folder,) = (trained / EVALUATIONS).iterdir()
    assert folder.name.startswith("image_folder-")
    found = written(trained, folder.name)
    assert found["classes"] == ["ant", "cat", "dog"]
    assert [(of["domain"], of["part"], of["samples"]) for of in found["domains"]] == [
        ("x", "all", 10), ("y", "all", 10),
    ]  # fmt: skip
    assert all(of["confusion"][0] == [0, 0, 0] for of in found["domains"])
    assert all(of["metrics"]["accuracy"] > 0.9 for of in found["domains"])
    rows = lines(file)
    assert rows[0]["sample"] == str(tmp_path / "other/x/cat/0.png")
    assert all(f"/{row['label']}/" in row["sample"] for row in rows)


def test_own_data_elsewhere_are_own(trained: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "own", tmp_path / "moved")
    assert evaluate.main([str(trained), f"dataset.root={tmp_path / 'moved'}"]) == 0
    found = written(trained, "image_folder")
    assert found["own"]
    assert found["notes"] == ["Test accuracies are those in result.json."]


def test_other_data_that_do_not_fit_are_one_line(
    trained: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_images(tmp_path / "other", "x y", "cat cow", range(3))
    root = f"dataset.root={tmp_path / 'other'}"
    cases = {
        "has classes that": [str(trained), "dataset=image_folder", root],
        "dataset=rotated_digits: has 10 classes, and ": [str(run), "dataset=rotated_digits"],
        "dataset.root=???: must be given; add dataset.root=DIR": [str(run), "dataset=image_folder"],
        "dataset=nothing: ": [str(run), "dataset=nothing"],
        "dataset.nothing=1: no such key": [str(run), "+dataset.nothing=1"],
        "does not fit samples of 3x16x16": [str(trained), "dataset.image_size=16"],
        "does not exist": [str(run), "dataset=pacs", f"dataset.root={tmp_path / 'none'}"],
    }
    for says, words in cases.items():
        assert evaluate.main(words) == 2, words
        out, err = capsys.readouterr()
        assert says in err, (words, err)
        assert len(err.splitlines()) == 1
        assert out == ""
    assert not (run / EVALUATIONS).exists()


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["RUN", "trainer=fishr"], "trainer=fishr: a run keeps what it was trained with"),
        (["RUN", "seed=1"], "choose from dataset, dataset.KEY, device, precision"),
        (["RUN", "precision=fp8"], "precision=fp8: choose from fp32, bf16"),
        (["RUN", "device=tpu"], "device=tpu: is not a device of this machine"),
        (["RUN", "evaluation_batch_size=0"], "evaluation_batch_size=0: must be 1 or more"),
        (["RUN", "num_workers=-1"], "num_workers=-1: must be 0 or more"),
        (["RUN", "dataset=pacs,vlcs"], "dataset=pacs,vlcs: must be a single value"),
        (["RUN", "dataset=null"], "dataset=null: must be the name of an option"),
        (["RUN", "dataset={}"], "dataset={}: must be the name of an option"),
        (["RUN", "dataset=mnist"], "dataset=mnist: no such option; choose from camelyon17"),
        (["RUN", "dataset._target_=os.system"], "is not what an option of dataset builds"),
        (["RUN", "~seed=0"], "seed=0: a run keeps what it was trained with"),
        (["RUN", "--domains", "gray"], "--domains=gray: colored_digits has no domain gray; choose"),
        (["RUN", "--predictions", "a.json"], "--predictions=a.json: must end in .csv or .parquet"),
        (["NONE"], "cannot be read (No such file or directory)"),
        (["EMPTY"], "is not a run folder, and holds none; pass one"),
        (["device=cpu"], "RUN=: is missing; pass a run folder"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(run), "NONE": str(tmp_path / "none"), "EMPTY": str(tmp_path / "empty")}
    before = files(run)
    assert evaluate.main([places.get(word, word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert files(run) == before


def test_a_run_that_is_not_done_is_one_line(
    fishr_exp: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        folder = fishr_exp("trainer=erm", tiny=SHORT).folder
    assert evaluate.main([str(folder)]) == 2
    assert "is not done; finish it with the command that started it" in capsys.readouterr().err


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("value", [None, [], {}, -1, "x"])
@pytest.mark.parametrize(
    "key", ["dataset", "model", "loss", "precision", "seed", "holdout_fraction"]
)
def test_a_damaged_setting_is_one_line(
    key: str, value: object, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, key: value}))
    assert evaluate.main([str(run)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("checkpoints/best.pt", "best.pt is not a readable checkpoint"),
        ("config.json", "config.json cannot be read"),
        ("result.json", "result.json cannot be read"),
        ("records.jsonl", "records.jsonl"),
        ("model.json", "model.json cannot be read"),
    ],
)
def test_a_damaged_run_is_one_line_and_the_others_are_evaluated(
    name: str, says: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _truncate(run / name)
    status = evaluate.main([str(run)])
    err = capsys.readouterr().err
    assert status in (1, 2)
    assert says in err
    assert len(err.splitlines()) == 1


def test_of_several_runs_the_others_are_evaluated(
    fishr_exp: Command, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = fishr_exp("trainer=erm", "seed=1", tiny=SHORT).folder
    shutil.rmtree(run / "checkpoints")
    assert evaluate.main([str(run), str(other)]) == 2
    out, err = capsys.readouterr()
    assert "has no weights of step 4, which its result is of, in checkpoints" in err
    assert len(err.splitlines()) == 1
    assert out.startswith("ERM, step 4, on colored_digits\n")
    assert (other / EVALUATIONS / "colored_digits/evaluation.json").exists()


def test_a_run_without_weights_needs_no_data_to_say_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(trained / "checkpoints")
    shutil.rmtree(tmp_path / "own")
    assert evaluate.main([str(trained)]) == 2
    assert "has no weights of step" in capsys.readouterr().err


def test_weights_of_another_network_are_one_line(
    fishr_exp: Command, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = fishr_exp("trainer=erm", "model.hidden=9", tiny=SHORT[1:]).folder
    shutil.copy(other / "checkpoints/best.pt", run / "checkpoints/best.pt")
    assert evaluate.main([str(run)]) == 2
    err = capsys.readouterr().err
    assert "best.pt does not hold the weights of its network" in err
    assert len(err.splitlines()) == 1


def test_runs_of_one_name_have_files_and_lines_of_their_own(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "runs" / run.name
    shutil.copytree(run, other)
    words = [str(run), str(other), "--out", str(tmp_path / "out"), "--domains", "minus90"]
    assert evaluate.main([*words, "--predictions", str(tmp_path / "all.csv")]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [run.name, f"{run.name}-2"]
    assert {line["run"] for line in lines(tmp_path / "all.csv")} == set(names)


def test_a_seed_of_the_data_that_is_0_counts(fishr_exp: Command, tmp_path: Path) -> None:
    words = ["protocol=paper_2022", "dataset=rotated_digits", "test_domains=['0']", "trainer=erm"]
    words += ["model=mlp", "protocol.trial_seed=0", "total_steps=2", "epochs=null"]
    made = fishr_exp(*words, "steps_per_epoch=2", "batch_size=8").folder
    assert json.loads((made / "config.json").read_text())["dataset"]["seed"] == 0
    assert evaluate.main([str(made), "dataset=rotated_digits"]) == 0
    assert written(made, "rotated_digits")["own"]
