"""Makes run folders of a sweep that nobody ran, to measure what reads or repeats many runs.

One real run is the template. The others have its configuration but for gamma, seed and learning
rate, the name that `fishr-exp` gives to a run of that configuration, so that the command

    fishr-exp -m trainer.gamma=... seed=... optimizer.lr=... epochs=2 output_dir=DIR

finds its runs there, and accuracies that are made up. Checkpoints are left out. From the shell:

    python scripts/made_up_runs.py DIR COUNT [--gammas 0 1] [--seeds 3] [--evaluations 2]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fishr_exp.runs.files import to_json
from fishr_exp.runs.identity import folder_name
from fishr_exp.runs.names import CONFIG, DATA, DONE, ENVIRONMENT, LOCK, RECORDS, RESULT

GAMMAS = (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
WORDS = ("tracker=none", "epochs=2")


def make_template(folder: Path) -> Path:
    """Train one run in `folder`, some seconds of it, and return its folder."""
    command = [sys.executable, "-m", "fishr_exp", *WORDS, f"output_dir={folder}"]
    subprocess.run(command, check=True, capture_output=True)
    (run,) = [path.parent for path in folder.glob(f"*/{DONE}")]
    return run


def make_runs(
    folder: Path,
    count: int,
    *,
    template: Path | None = None,
    gammas: Sequence[float] = GAMMAS,
    seeds: int = 3,
    evaluations: int = 2,
) -> list[Path]:
    """Make the folders of `count` runs that are done, in `folder`, and return them.

    Gamma varies fastest, then the seed, then the learning rate: 21 runs are 7 gammas at 3 seeds.

    Args:
        folder: Where runs are, the `output_dir` of the sweep; it need not exist.
        count: Number of runs.
        template: The folder of a real run; None to train one.
        gammas: Their gammas.
        seeds: Seeds of each gamma and learning rate.
        evaluations: Lines of records.jsonl of each run.
    """
    folder = folder.absolute()
    if template is None:
        with tempfile.TemporaryDirectory() as scratch:
            return make_runs(
                folder, count, template=make_template(Path(scratch)), gammas=gammas, seeds=seeds,
                evaluations=evaluations,
            )  # fmt: skip
    config, result, data = (
        json.loads((template / name).read_text()) for name in (CONFIG, RESULT, DATA)
    )
    records = [json.loads(line) for line in (template / RECORDS).read_text().splitlines()]
    environment = (template / ENVIRONMENT).read_text()
    option = result["labels"]["trainer"]
    made = []
    for gamma, seed, rate in _choices(count, gammas, seeds):
        own = _config(config, folder, gamma, seed, rate)
        path = folder / folder_name(own, option)
        path.mkdir(parents=True)
        if (template / ".hydra").is_dir():  # the template's, word for word
            shutil.copytree(template / ".hydra", path / ".hydra")
        lines = [*_records(records, evaluations, random.Random(f"{gamma} {seed} {rate}"))]
        (path / CONFIG).write_text(to_json(own, indent=2) + "\n")
        (path / DATA).write_text(to_json(data, indent=2) + "\n")
        (path / ENVIRONMENT).write_text(environment)
        (path / RECORDS).write_text("".join(to_json(line) + "\n" for line in lines))
        (path / RESULT).write_text(to_json(_result(result, lines, gamma, seed), indent=2) + "\n")
        (path / LOCK).touch()
        (path / DONE).touch()
        made.append(path)
    return made


def _choices(count: int, gammas: Sequence[float], seeds: int) -> Iterator[tuple[float, int, float]]:
    """Return `count` gammas, seeds and learning rates."""
    for place in range(count):
        rest, gamma = divmod(place, len(gammas))
        rate, seed = divmod(rest, seeds)
        yield gammas[gamma], seed, float(f"{1e-3 * 1.01**rate:.6g}")


def _config(
    config: Mapping[str, Any], folder: Path, gamma: float, seed: int, rate: float
) -> dict[str, Any]:
    return {
        **config,
        "seed": seed,
        "output_dir": str(folder),
        "trainer": {**config["trainer"], "gamma": gamma},
        "optimizer": {**config["optimizer"], "lr": rate},
        "dataset": {**config["dataset"], "seed": seed},  # it follows the run's
    }


def _records(
    records: list[dict[str, Any]], count: int, draw: random.Random
) -> Iterator[dict[str, Any]]:
    """Return records of growing steps, with accuracies that the draw changes a little."""
    each = records[0]["step"]
    for place in range(count):
        record = dict(records[min(place, len(records) - 1)])
        shift = draw.uniform(-0.05, 0.0)
        record |= {"step": each * (place + 1), "epoch": place + 1}
        record["accuracy"] = {
            domain: {part: value + shift * value for part, value in parts.items()}
            for domain, parts in record["accuracy"].items()
        }
        for mean in ("train_accuracy", "validation_accuracy"):
            record[mean] *= 1 + shift
        yield record


def _result(
    result: Mapping[str, Any], lines: list[dict[str, Any]], gamma: float, seed: int
) -> dict[str, Any]:
    """Return the result whose checkpoint is that of the best record."""
    best = max(lines, key=lambda line: line["validation_accuracy"])
    kept = ("accuracy", "train_accuracy", "validation_accuracy")
    gain = 0.03 * math.log10(1 + gamma)
    test = {
        domain: (best["accuracy"][domain]["train"] + gain) for domain in result["test_accuracy"]
    }
    return {
        **result,
        "gamma": gamma,
        "seed": seed,
        "selected": {**result["selected"], "step": best["step"], "epoch": best["epoch"]},
        **{key: best[key] for key in kept},
        "last": {**result["last"], "step": lines[-1]["step"]},
        "test_accuracy": test,
    }


def main() -> int:
    """Make runs as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--template", type=Path, help="folder of a real run; default: train one")
    parser.add_argument("--gammas", type=float, nargs="+", default=GAMMAS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=2)
    given = parser.parse_args()
    made = make_runs(
        given.folder,
        given.count,
        template=given.template,
        gammas=given.gammas,
        seeds=given.seeds,
        evaluations=given.evaluations,
    )
    print(f"{len(made)} runs in {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
