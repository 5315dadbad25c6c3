"""What a run ran on: versions, git commit, machine, command line."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fishr_exp

_PACKAGES = (
    "torch", "torchvision", "timm", "hydra-core", "omegaconf", "backpack-for-pytorch", "numpy",
    "numba", "pillow",
)  # fmt: skip


def environment(
    device: str,
    threads: int,
    ranks: int = 1,
    tags: Sequence[str] = (),
    packages: Sequence[str] = (),
) -> dict[str, Any]:
    """Describe what the run runs on.

    Args:
        device: The device as people call it: `cpu`, or a GPU's name.
        threads: Threads of one operation on the CPU; results are the same bits only at the same
            number.
        ranks: Processes that train together; at another number, results differ by rounding.
        tags: Words of the user's.
        packages: More packages whose versions count, such as the one that its weights are from.
    """
    versions = {"fishr-exp": fishr_exp.__version__, "python": platform.python_version()}
    for package in (*_PACKAGES, *packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "versions": versions,
        "git_commit": git_commit(Path(fishr_exp.__file__).parent.parent),
        "device": device,
        "threads": threads,
        "ranks": ranks,
        "platform": platform.platform(),
        "processor": processor(),
        "command": sys.argv,
        **({"tags": [*tags]} if tags else {}),
    }


def processor() -> str:
    """Name the processor, with its family, model and stepping where Linux tells them.

    The last bits of a result depend on it.
    """
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return platform.processor()
    told = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in told.items()}
    names = [known.get(k, "") for k in ("model name", "cpu family", "model", "stepping")]
    return " ".join(filter(None, names)) or platform.processor()


def git_commit(checkout: Path) -> str | None:
    """Return the commit of our own checkout, with `+changes` if files differ; None in a wheel."""
    if not (checkout / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None
