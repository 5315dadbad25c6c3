"""`fishr-average`: the weights of several runs, averaged, evaluated, and written like a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fishr_exp import load_model
from fishr_exp.cli import average, table

from .conftest import Command, newest_state, stop_before

TINY = ("model.hidden=8", "epochs=null", "total_steps=8", "steps_per_epoch=4", "tracker=none",
        "optimizer.lr=0.01")  # fmt: skip


def made(fishr_exp: Command, *words: str, tiny: tuple[str, ...] = TINY) -> Path:
    outcome = fishr_exp("trainer=erm", *words, tiny=tiny)
    assert outcome.status == 0, outcome.err
    return outcome.folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/best.pt", weights_only=True)["model"]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def averages(folder: Path) -> list[Path]:
    return sorted(folder.glob("average-*"))


@pytest.fixture
def three(fishr_exp: Command) -> list[Path]:
    """Runs of one start that differ in the learning rate."""
    return [made(fishr_exp, f"optimizer.lr={lr}") for lr in ("0.01", "0.02", "0.03")]


def test_the_uniform_average_by_hand(
    three: list[Path], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = three[0].parent
    assert average.main([*map(str, three)]) == 0
    out = capsys.readouterr().out
    (folder,) = averages(runs)
    assert out.splitlines()[-1] == str(folder)
    states = [weights(run) for run in three]
    for name, value in weights(folder).items():
        expected = torch.stack([state[name] for state in states]).double().mean(0)
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-7)
        assert value.dtype == torch.float32
    written = result(folder)
    assert written["method"] == "ERM (uniform average of 3)"
    assert written["selected"]["only_choice"]
    assert written["selected"]["monitor"] == "uniform average"
    assert [member["run"] for member in written["averaged"]] == [str(run) for run in three]
    assert all(len(member["weights"]) == 16 and member["kept"] for member in written["averaged"])
    # Not made twice, in whatever order and form the runs are given.
    from fishr_exp.training import soup

    monkeypatch.delattr(soup, "_prepare_all")
    assert average.main([str(runs)]) == 0
    assert average.main([str(runs), *map(str, reversed(three))]) == 0
    assert averages(runs) == [folder]
    assert capsys.readouterr().out.splitlines() == 2 * out.splitlines()


def test_it_is_evaluated_like_a_run(fishr_exp: Command) -> None:
    """The average of two copies of a run is that run."""
    run = made(fishr_exp)
    copy = shutil.copytree(run, run.parent / "copy")
    assert average.main([str(run), str(copy), "--out", str(run.parent / "elsewhere")]) == 0
    (folder,) = averages(run.parent / "elsewhere")
    one, other = result(run), result(folder)
    for key in ("accuracy", "loss", "test_accuracy", "test_loss", "validation_accuracy", "counts",
                "data", "training_domains", "test_domains", "seed", "labels"):  # fmt: skip
        assert one[key] == other[key], key


def test_the_restricted_average_by_hand(
    three: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In the order of their own accuracies; the mean with the second is worse, that without not."""
    from fishr_exp.training import soup

    for run, accuracy in zip(three, (0.5, 0.7, 0.6), strict=True):
        written = {**result(run), "validation_accuracy": accuracy}
        (run / "result.json").write_text(json.dumps(written))
    means, accuracies = [], iter([0.7, 0.65, 0.7])
    real = soup.Prepared.count

    def count(self, model, parts, signals):  # type: ignore[no-untyped-def]
        means.append(model.classifier.weight.detach().clone())
        return real(self, model, parts, signals)

    scores = soup.Prepared.scores

    def scored(self, counted):  # type: ignore[no-untyped-def]
        found = scores(self, counted)
        if (accuracy := next(accuracies, None)) is not None:
            found.means["validation_accuracy"] = accuracy  # type: ignore[index]
        return found

    monkeypatch.setattr(soup.Prepared, "count", count)
    monkeypatch.setattr(soup.Prepared, "scores", scored)
    assert average.main([*map(str, three), "--how", "restricted"]) == 0
    a, b, c = (weights(run)["classifier.weight"] for run in three)
    for mean, expected in zip(means, (b, (b + c) / 2, (b + a) / 2, (b + a) / 2), strict=True):
        torch.testing.assert_close(mean, expected, rtol=0, atol=1e-7)
    (folder,) = averages(three[0].parent)
    assert [member["kept"] for member in result(folder)["averaged"]] == [True, True, False]
    assert result(folder)["method"] == "ERM (restricted average of 3)"


def test_tables_have_a_row_of_it(three: list[Path], capsys: pytest.CaptureFixture) -> None:
    runs = three[0].parent
    assert average.main([str(runs)]) == 0
    accuracy = 100 * result(averages(runs)[0])["test_accuracy"]["minus90"]
    capsys.readouterr()
    assert table.main([str(runs)]) == 0
    text = capsys.readouterr().out
    (row,) = [line for line in text.splitlines() if "uniform average of 3" in line]
    assert f"{accuracy:.1f}" in row
    assert "average_of" not in text
    for run in three[1:]:
        shutil.rmtree(run)
    assert table.main([str(runs), "--protocol", "domainbed"]) == 0
    text = capsys.readouterr().out
    assert "ERM (uniform average of 3)" in text
    assert "ERM (uniform average of 3): a run's result is a mean of weights" in text


def test_runs_of_several_methods_and_gammas(fishr_exp: Command, capsys) -> None:  # type: ignore[no-untyped-def]
    runs = [made(fishr_exp), made(fishr_exp, "trainer=fishr", "trainer.gamma=10"),
            made(fishr_exp, "trainer=fishr", "trainer.gamma=0")]  # fmt: skip
    assert average.main([*map(str, runs)]) == 0
    (folder,) = averages(runs[0].parent)
    written = result(folder)
    assert written["method"] == "ERM + Fishr (uniform average of 3)"
    assert written["gamma"] is None
    assert written["labels"]["trainer"] == "erm + fishr"
    config = json.loads((folder / "config.json").read_text())
    assert config["average_of"] == {"how": "uniform", "runs": 3}
    assert "gamma" not in config["trainer"]
    assert config["optimizer"]["lr"] == 0.01


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["test_domains=[plus80]"], 'has test_domains ["plus80"], and'),
        (["dataset.label_noise=0.1"], "has dataset.label_noise 0.1, and"),
        (["model.hidden=9"], "has model.hidden 9, and"),
        (["holdout_fraction=0.3"], "splits plus90 differently from"),
    ],
)  # fmt: skip
def test_runs_that_do_not_go_together(
    words: list[str], said: str, fishr_exp: Command, capsys: pytest.CaptureFixture
) -> None:
    one, other = made(fishr_exp), made(fishr_exp, *words)
    assert average.main([str(one), str(other)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fishr-average: RUN={other}: ")
    assert said.replace('"', "'") in err
    assert err.count("\n") == 1
    assert not [path for path in averages(one.parent) if (path / "config.json").exists()]


def test_what_is_no_run_or_not_done(
    fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:  # type: ignore[no-untyped-def]
    one = made(fishr_exp)
    assert average.main([str(one)]) == 2
    assert "is the only run; pass at least two" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert average.main([str(tmp_path / "empty")]) == 2
    assert "is not a run folder, and holds none" in capsys.readouterr().err
    assert average.main([str(tmp_path / "absent")]) == 2
    assert "cannot be read (No such file or directory)" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        stop_before(5, patch)
        assert fishr_exp("trainer=erm", "optimizer.lr=0.02", tiny=TINY).status == 130
    assert average.main([str(one.parent)]) == 2
    assert "is not done; finish it with the command that started it" in capsys.readouterr().err
    assert fishr_exp("trainer=erm", "optimizer.lr=0.02", tiny=TINY).status == 0
    (one / "checkpoints/best.pt").unlink()
    newest_state(one).unlink()
    assert average.main([str(one.parent)]) == 2
    assert "has no weights of step" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["none", "sma"])
def test_the_weights_as_trained_do_not_stand_for_averaged_ones(
    scheme: str, fishr_exp: Command, capsys: pytest.CaptureFixture
) -> None:
    """Where best.pt is gone: the state has the weights of the last step, not their average."""
    words = ("observer=last_step", f"averaging={scheme}")
    start = () if scheme == "none" else ("averaging.start=1",)
    runs = [made(fishr_exp, *words, *start, f"optimizer.lr={lr}") for lr in (0.01, 0.02)]
    (runs[0] / "checkpoints/best.pt").unlink()
    status = average.main([*map(str, runs)])
    assert status == (0 if scheme == "none" else 2)
    if status:
        assert f"RUN={runs[0]}: has no weights of step 8" in capsys.readouterr().err


@pytest.mark.parametrize("written", ["save_best", "finish"])
def test_an_average_that_was_stopped_while_it_was_written_is_made_again(
    written: str, three: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from fishr_exp.training import soup

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        owner = soup.Checkpoints if written == "save_best" else soup.RunFolder
        patch.setattr(owner, written, stop)
        assert average.main([str(three[0].parent)]) == 130
    (folder,) = averages(three[0].parent)
    assert (folder / "config.json").exists()
    assert not (folder / "done").exists()
    assert average.main([str(three[0].parent)]) == 0, capsys.readouterr().err
    assert averages(three[0].parent) == [folder]
    assert len(result(folder)["averaged"]) == 3


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"not a file of tensors", 1, "is not a readable checkpoint"),
        ([1, 2], 2, "has no weights of step"),
        ({"step": 10**6}, 2, "has no weights of step"),
        ({"step": None}, 2, "does not hold the weights of this network"),
        ({"step": None, "model": [1]}, 2, "does not hold the weights of this network"),
        ({"step": None, "model": {"a": 1}}, 2, "does not hold the weights of this network"),
    ],
    ids=str,
)
def test_damaged_weights(content, status, said, three, capsys) -> None:  # type: ignore[no-untyped-def]
    if isinstance(content, dict) and content["step"] is None:
        content = {**content, "step": result(three[1])["selected"]["step"]}
    path = three[1] / "checkpoints/best.pt"
    newest_state(three[1]).unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert average.main([*map(str, three)]) == status
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("fishr-average: ")
    assert err.count("\n") == 1


def test_a_configuration_from_somebody_else_builds_nothing(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = three[1] / "config.json"
    config = json.loads(path.read_text())
    for key, value in (("_target_", "os.system"), ("command", f"touch {tmp_path / 'harm'}")):
        config["optimizer"] = {**config["optimizer"], key: value}
    path.write_text(json.dumps({**config, "allow_targets": ["os"]}))
    assert average.main([*map(str, three)]) == 2
    err = capsys.readouterr().err
    assert "its optimizer._target_=os.system: " in err
    assert err.count("\n") == 1
    assert not (tmp_path / "harm").exists()


def test_from_a_linear_probe_to_the_average(
    fishr_exp: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The start has the head; runs of another start are refused, and a lost start is warned of."""
    probe = fishr_exp("experiment=linear_probe", tiny=TINY)
    assert probe.status == 0, probe.err
    random_start = made(fishr_exp)
    start = tmp_path / "start.pt"
    shutil.copy(probe.folder / "checkpoints/best.pt", start)
    shared = f"model.weights_file={start}"
    runs = [made(fishr_exp, shared, f"optimizer.lr={lr}") for lr in (0.02, 0.03)]
    from_start = made(fishr_exp, shared, "optimizer.lr=0")  # does not move
    for name, value in weights(from_start).items():
        assert torch.equal(value, weights(probe.folder)[name])
    assert average.main([*map(str, runs), str(random_start)]) == 2
    err = capsys.readouterr().err
    assert f"RUN={random_start}: started from other weights than {runs[0]}; give all runs" in err
    assert average.main([*map(str, runs), "--out", str(tmp_path / "known")]) == 0
    assert "not known" not in caplog.text
    start.unlink()
    assert average.main([*map(str, runs), "--out", str(tmp_path / "lost")]) == 0
    assert caplog.text.count("it is not known whether all runs have the same start: ") == 1
    one, other = (averages(tmp_path / name)[0] for name in ("known", "lost"))
    assert one.name == other.name
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name])


def test_batch_norm_statistics_are_recomputed_where_they_are_not_frozen(
    fishr_exp: Command, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fishr_exp.training import soup

    monkeypatch.setattr(soup, "BATCH_NORM_STEPS", 2)
    words = ("dataset=image_folder", f"dataset.root={images}", "test_domains=[sketch]",
             "dataset.image_size=32", "model=resnet18", "batch_size=2", "tracker=none",
             "epochs=null", "total_steps=2", "steps_per_epoch=1")  # fmt: skip
    runs = [made(fishr_exp, *words, f"optimizer.lr={lr}", tiny=()) for lr in (0.001, 0.01)]
    assert average.main([*map(str, runs)]) == 0
    state, (a, b) = weights(averages(runs[0].parent)[0]), map(weights, runs)
    torch.testing.assert_close(
        state["classifier.weight"], (a["classifier.weight"] + b["classifier.weight"]) / 2
    )
    name = "featurizer.body.layer4.1.bn2.running_mean"
    assert not torch.allclose(state[name], (a[name] + b[name]) / 2)
    assert state["featurizer.body.bn1.num_batches_tracked"] == 2


def test_runs_with_other_minibatches_give_a_network_that_can_be_loaded(
    fishr_exp: Command, tmp_path: Path
) -> None:
    words = ("trainer=erm", "sampling=with_replacement")
    folders = [fishr_exp(*words, f"batch_size={size}").folder for size in (4, 8)]
    assert average.main([*map(str, folders), "--out", str(tmp_path / "mean")]) == 0
    (made,) = (tmp_path / "mean").iterdir()
    first, mean = load_model(folders[0]), load_model(made)
    assert (made / "model.json").read_text() == (folders[0] / "model.json").read_text()
    assert not torch.equal(first.classifier.weight, mean.classifier.weight)
    second = load_model(folders[1])
    both = (first.classifier.weight + second.classifier.weight) / 2
    torch.testing.assert_close(mean.classifier.weight, both)
