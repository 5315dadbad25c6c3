"""Groups of parameters within an optimizer: a rate of the classifier's own, and what decays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fishr_exp.core.contracts import Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.training.arguments import Grouping


def divided(
    groups: Sequence[Mapping[str, Any]], model: Model, trainer: nn.Module, grouping: Grouping
) -> list[dict[str, Any]]:
    """Divide the groups of a player by the keys of `optimizer` that are the run's.

    Args:
        groups: Its parameters, in groups as `torch.optim` takes them.
        model: Of the run.
        trainer: Its method, which may have parameters of its own.
        grouping: The keys; at their defaults the groups stay.

    Returns:
        Groups in the order of their first parameters; `lr_factor` of those of the classifier is
        multiplied, and `weight_decay` of norms and biases is 0.
    """
    factor = grouping.classifier_lr_factor
    of_classifier = {id(p) for p in model.classifier.parameters()} if factor != 1 else set()
    plain = set() if grouping.decay_norms_and_biases else _norms_and_biases([model, trainer])
    found = []
    for group in groups:
        parts: dict[tuple[bool, bool], list[Tensor]] = {}
        for parameter in group["params"]:
            kind = (id(parameter) in of_classifier, id(parameter) in plain)
            parts.setdefault(kind, []).append(parameter)
        for (is_classifier, is_plain), parameters in parts.items():
            own = {**group, "params": parameters}
            if is_classifier:
                own["lr_factor"] = group.get("lr_factor", 1) * factor
            if is_plain:
                own["weight_decay"] = 0.0
            found.append(own)
    return found


def check_grouping(grouping: Grouping, optimizers: Iterable[Optimizer], model: Model) -> None:
    """Refuse keys that do nothing.

    Args:
        grouping: The keys.
        optimizers: Those of all players.
        model: Of the run.

    Raises:
        ConfigError: If nobody trains the classifier, or there is no weight decay to leave out.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    trained = {id(p) for group in groups for p in group["params"]}
    factor = grouping.classifier_lr_factor
    if factor != 1 and not trained & {id(p) for p in model.classifier.parameters()}:
        reason = "no optimizer trains the classifier"
        raise ConfigError("optimizer.classifier_lr_factor", factor, reason, "leave it out")
    decays = any(group.get("weight_decay") for group in groups)
    if not grouping.decay_norms_and_biases and not decays:
        reason = "there is no weight decay to leave out"
        hint = "pass optimizer.weight_decay=VALUE, or leave it out"
        raise ConfigError("optimizer.decay_norms_and_biases", "false", reason, hint)


def _norms_and_biases(modules: Iterable[nn.Module]) -> set[int]:
    """Find parameters of at most one dimension, all biases, and those of LayerNorm.

    Source: `param_groups_weight_decay` of timm, which takes the first two.
    """
    found = set()
    for module in modules:
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                is_norm = isinstance(part, nn.LayerNorm)
                if parameter.ndim <= 1 or name.endswith("bias") or is_norm:
                    found.add(id(parameter))
    return found
