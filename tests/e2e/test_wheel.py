"""The wheel, installed outside the clone, finds its configuration in itself."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT


def run(*words: str | Path, folder: Path) -> str:
    """Run a command that knows nothing of the clone; return what it prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HYDRA"))}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env={**clean, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    run(*build, folder, folder=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_data_file_and_module(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    places = {"conf": "fishr_exp/conf", "fishr_exp": "fishr_exp", "hydra_plugins": "hydra_plugins"}
    for folder, prefix in ((ROOT / name, prefix) for name, prefix in places.items()):
        for path in [*folder.rglob("*.yaml"), *folder.rglob("*.json"), *folder.rglob("*.py")]:
            assert f"{prefix}/{path.relative_to(folder)}" in held
    assert not any(name.startswith(("tests/", "conf/", "outputs/")) for name in held)


def test_the_installed_wheel_runs_elsewhere(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    # The wheel itself is installed; what it depends on is lent by this environment, from which
    # a path file takes the packages but not the path files, one of which names the clone.
    inside = {"base": str(home), "platbase": str(home)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=inside))
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        "--ignore-installed", "--disable-pip-version-check", wheel, folder=tmp_path)  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run(python, "-c", "import fishr_exp; print(fishr_exp.__file__)", folder=elsewhere)
    assert Path(where.strip()) == site / "fishr_exp" / "__init__.py"
    command = home / "bin" / "fishr-exp"
    assert "_target_: fishr_exp.trainers.fishr.Fishr" in run(command, "--cfg", "job",
                                                            folder=elsewhere)  # fmt: skip
    said = run(command, "epochs=1", "steps_per_epoch=1", "tracker=none", folder=elsewhere)
    (done,) = (elsewhere / "outputs" / "runs").glob("*/done")
    assert str(done.parent) in said
    assert "Fishr" in run(home / "bin" / "fishr-table", "outputs/runs", folder=elsewhere)
