"""A model card: what a trained network is, what it was trained on, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fishr_exp.runs.facts import ModelFacts
from fishr_exp.runs.identity import TARGET, settings
from fishr_exp.runs.names import CHECKPOINTS, MODEL
from fishr_exp.runs.reading import Run

UNKNOWN = "not known; ask whoever gave you the data"
_OF_A_MACHINE = ("dataset.root", "dataset.cache")
_BESIDE = (
    "dataset.", "trainer.", "model.", "optimizer.", "scheduler.", "averaging.", "batch_size.",
)  # fmt: skip
_TRAINING = (
    "batch_size",
    "sampling",
    "limit_samples",
    "clip_norm",
    "epochs",
    "total_steps",
    "steps_per_epoch",
    "precision",
    "holdout_fraction",
)


def model_card(
    run: Run,
    facts: ModelFacts | None,
    environment: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, int]],
    terms: str = "",
) -> str:
    """Write the model card of a run, in Markdown.

    Args:
        run: The run.
        facts: What its network was built for; None if that was not recorded.
        environment: What the run recorded of versions and machine.
        counts: Domain -> part -> number of samples.
        terms: The terms of use of the data; empty if they are not known.

    Source:
        Mitchell et al. 2019 (arXiv:1810.03993), for the sections.
    """
    values = settings(run.config)
    gamma = "" if run.gamma is None else f", gamma {run.gamma:g}"
    tested = ", ".join(run.test_domains)
    sections = [
        f"# {run.method} on {run.dataset}, tested on {tested}",
        f"The network `{run.model}`, trained by {run.method}{gamma} (seed {run.seed}) on the"
        f" domains {', '.join(run.training_domains) or 'of its configuration'}; the result is that"
        f" of step {run.step}, selected by {run.monitor}.",
        _warning(run),
        "## Use",
        f"`fishr_exp.load_model(FOLDER)` returns the network. Its weights are in `{CHECKPOINTS}`,"
        f" what it reads is in `{MODEL}`. It is the result of an experiment: it was not tested for"
        " any use outside of it.",
        _reads(facts, single_logit=values.get("model.single_logit") is True),
        "## Data",
        _table(
            ("domain", "role", "samples in its train part", "in its validation part"),
            [
                (name, "test" if name in run.test_domains else "training", *_sizes(own))
                for name, own in counts.items()
            ],
        ),
        f"Terms of use: {terms or UNKNOWN}.",
        "## Results",
        _table(("", "accuracy, %"), _accuracies(run)),
        "Test accuracies are over all samples of a domain that was never trained on. One run says"
        " nothing about the method: compare means over seeds.",
        "## Training",
        _table(("setting", "value"), [(k, v) for k, v in values.items() if _is_shown(k, v)]),
        _origin(environment),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _warning(run: Run) -> str:
    if not run.selected_by_test_domain:
        return ""
    return "**The checkpoint was selected by a test domain: its accuracy there is too high.**"


def _reads(facts: ModelFacts | None, *, single_logit: bool) -> str:
    if facts is None:
        return ""
    shape = ", ".join(map(str, facts.input_shape))
    scaled = facts.normalization
    how = "values in [0, 1]"
    if scaled:
        mean, std = (", ".join(f"{v:g}" for v in scaled[key]) for key in ("mean", "std"))
        how += f", minus the mean ({mean}), divided by the standard deviation ({std})"
    names = ", ".join(facts.class_names) if facts.class_names else "their numbers"
    output = f"logits [n, {facts.num_classes}] of the classes {names}"
    if single_logit and facts.num_classes == 2:
        first, second = facts.class_names or ("0", "1")
        output = f"one logit, [n, 1]: above 0 the class is {second}, below 0 {first}"
    return f"Input: [n, {shape}], {how}. Output: {output}."


def _sizes(own: Mapping[str, int]) -> tuple[str, str]:
    return str(own.get("train", "")), str(own.get("validation", ""))


def _accuracies(run: Run) -> list[tuple[str, str]]:
    rows = [
        ("training domains, training parts", run.train_accuracy),
        ("training domains, validation parts", run.validation_accuracy),
        *((f"test domain {name}", value) for name, value in run.test_accuracy.items()),
    ]
    return [(what, f"{100 * value:.1f}") for what, value in rows if value is not None]


def _is_shown(key: str, value: object) -> bool:
    known = key in _TRAINING or key.startswith(_BESIDE)
    hidden = key in _OF_A_MACHINE or key.endswith(TARGET)
    return value is not None and known and not hidden


def _origin(environment: Mapping[str, Any]) -> str:
    versions = environment.get("versions")
    if not isinstance(versions, Mapping):
        return ""
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"Made by {listed}; device {environment.get('device', 'unknown')}."


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
