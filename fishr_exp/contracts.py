"""What a part of your own is written against: see `fishr_exp.core.contracts`."""

from fishr_exp.core.contracts import (
    Averaging,
    Batch,
    Domain,
    Domains,
    Facts,
    Loss,
    Minibatch,
    Model,
    Objective,
    Overrides,
    Parameters,
    Trainer,
    trainable,
)

__all__ = [
    "Averaging",
    "Batch",
    "Domain",
    "Domains",
    "Facts",
    "Loss",
    "Minibatch",
    "Model",
    "Objective",
    "Overrides",
    "Parameters",
    "Trainer",
    "trainable",
]
