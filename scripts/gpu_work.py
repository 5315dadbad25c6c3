"""What the parts of `make gpu` work with: processes with limits, folders, tables."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GRACE = 20.0  # seconds in which a command that is told to stop may save its work
KEPT = ("config.json", "data.json", "done", "environment.json", "model.json", "records.jsonl",
        "result.json", "shared.json")  # fmt: skip


class FailedError(Exception):
    """A command failed, or took too long."""


class SkippedError(Exception):
    """A part has nothing to do, or no time for it."""


@dataclass
class Work:
    """What parts have: a Python, a device, folders and time.

    Attributes:
        python: The interpreter.
        device: cuda, or cpu at a cut size.
        out: The folder of everything that is written.
        env: The environment of the commands.
        data: Folders of data, by name; relative to `out`, where the commands run.
        ends: When to be done, by `time.monotonic`.
        cut: Whether everything is cut to a small size, for a trial.
        name: Of the part.
        pacs_steps: Steps of a run on PACS; None: what fits.
        machine: What it all runs on, in words.
    """

    python: str
    device: str
    out: Path
    env: dict[str, str]
    data: dict[str, Path]
    ends: float
    cut: bool = False
    name: str = "gpu"
    pacs_steps: int | None = None
    machine: str = ""

    @property
    def docs(self) -> Path:
        """The folder that is laid out like `docs/`."""
        return self.out / "docs"

    @property
    def log(self) -> Path:
        """The file that gets the output of the part's commands."""
        return self.out / "logs" / f"{self.name}.log"

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.ends - time.monotonic()

    def within(self, name: str, seconds: float) -> Work:
        """Return the same for a part, or a part of one, of so many seconds."""
        return replace(self, name=name, ends=min(self.ends, time.monotonic() + seconds))

    def piece(self, name: str) -> Path:
        """Return the file of a section of the page of measurements."""
        return self.out / "pieces" / f"{name}.md"

    def run(
        self, *words: Any, most: float | None = None, late: float = 0.0, cwd: Path | None = None
    ) -> float:
        """Run Python with these words; return the seconds that it took.

        Args:
            *words: The command line after the interpreter.
            most: Seconds that it may take, if the part has as many left.
            late: Seconds that it may take in any case, as for a page of what was made in time.
            cwd: The current folder; by default `out`, so that runs name their data in the same way.

        Raises:
            FailedError: If it fails, or takes too long and was ended.
        """
        most = max(late, min(self.left, self.left if most is None else most))
        command = [self.python, *map(str, words)]
        said = " ".join(Path(word).name if "/" in word else word for word in command[1:4])
        if most <= 0:
            raise FailedError(f"{said}: no time was left")
        started = time.monotonic()
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            process = subprocess.Popen(
                command, cwd=cwd or self.out, env=self.env, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(most)
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
                process.terminate()  # a run saves a checkpoint
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
                if isinstance(stop, KeyboardInterrupt):
                    raise
                raise FailedError(f"{said}: ended after {most:.0f} s, its limit") from None
            finally:
                with contextlib.suppress(ProcessLookupError):  # and all that it started
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status:
            raise FailedError(f"{said}: exit status {status}; {self.last_line()}")
        return time.monotonic() - started

    def last_line(self) -> str:
        """Return the last line of the log that says something."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "no output")[:300]

    def keep_runs(self, runs: Path, name: str) -> int:
        """Copy what the runs wrote, without checkpoints, to the records; return how many.

        Of the command line in it, the folder of the checkout is left out.
        """
        records = self.docs / "results" / "records" / name
        shutil.rmtree(records, ignore_errors=True)
        found = sorted(path.parent for path in runs.glob("*/done"))
        for run in found:
            (records / run.name).mkdir(parents=True)
            for file in (run / kept for kept in KEPT if (run / kept).exists()):
                text = file.read_text()
                if file.name == "environment.json":
                    text = text.replace(f"{ROOT}/", "")
                (records / run.name / file.name).write_text(text)
        return len(found)


def as_table(rows: Sequence[Sequence[Any]], columns: Sequence[str]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


_STAND_INS = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
root, draw = Path(sys.argv[1]), np.random.default_rng(0)
raw = root / "cut_mnist" / "MNIST" / "raw"
raw.mkdir(parents=True, exist_ok=True)
for kind, count in (("train", 60_000), ("t10k", 10_000)):
    sizes = (np.array([count, 28, 28], ">i4"), np.array([count], ">i4"))
    pixels = np.zeros((count, 28, 28), np.uint8)
    pixels[:, ::7, ::7] = draw.integers(0, 255, (count, 4, 4))
    labels = draw.integers(0, 10, count).astype(np.uint8)
    for name, magic, size, values in (
        ("images-idx3", 2051, sizes[0], pixels), ("labels-idx1", 2049, sizes[1], labels)
    ):
        head = np.array([magic], ">i4").tobytes() + size.tobytes()
        (raw / f"{kind}-{name}-ubyte").write_bytes(head + values.tobytes())
kinds = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
for domain in ("art_painting", "cartoon", "photo", "sketch"):
    for label, kind in enumerate(kinds):
        folder = root / "cut_pacs" / domain / kind
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(5):
            image = draw.integers(30 * label, 30 * label + 60, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{number}.png")
"""


def stand_ins(root: Path, python: str, env: dict[str, str]) -> dict[str, Path]:
    """Make data of random numbers in the layout of MNIST and PACS, for trials; return both."""
    subprocess.run([python, "-c", _STAND_INS, str(root)], env=env, check=True)
    return {name: root / f"cut_{name}" for name in ("mnist", "pacs")}
