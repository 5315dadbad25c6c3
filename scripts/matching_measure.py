"""Measure how far the training domains' gradient variances are apart, at the checkpoints of runs.

    python scripts/matching_measure.py keep DIR       beside the sweep, until Ctrl-C
    python scripts/matching_measure.py measure DIR    afterwards; writes DIR/matching.jsonl
    python scripts/matching_measure.py noise DIR      writes DIR/noise.jsonl

A run keeps its newest checkpoint only; `keep` links each one to RUN/kept as it appears. `measure`
takes them all, or what is left, and adds what is not measured yet.

The variance v of per-sample gradients is a vector; on a minibatch of 16 samples its noise is larger
than the differences between domains. So SAMPLES of the training part of each training domain are
taken, the same for every checkpoint of a seed, without augmentation, in two halves 1 and 2. Since
these are independent, <v1_a - v1_b, v2_a - v2_b> is the squared distance of domains a and b without
a bias by noise, and <v1_a, v2_a> the squared norm; an estimate may be negative. Both are written
over the classifier, and at the last checkpoint of a run over all other parameters, too, from fewer
samples, since that takes longer.

`noise` shows why: for the classifiers of ERM's runs, the plain relative distance of two samples of
one domain beside that of two domains, by the number of samples.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fishr_exp.api import load_model
from fishr_exp.configuration.recorded import recorded_arguments
from fishr_exp.core.contracts import Model
from fishr_exp.data.minibatches import chunks
from fishr_exp.gradient_variance import gradient_variance
from fishr_exp.runs.files import write_atomically
from fishr_exp.runs.reading import Run, read_runs
from fishr_exp.runs.records import parse_evaluations
from fishr_exp.runs.run_folder import RECORDS
from fishr_exp.training.built import as_domains
from fishr_exp.training.checkpoint import load
from fishr_exp.training.prepare import split_domains

FILE, NOISE, KEPT = "matching.jsonl", "noise.jsonl", "kept"
PAUSE = 2.0  # seconds
AT_ONCE = 64  # samples of a forward pass
PLACES = CLASSIFIER, OTHERS = "classifier", "others"


def keep(folder: Path, ended: threading.Event) -> None:
    """Link each checkpoint of the runs in a folder, until the end."""
    while not ended.wait(PAUSE):
        for state in folder.glob("*/checkpoints/step-*.pt"):
            link = state.parents[1] / KEPT / state.name
            link.parent.mkdir(exist_ok=True)
            if not link.exists():
                with contextlib.suppress(FileNotFoundError):  # a newer one came meanwhile
                    os.link(state, link)


def states(run: Path) -> dict[int, Path]:
    """Return the checkpoints of a run by their steps."""
    found = [*(run / "checkpoints").glob("step-*.pt"), *(run / KEPT).glob("step-*.pt")]
    steps = {path: re.fullmatch(r"step-(\d+)\.pt", path.name) for path in found}
    return dict(sorted((int(match[1]), path) for path, match in steps.items() if match))


def samples_of(run: Run, count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images and labels of each training domain, in a random order that the seed fixes.

    Args:
        run: The run.
        count: Samples of each domain; it is even. A smaller domain gives all that it has.
    """
    arguments = recorded_arguments(run)
    data = as_domains(arguments.dataset())
    parts = split_domains(arguments, data)
    found = {}
    for name, domain in data.by_name.items():
        if name in run.test_domains:
            continue
        indices = parts[name]["train"]
        order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(run.seed))
        chosen = indices[order[: min(count, len(indices) // 2 * 2)]]
        (minibatch,) = chunks(domain, chosen, len(chosen))
        found[name] = minibatch.x, minibatch.y
    return found


def squares(
    model: Model, samples: Mapping[str, tuple[Tensor, Tensor]], place: str
) -> dict[str, float]:
    """Return squared norms and distances of the domains' gradient variances, without bias.

    Args:
        model: In evaluation mode.
        samples: Images and labels of each domain; the first half and the second are independent.
        place: `classifier`, or `others` for all other parameters.

    Returns:
        `a` -> |v_a|², `a/b` -> |v_a - v_b|².
    """
    halves = [
        half for of in samples.values() for half in zip(*(t.chunk(2) for t in of), strict=True)
    ]
    x, y = (torch.cat(parts) for parts in zip(*halves, strict=True))
    sizes = tuple(len(labels) for _, labels in halves)
    if place == CLASSIFIER:
        x, model = features(model, x), Model(nn.Identity(), model.classifier).eval()
    products: dict[str, float] = {}
    for name, variances in mean_variances(model, x, y, sizes).items():
        if name.startswith("classifier.") == (place == CLASSIFIER):
            for key, (one, other) in _pairs([*samples], variances):
                value = float((one.double() * other.double()).sum())
                products[key] = products.get(key, 0.0) + value
    return products


def mean_variances(model: Model, x: Tensor, y: Tensor, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Return the variances of groups of samples, each the mean over parts that fit into memory.

    A part of a group has `AT_ONCE` samples, or what is left; its variance is divided by n - 1.
    """
    found: dict[str, list[Tensor]] = {}
    for inputs, targets in zip(x.split(list(sizes)), y.split(list(sizes)), strict=True):
        of: dict[str, list[Tensor]] = {}
        for part, labels in zip(inputs.split(AT_ONCE), targets.split(AT_ONCE), strict=True):
            if len(labels) > 1:
                variances = gradient_variance(
                    model, part, labels, (len(labels),), scope="all", create_graph=False,
                    unbiased=True,
                ).variances  # fmt: skip
                for name, value in variances.items():
                    of.setdefault(name, []).append(value)
        for name, values in of.items():
            found.setdefault(name, []).append(torch.cat(values).mean(0, keepdim=True))
    return {name: torch.cat(values) for name, values in found.items()}


@torch.no_grad()
def features(model: Model, x: Tensor) -> Tensor:
    """Return what the classifier gets; the gradients of the rest would need much memory."""
    return torch.cat([model.featurizer(part) for part in x.split(AT_ONCE)])


def plain_distances(
    classifier: nn.Module, samples: Mapping[str, tuple[Tensor, Tensor]], count: int
) -> tuple[float, float]:
    """Return the relative distance of two samples of a domain, and of two domains, with noise.

    Args:
        classifier: The last layer.
        samples: Features and labels of each domain; they are cut into samples, two at a time.
        count: Of a sample.
    """
    model, domains = Model(nn.Identity(), classifier).eval(), len(samples)
    within, between, sizes = [], [], []
    for start in range(0, min(len(y) for _, y in samples.values()) - 2 * count + 1, 2 * count):
        x, y = (torch.cat([of[i][start : start + 2 * count] for of in samples.values()])
                for i in (0, 1))  # fmt: skip
        found = gradient_variance(model, x, y, (count,) * 2 * domains, scope="all",
                                  create_graph=False)  # fmt: skip
        v = torch.cat([part.flatten(1) for part in found.variances.values()], 1).double()
        sizes.append(v.square().sum(1).mean())
        within.append((v[0::2] - v[1::2]).square().sum(1).mean())
        between += [(v[a] - v[b]).square().sum()
                    for a, b in itertools.combinations(range(0, 2 * domains, 2), 2)]  # fmt: skip
    size, *both = (torch.stack(of).mean() for of in (sizes, within, between))
    one, other = (float((of / size).sqrt()) for of in both)
    return one, other


def noise(runs: Sequence[Run], most: int, into: Path) -> None:
    """Write `plain_distances` of the last checkpoint of each run, by the samples of each domain.

    Args:
        runs: Those of ERM.
        most: Samples of each domain, which are cut into samples of 16, 32, 64, 128 and the half.
        into: The file.
    """
    lines = []
    for run in tqdm(runs, disable=None, unit="run"):
        if kept := states(run.path):
            model = load_model(run)
            model.load_state_dict(load(kept[max(kept)])["model"])
            samples = {
                name: (features(model, x), y) for name, (x, y) in samples_of(run, most).items()
            }
            half = min(len(y) for _, y in samples.values()) // 2
            for count in sorted({n for n in (16, 32, 64, 128) if n <= half} | {half}):
                within, between = plain_distances(model.classifier, samples, count)
                lines.append({"run": run.path.name, "samples": count,
                              "within": within, "between": between})  # fmt: skip
    write_atomically(into, "".join(f"{json.dumps(line)}\n" for line in lines))


def _of_study(folder: Path) -> list[Run]:
    """Return the runs of Fishr that are done, gamma 0 (ERM) among them, without averages."""
    return [
        run
        for run in read_runs(folder).done
        if run.method == "Fishr" and not run.config.get("averaging")
    ]


def _pairs(names: Sequence[str], variances: Tensor) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Yield what is to be multiplied, from the variances of both halves of each domain."""
    of = dict(zip(names, variances.unflatten(0, (len(names), 2)), strict=True))
    for name, (one, other) in of.items():
        yield name, (one, other)
    for a, b in itertools.combinations(names, 2):
        one, other = of[a] - of[b]
        yield f"{a}/{b}", (one, other)


def measure(studied: Sequence[Run], counts: Mapping[str, int], into: Path) -> None:
    """Measure each checkpoint of runs, and append a line for each.

    Args:
        studied: The runs.
        counts: Samples of each domain, by place; the last checkpoint of a run has both, unless
            there are no samples for the others.
        into: The file.
    """
    lines = into.read_text().splitlines() if into.exists() else []
    known = {(line["run"], line["step"]) for line in map(json.loads, lines)}
    runs = sorted(studied, key=_data_of)
    wanted = [
        (run, step, path, step == max(found))
        for run in runs
        for found in (states(run.path),)
        for step, path in found.items()
        if step in _evaluated(run) and (run.path.name, step) not in known
    ]
    taken: dict[tuple[int, str], dict[str, tuple[Tensor, Tensor]]] = {}
    for run, step, path, is_last in tqdm(wanted, disable=None, unit="checkpoint"):
        key = _data_of(run)
        taken = {key: taken[key] if key in taken else samples_of(run, max(counts.values()))}
        model = load_model(run)
        model.load_state_dict(load(path)["model"])
        line: dict[str, Any] = {"run": run.path.name, "step": step}
        for place in PLACES[: 1 + is_last]:
            if not (count := counts[place]):
                continue
            few = {name: (x[:count], y[:count]) for name, (x, y) in taken[key].items()}
            used = min(len(y) for _, y in few.values())
            line[place] = {"samples": used, **squares(model, few, place)}
        with into.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _evaluated(run: Run) -> set[int]:
    """Return the steps of its evaluations; a run that was stopped has checkpoints at others."""
    return {record["step"] for record in parse_evaluations(run.path / RECORDS)}


def _data_of(run: Run) -> tuple[int, str]:
    return run.seed, ",".join(run.test_domains)


def main(words: Sequence[str] | None = None) -> int:
    """Keep checkpoints, measure them, or measure the noise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("keep", "measure", "noise"))
    parser.add_argument("folder", metavar="DIR", type=Path, help="the runs")
    for place, count in ((CLASSIFIER, 512), (OTHERS, 256)):
        parser.add_argument(
            f"--{place}", type=int, default=count, metavar="N",
            help=f"samples of each domain for the {place} (default {count})"
            + "; 0 leaves them out, for good: nothing is measured twice" * (place == OTHERS),
        )  # fmt: skip
    arguments = parser.parse_args(words)
    counts = {place: getattr(arguments, place) for place in PLACES}
    for place, count in counts.items():
        if count < 2 * (place == CLASSIFIER) or count % 2:
            allowed = "even, and positive" + " or 0" * (place == OTHERS)
            parser.error(f"--{place} {count}: must be {allowed}")
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder}: is not a folder")
    if arguments.what == "keep":
        keep(arguments.folder, threading.Event())
    studied = _of_study(arguments.folder)
    if arguments.what == "noise":
        studied = [run for run in studied if run.gamma == 0]
    known = arguments.what == "measure" and (arguments.folder / FILE).exists()
    if not (known or any(states(run.path) for run in studied)):
        kind = "ERM (gamma 0)" if arguments.what == "noise" else "Fishr"
        what = "no checkpoint is left in its runs" if studied else f"holds no run of {kind}"
        parser.error(f"{arguments.folder}: {what}")
    if arguments.what == "noise":
        noise(studied, counts[CLASSIFIER], arguments.folder / NOISE)
    else:
        measure(studied, counts, arguments.folder / FILE)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
