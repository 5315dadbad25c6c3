"""Rules of the affine parameters of normalization layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .uses import Direct, MakeTerm, Use

# y = w * z + b with z the normalized input: dw = sum_t dy_t z_t, db = sum_t dy_t.


def layer_norm(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """LayerNorm: parameters have the shape of the last dimensions."""
    x, shape, weight, bias, eps = use.bind("input", "normalized_shape", "weight", "bias", "eps")
    if len(x) != count or x.ndim == len(shape):
        return None
    x = use.samples_first(x, count)
    normalized = F.layer_norm(x, shape, eps=1e-5 if eps is None else eps)

    def sums(values: Tensor) -> Direct:
        between = tuple(range(1, values.ndim - len(shape)))
        return Direct(values.sum(between) if between else values)

    return [
        (weight, lambda delta: sums(use.samples_first(delta, count) * normalized)),
        (bias, lambda delta: sums(use.samples_first(delta, count))),
    ]


def group_norm(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """GroupNorm: one weight and bias a channel."""
    x, groups, weight, bias, eps = use.bind("input", "num_groups", "weight", "bias", "eps")
    x = use.samples_first(x, count)
    normalized = F.group_norm(x, groups, eps=1e-5 if eps is None else eps)
    return _per_channel(use, count, normalized, weight, bias)


def instance_norm(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """InstanceNorm: one weight and bias a channel."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats")
    x, mean, variance, weight, bias, own, _, eps = use.bind(*names, "momentum", "eps")
    x, eps = use.samples_first(x, count), 1e-5 if eps is None else eps
    if own is False:
        normalized = F.batch_norm(x, mean, variance, eps=eps)
    else:
        normalized = F.instance_norm(x, eps=eps)  # without running statistics, not to move them
    return _per_channel(use, count, normalized, weight, bias)


def batch_norm(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """BatchNorm with its running statistics: one weight and bias a channel.

    With batch statistics the samples are coupled; `Recorder` refuses that unless asked.
    """
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    x, mean, variance, weight, bias, training, _, eps = use.bind(*names, "momentum", "eps")
    x, eps = use.samples_first(x, count), 1e-5 if eps is None else eps
    if training:  # without running statistics, not to move them
        normalized = F.batch_norm(x, None, None, training=True, eps=eps)
    else:
        normalized = F.batch_norm(x, mean, variance, eps=eps)
    return _per_channel(use, count, normalized, weight, bias)


def _per_channel(
    use: Use, count: int, normalized: Tensor, weight: Any, bias: Any
) -> list[tuple[Any, MakeTerm]] | None:
    if len(normalized) != count:
        return None

    def sums(values: Tensor) -> Direct:
        return Direct(values.flatten(2).sum(2) if values.ndim > 2 else values)

    return [
        (weight, lambda delta: sums(use.samples_first(delta, count) * normalized)),
        (bias, lambda delta: sums(use.samples_first(delta, count))),
    ]
