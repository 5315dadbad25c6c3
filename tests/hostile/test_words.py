"""Wrong words: every key with every kind of wrong value, and the words of the other commands.

A word is refused in one line that leaves nothing behind, or it means something and the run is made.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fishr_exp.cli import data, diagnostics, evaluate, plan, sync, table
from fishr_exp.configuration.options import conf_dir
from fishr_exp.runs.identity import flatten
from tests.e2e.conftest import Command

VALUES = {
    "nothing": "", "null": "null", "negative": "-1", "no number": "nan", "too large": "1e400",
    "list": "[1,[2]]", "empty list": "[]", "mapping": "{a:{b:1}}", "two words": "a b",
    "two lines": "'x\ny'", "a terminal's": "'\x1b[31m'", "long": "x" * 300,
    "interpolation": "${nowhere}", "missing": "???", "formula": "'=cmd'", "upward": "../..",
}  # fmt: skip
# Of these, any word is a name.
NAMES = ("sweep_name", "output_dir")


def keys() -> list[str]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", ["tracker=none", "averaging=ema"])
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return [key for key in flatten(plain) if key not in NAMES]


# Every key meets every third kind of value, and its neighbors the others.
WORDS = [
    (key, kind)
    for number, key in enumerate(keys())
    for position, kind in enumerate(VALUES)
    if (number + position) % 3 == 0
]


@pytest.mark.slow
@pytest.mark.parametrize(("key", "kind"), WORDS)
def test_a_word(
    key: str, kind: str, fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = fishr_exp("averaging=ema", f"{key}={VALUES[kind]}")
    assert "Traceback" not in outcome.err
    assert "\x1b" not in outcome.err
    if outcome.status == 0:
        assert outcome.result()["status"] == "done"
    elif outcome.status == 1:  # it began, and could not go on
        assert "is not finite" in outcome.err or "out of memory" in outcome.err
    else:
        assert outcome.status == 2
        (line,) = outcome.err.splitlines()
        assert line.startswith("fishr-exp: ")
        assert len(line) < 1500
        assert not list(tmp_path.iterdir())


WHOLE = [
    "''", "=", "=1", "~", "+", "seed", "seed=", "seed==1", "'seed=1 2'", "seed=1,", "seed=,1",
    "-m seed=", "-m seed=,", "-m seed=range(", "-m seed=range(0,3,0)", "-m seed=choice()",
    "~seed", "~trainer", "~nosuch", "+seed=1", "++nosuch=1", "seed@x=1", "trainer@x=fishr",
    "trainer=", "trainer=../trainer/fishr", "trainer=/etc/passwd", "trainer=fishr.yaml",
    "trainer=[fishr,erm]", "trainer={a:1}", "experiment=../config", "dataset=null",
    "hydra.run.dir=", "hydra.run.dir=/dev/null/x", "output_dir=/dev/null/x", "output_dir=null",
    "output_dir=", "-m output_dir=/dev/null/x seed=0,1",
    "-m hydra.sweep.dir= seed=0,1", "hydra/launcher=nosuch", "hydra/sweeper=nosuch -m",
    "hydra.nosuch=1", "--config-dir ''", "--config-dir nowhere", "--config-name nowhere",
    "--config-name ''", "--nosuch", "--config-dir", "-x", "--cfg nosuch", "device=cuda:99",
    "device=meta", "device=", "num_workers=1000000", "num_workers=-1", "seed=1e30",
    "total_steps=1e15 epochs=null", "epochs=0", "batch_size=0", "batch_size=1000000000000",
    "holdout_fraction=-0.1", "holdout_fraction=1", "checkpoint_every=-1", "checkpoint_every=0",
    "checkpoint_every=1x", "checkpoint_every=nan", "precision=fp8", "test_domains=[1e9]",
    "test_domains={}", "loss.class_weights=[0,0]", "loss.class_weights=[nan,1]",
    "loss.class_weights=[-1,2]", "loss.class_weights=[1]", "loss.label_smoothing=2",
    "model.hidden=0", "model.hidden=-3", "trainer.gamma=-1", "trainer.gamma=inf",
    "trainer.anneal_steps=-1", "trainer.memory_limit=0", "trainer.memory_limit=inf",
    "trainer.scope=nosuch", "observer.monitor=nosuch", "observer.patience=-1",
    "optimizer.lr=-1", "optimizer.lr=abc", "allow_targets=3", "allow_targets={a:1}",
    "dataset.domains=[]", "protocol=nosuch", "search=nosuch", "tracker=nosuch",
    "dataset=image_folder dataset.root=/dev/null test_domains=[a]",
    "dataset=image_folder dataset.root='' test_domains=[a]",
    "dataset=image_folder dataset.root=~nobody/x test_domains=[a]",
    "dataset=path_lists dataset.lists={} test_domains=[a]",
    "dataset=path_lists dataset.lists=[a] test_domains=[a]",
    "dataset=path_lists dataset.lists={a:/dev/null,b:/dev/zero} test_domains=[a]",
    "model.weights_file=x", "averaging.decay=1", "averaging=ema averaging.decay=2",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("words", WHOLE)
def test_whole_words(
    words: str, fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = fishr_exp(*shlex.split(words), tiny=("model.hidden=8",) * ("model" not in words))
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("fishr-exp: ")
    assert not list(tmp_path.iterdir())


COMMANDS: dict[str, tuple[Callable[..., int | None], list[str]]] = {
    "table": (table.main, [
        "", "''", "nowhere", "/dev/null", ". --out ''", ". --out /dev/null/x", ". --nosuch",
        ". --format nosuch", ". --where x", ". --where =", ". --rows", ". --rename x",
        ". --protocol nosuch", "~nobody", ".",
    ]),
    "plan": (plan.main, [
        "=1", "''", "seed=", "device=meta", "output_dir=/dev/null/x", "output_dir=",
        "output_dir=null", "hydra.sweep.dir=", "trainer=nosuch", "--config-dir nowhere",
        "--nosuch", "hydra/sweeper=optuna", "seed=1,", "~seed", "num_workers=1000000",
        "trainer._target_=os.system", "dataset=pacs",
    ]),
    "data": (data.main, [
        "", "nosuch", "check", "check pacs", "check pacs ''", "check '' x", "check nosuch x",
        "check pacs nowhere", "check pacs /dev/null", "check mnist x", "prepare pacs nowhere",
        "check pacs . dataset.nosuch=1", "check pacs . dataset.max_pixels=-1", "download",
        "download nosuch x", "download pacs ''",
    ]),
    "sync": (sync.main, [
        "", "''", "nowhere", "/dev/null", ". --tracking-uri ''",
        ". --tracking-uri sqlite://", ". --nosuch",
    ]),
    "evaluate": (evaluate.main, [
        "", "''", "nowhere", "/dev/null", ".", "--nosuch", "seed=1", "dataset=pacs", ". --out ''",
        ". --predictions x", ". --format nosuch", "~nobody", "=", ". dataset",
    ]),
    "diagnostics": (diagnostics.main, ["", "''", "nowhere", "/dev/null", ".", "--nosuch"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "words"), [(name, words) for name, (_, all_) in COMMANDS.items() for words in all_]
)
def test_words_of_other_commands(
    command: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [command, *shlex.split(words)])
    status: object = None
    with contextlib.suppress(SystemExit):
        status = COMMANDS[command][0](shlex.split(words))
        raise SystemExit(status)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_there_are_enough() -> None:
    others = sum(len(words) for _, words in COMMANDS.values())
    assert len(WORDS) + len(WHOLE) + others >= 300
