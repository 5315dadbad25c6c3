"""MIRO: stay close to the features of the network that training started from."""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishr_exp.core.contracts import (
    Batch,
    Facts,
    Loss,
    Model,
    Objective,
    Parameters,
    Trainer,
    trainable,
)
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.trainers._terms import check_weight, mean_risk

_EPSILON = 1e-5
_FIRST_VARIANCE = 0.1
_MAIN_SHARE = 0.95
_OF_RESNETS = ("maxpool", "layer1", "layer2", "layer3", "layer4")


class Miro(Trainer):
    """The mean risk plus the distance of layers' outputs from those of the first weights.

    With f_l the output of layer l for a sample and f⁰_l that of a frozen copy of the featurizer as
    it was before the first step,

        objective = (1/D) Σ_e R_e
                  + gamma · Σ_l ½ mean[(f_l − f⁰_l)² / v_l + log v_l],    v_l = softplus(b_l) + 1e-5

    where the mean is over samples and all entries of an output, and b_l has one trained number per
    channel, at first such that v_l is 0.1.

    Args:
        gamma: Weight of the distance, finite and >= 0; 0 is ERM, without a copy.
        lr_factor: Learning rate of the b_l, in multiples of the optimizer's, > 0.
        layers: Patterns of names of modules in the featurizer; None: those of `layers_of`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range, a pattern names nothing, or a layer's
            output is not a tensor of 2 to 4 dimensions.

    Source: Cha, Lee, Park and Chun (ECCV 2022, arXiv:2203.10789). The mean encoders of the paper
    are the identity, as in the authors' code.
    """

    printed_name = "MIRO"

    def __init__(
        self,
        gamma: float = 0.1,
        lr_factor: float = 10.0,
        layers: Sequence[str] | None = None,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(loss)
        check_weight("trainer.gamma", gamma, "0 is ERM")
        if layers is not None and not layers:
            raise ConfigError("trainer.layers", "[]", "names no layer", "pass null, or patterns")
        if not 0 < lr_factor < math.inf:
            raise ConfigError("trainer.lr_factor", lr_factor, "must be positive and finite")
        self.gamma: float = gamma
        self.lr_factor = lr_factor
        self.patterns = None if layers is None else tuple(layers)
        self.layers: list[str] = []
        self.channel_dims: list[int] = []
        self.scales = nn.ParameterList()
        if gamma:
            self.refuses_compile = "MIRO reads the outputs of inner layers; pass compile=false"

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Copy the featurizer, and make the b_l."""
        if self.gamma == 0:
            return model
        self.original = copy.deepcopy(model.featurizer).requires_grad_(False).eval()
        self.layers = layers_of(model.featurizer, self.patterns)
        first = math.log(math.expm1(_FIRST_VARIANCE - _EPSILON))
        for name, output in _trial(self.original, self.layers, facts.input_shape).items():
            if not isinstance(output, Tensor) or output.dim() not in (2, 3, 4):
                reason = f"the output of {name} is not a tensor of 2 to 4 dimensions"
                raise ConfigError("trainer.layers", self.layers, reason, "name other layers")
            dim = channel_dim(output, facts.input_shape)
            self.channel_dims.append(dim)
            self.scales.append(nn.Parameter(torch.full((output.shape[dim],), first)))
        return model

    def train(self, mode: bool = True) -> Miro:
        """Set training mode, except for the copy."""
        super().train(mode)
        if self.layers:
            self.original.eval()
        return self

    def players(self, model: Model) -> Mapping[str, Parameters]:
        """The model and the b_l, with one optimizer and two learning rates."""
        groups = [{"params": trainable(model)}]
        if self.scales:
            groups.append({"params": [*self.scales], "lr_factor": self.lr_factor})  # type: ignore[dict-item]
        return {"model": groups}

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the objective of one batch; logs also the `penalty` without its weight."""
        del step
        with outputs(model.featurizer, self.layers) as ours:
            risk = mean_risk(batch, self.loss(model(batch.x), batch.y))
        if self.gamma == 0:
            return Objective(risk, {"risk": risk, "objective": risk})
        with torch.no_grad(), outputs(self.original, self.layers) as theirs:
            self.original(batch.x)
        distances = []
        for name, dim, b in zip(self.layers, self.channel_dims, self.scales, strict=True):
            variance = F.softplus(b) + _EPSILON  # [channels]
            change = ours[name].to(b.dtype) - theirs[name].to(b.dtype)
            squares = by_channel(change.square(), dim)  # [N, channels]
            distances.append((squares / variance + variance.log()).mean(1) / 2)  # [N]
        penalty = mean_risk(batch, torch.stack(distances).sum(0))
        total = risk + self.gamma * penalty
        return Objective(total, {"risk": risk, "penalty": penalty, "objective": total})


def layers_of(featurizer: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Return the names of the modules whose outputs are compared.

    Without patterns: of a ResNet, the stem's last module and the four stages. Of other networks,
    the children that have parameters; where one of them has more than 95 % of the parameters, its
    children in its place, and so on.

    Raises:
        ConfigError: If a pattern names no module, or no module has parameters.
    """
    named = [name for name, _ in featurizer.named_modules() if name]
    if patterns is not None:
        for pattern in patterns:
            if not fnmatch.filter(named, pattern):
                reason = f"{pattern} names no module of the featurizer"
                shown = ", ".join(name for name in named if name.count(".") < 2)
                raise ConfigError("trainer.layers", list(patterns), reason, f"it has {shown}")
        return [n for n in named if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    for stem in (name for name in named if name.rpartition(".")[2] == _OF_RESNETS[0]):
        prefix = stem.removesuffix(_OF_RESNETS[0])
        if all(f"{prefix}{name}" in named for name in _OF_RESNETS):
            return [f"{prefix}{name}" for name in _OF_RESNETS]
    if found := _stages(featurizer):
        return found
    reason = "the featurizer has no inner modules with weights"
    raise ConfigError("trainer", "miro", reason, "choose another model")


def _trial(featurizer: nn.Module, names: Sequence[str], shape: Sequence[int]) -> dict[str, Tensor]:
    """Return the outputs of layers for two empty samples, in the order of the names."""
    dtype = next(featurizer.parameters()).dtype
    with torch.random.fork_rng([]), torch.no_grad(), outputs(featurizer, names) as found:
        try:
            featurizer(torch.zeros(2, *shape, dtype=dtype))
        except (RuntimeError, TypeError, ValueError) as error:
            shown = "x".join(map(str, shape))
            reason = f"the model does not fit samples of {shown} ({str(error).splitlines()[0]})"
            raise ConfigError("trainer", "miro", reason, "choose another model") from error
    if unused := [name for name in names if name not in found]:
        reason = f"{unused[0]} takes no part in a forward pass"
        raise ConfigError("trainer.layers", list(names), reason, "name other layers")
    return {name: found[name] for name in names}


def _stages(module: nn.Module, name: str = "") -> list[str]:
    """Return the names of the children that `layers_of` describes, within a module of this name."""
    sizes = {
        (f"{name}.{own}" if name else own): (sum(p.numel() for p in child.parameters()), child)
        for own, child in module.named_children()
    }
    sizes = {own: (size, child) for own, (size, child) in sizes.items() if size}
    if not sizes:
        return []
    own, (largest, child) = max(sizes.items(), key=lambda item: item[1][0])
    if largest > _MAIN_SHARE * sum(size for size, _ in sizes.values()):
        return _stages(child, own) or list(sizes)
    return list(sizes)


@contextlib.contextmanager
def outputs(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of inner modules of the calls in the block, by their names."""
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
            found[name] = output

        handles.append(module.get_submodule(name).register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def channel_dim(output: Tensor, shape: Sequence[int]) -> int:
    """Return which dimension of a layer's output is the channels.

    Of [n, channels], [n, tokens, channels] and [n, channels, height, width]; and of [n, height,
    width, channels] where samples, of this shape, are square: their equal sides tell.
    """
    if output.dim() == 4:
        first, second, third = output.shape[1:]
        return 3 if shape[-1] == shape[-2] and first == second != third else 1
    return output.dim() - 1


def by_channel(values: Tensor, dim: int) -> Tensor:
    """Return the means over all dimensions but the first and `dim`: [n, channels]."""
    others = [other for other in range(1, values.dim()) if other != dim]
    return values.mean(others) if others else values
