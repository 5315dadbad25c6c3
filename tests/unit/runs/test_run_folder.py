from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.files import to_json, write_atomically
from fishr_exp.runs.identity import flatten, settings
from fishr_exp.runs.run_folder import RunFolder

CONFIG = {
    "trainer": {"_target_": "fishr", "gamma": 10.0},
    "dataset": {"seed": 0},
    "seed": 0,
    "epochs": 3,
    "test_domains": ["minus90"],
    "output_dir": "a",
    "sweep_name": "monday",
}


@pytest.fixture
def folder(tmp_path):
    with RunFolder(tmp_path / "runs" / "one") as folder:
        folder.open(CONFIG)
        yield folder


def test_settings_leave_out_what_does_not_matter_to_the_result():
    config = {**CONFIG, "tracker": {"uri": "x"}, "dataset": {"download": True, "root": "r"}}
    assert settings(config) == {
        "trainer._target_": "fishr",
        "trainer.gamma": 10.0,
        "dataset.root": "r",
        "seed": 0,
        "epochs": 3,
        "test_domains": ["minus90"],
    }
    assert flatten({"a": {"b": {"c": 1}, "d": {}}}) == {"a.b.c": 1, "a.d": {}}


def test_a_run_goes_from_new_to_done(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.state == "planned"
    folder.open(CONFIG)
    assert folder.state == "running"
    folder.write_environment({"torch": "2"})
    folder.append({"step": 1})
    folder.finish({"seed": 0})
    assert folder.state == "done"
    assert json.loads((folder.path / "config.json").read_text()) == CONFIG
    assert json.loads((folder.path / "environment.json").read_text()) == {"torch": "2"}
    assert json.loads((folder.path / "result.json").read_text()) == {"seed": 0, "status": "done"}
    folder.close()


def test_a_result_without_the_marker_is_not_done(folder):
    folder.finish({})
    (folder.path / "done").unlink()
    assert folder.state == "running"


def test_a_failed_run_keeps_its_records_and_can_go_on(folder):
    folder.append({"step": 1})
    folder.fail("loss is NaN at step 2", {"seed": 0})
    assert folder.state == "failed"
    result = json.loads((folder.path / "result.json").read_text())
    assert result == {"status": "failed", "error": "loss is NaN at step 2", "seed": 0}
    folder.open(CONFIG)
    assert folder.state == "running"
    assert folder.records() == [{"step": 1}]


def test_other_settings_are_named_up_to_three(folder):
    folder.close()
    other = {
        **CONFIG,
        "trainer": {"_target_": "fishr", "gamma": 1.0},
        "epochs": None,
        "batch_size": 8,
    }
    with pytest.raises(ConfigError) as error:
        RunFolder(folder.path).open({**other, "seed": 7})
    text = str(error.value)
    assert "trainer.gamma (10 there, 1 here)" in text
    assert "seed (0 there, 7 here)" in text
    assert "epochs (3 there, null here)" in text
    assert "batch_size" not in text
    assert "and 1 more" in text
    with pytest.raises(ConfigError, match=r"batch_size \(absent there, 8 here\)"):
        RunFolder(folder.path).open({**CONFIG, "batch_size": 8})
    assert json.loads((folder.path / "config.json").read_text()) == CONFIG


def test_bookkeeping_may_differ(folder):
    folder.open({**CONFIG, "output_dir": "b", "sweep_name": "tuesday", "resume": True})
    folder.open({**CONFIG, "epochs": 3.0, "test_domains": ("minus90",)})


def test_a_cut_off_last_line_is_left_out_and_not_joined(folder):
    folder.append({"step": 1})
    with (folder.path / "records.jsonl").open("a") as file:
        file.write('{"step": 2, "los')
    assert folder.records() == [{"step": 1}]
    folder.open(CONFIG)
    folder.append({"step": 2})
    assert folder.records() == [{"step": 1}, {"step": 2}]


def test_a_whole_last_line_without_its_end_is_kept(folder):
    (folder.path / "records.jsonl").write_text('{"step": 1}\n{"step": 2}')
    folder.open(CONFIG)
    folder.append({"step": 3})
    assert [record["step"] for record in folder.records()] == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_named(folder):
    (folder.path / "records.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl is damaged: line 2"):
        folder.records()


def test_keep_until_drops_later_records(folder):
    for step in (10, 20, 30):
        folder.append({"step": step})
    folder.keep_until(20)
    folder.append({"step": 25})
    assert [record["step"] for record in folder.records()] == [10, 20, 25]


def test_numbers_that_json_does_not_know(folder):
    folder.append({"step": 1, "losses": {"risk": math.nan, "penalty": -math.inf, "x": math.inf}})
    line = (folder.path / "records.jsonl").read_text()
    assert "NaN" in json.loads(line, parse_constant=pytest.fail)["losses"]["risk"]
    losses = folder.records()[0]["losses"]
    assert math.isnan(float(losses["risk"]))
    assert float(losses["penalty"]) == -math.inf
    assert float(losses["x"]) == math.inf
    assert to_json({"é": 1.5}) == '{"é": 1.5}'


def test_clear_removes_our_files_only(folder):
    folder.append({"step": 1})
    folder.checkpoints.mkdir()
    (folder.checkpoints / "best.pt").touch()
    (folder.checkpoints / "mine.txt").touch()
    (folder.path / ".result.json.7.tmp").touch()
    (folder.path / "notes.txt").touch()
    folder.finish({})
    folder.clear()
    assert folder.state == "planned"
    left = {p.name for p in folder.path.rglob("*")} - {".lock"}
    assert left == {"notes.txt", "checkpoints", "mine.txt"}
    folder.open({**CONFIG, "epochs": 9})  # other settings are fine now
    assert folder.records() == []


def test_clear_of_a_folder_that_is_not_there_makes_none(tmp_path):
    RunFolder(tmp_path / "run").clear()
    assert not (tmp_path / "run").exists()


def test_a_second_process_is_turned_away(folder):
    code = (
        "import sys; from fishr_exp.runs.run_folder import RunFolder\n"
        "from fishr_exp.core.errors import ConfigError\n"
        "for act in ('open', 'clear'):\n"
        "    try: getattr(RunFolder(sys.argv[1]), act)(*[{}] * (act == 'open'))\n"
        "    except ConfigError as error: print(error)\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.count("another process is running in this folder") == 2
    assert folder.state == "running"
    folder.close()
    RunFolder(folder.path).open(CONFIG)  # free again


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_folder_that_cannot_be_written(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output_dir=.*cannot be written"):
        RunFolder(tmp_path / name).open(CONFIG)


def test_an_unreadable_config_is_named(folder):
    folder.write_environment({"versions": {"fishr-exp": "0.1"}})
    (folder.path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        folder.open(CONFIG)
    folder.clear()
    folder.open(CONFIG)


def test_write_atomically_keeps_the_old_content_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomically(path, "old")
    write_atomically(path, b"new")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "newer")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
