"""The network that a run has trained, built again."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace

import torch

from fishr_exp.core.contracts import Facts, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.quiet import without_warnings
from fishr_exp.core.seeding import global_streams_kept
from fishr_exp.gradient_variance import UnsupportedError
from fishr_exp.runs.facts import ModelFacts
from fishr_exp.runs.reading import Run
from fishr_exp.training.arguments import Arguments
from fishr_exp.training.built import as_model, as_trainer, build_part
from fishr_exp.training.checkpoint import load
from fishr_exp.training.members import Member
from fishr_exp.training.prepare import prepare


def trained_model(run: Run, arguments: Arguments) -> Model:
    """Return the network of a run that is done, with the weights of its result.

    The run's data are not needed, unless an earlier version made the run.

    Args:
        run: The run.
        arguments: What prepares it.

    Returns:
        On the CPU, in evaluation mode. It maps x [n, *input_shape], scaled as in `model.json`, to
        logits [n, C], or [n, 1] for two classes.

    Raises:
        ConfigError: If the weights are not there, or not of this network.
    """
    path = Member.of(run, arguments).weights
    facts = ModelFacts.read(run.path)
    arguments = _without_start(arguments)
    with without_warnings(), global_streams_kept():  # the run has given its own warnings
        if facts is None:
            model = prepare(replace(arguments, device="cpu")).training.model
        else:
            model = _built(arguments, facts)
    try:
        model.load_state_dict(load(path)["model"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = f"{path.name} does not hold the weights of its network"
        raise ConfigError("RUN", run.path, reason, "run it again with resume=false") from error
    return model.cpu().eval()


def _built(arguments: Arguments, facts: ModelFacts) -> Model:
    """Return the network that a run trains, with random weights."""
    loss = build_part(arguments.loss, "loss", arguments.config, UnsupportedError)
    trainer = as_trainer(arguments.trainer(loss=loss))
    given = {"input_shape": facts.input_shape, "num_classes": facts.num_classes}
    model = as_model(arguments.model(**given), torch.rand(2, *facts.input_shape))
    known = Facts(
        facts.training_domains, facts.num_classes, model.classifier.in_features, facts.steps,
        facts.input_shape,
    )  # fmt: skip
    return trainer.prepare(model, known)


def _without_start(arguments: Arguments) -> Arguments:
    """Leave out the weights that the run started from, which need not be there."""
    build = arguments.model
    if not isinstance(build, functools.partial):
        return arguments
    known = inspect.signature(build.func).parameters
    start = {"weights_file": None, "pretrained": False}
    changed = {key: value for key, value in start.items() if key in known}
    model = functools.partial(build.func, *build.args, **{**build.keywords, **changed})
    return replace(arguments, model=model)
