"""The front door: variances of per-sample gradients, by either engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .classes import by_class, group_by_class
from .losses import per_sample_losses
from .moments import Moments
from .native import native_moments
from .scope import select_parameters

Loss = Callable[[Tensor, Tensor], Tensor]

MEMORY_LIMIT = 2**25
"""Most entries of a temporary tensor of per-sample gradients: 128 MiB of float32."""


STATISTICS = ("variance", "second_moment", "mean", "covariance")


class GradientVariance(NamedTuple):
    """What one forward pass over all domains gives."""

    logits: Tensor  # [N, C], with graph, for the risk
    losses: Tensor  # [N], with graph, for the risk
    variances: dict[str, Tensor]  # by parameter: [D, *shape of the parameter]


def gradient_variance(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    sizes: Sequence[int],
    *,
    scope: str | Iterable[str] = "classifier",
    engine: Literal["native", "backpack"] = "native",
    loss: Loss = per_sample_losses,
    create_graph: bool = True,
    statistic: Literal["variance", "second_moment", "mean", "covariance"] = "variance",
    unbiased: bool = False,
    within_classes: bool = False,
    batch_statistics: Literal["refuse", "constant"] = "refuse",
    memory_limit: int = MEMORY_LIMIT,
    all_ranks: bool = False,
) -> GradientVariance:
    """Variance, within each domain, of the per-sample gradients of the selected parameters.

    v_e = mean_i (g_i - mean_i g_i)^2 over the n samples of domain e, element by element, with g_i
    the gradient of the loss of sample i, not divided by n. No `.grad` is touched.

    Args:
        model: Maps `inputs` to logits; must treat samples independently.
        inputs: [N, ...], the minibatches of all domains one behind the other.
        targets: [N].
        sizes: The D sizes of the minibatches, each at least 2; they add up to N, and may differ.
        scope: `"all"`, or patterns of parameter and module names (see `select_parameters`).
        engine: `"native"`, or `"backpack"`, the independent reference.
        loss: Maps logits [N, C] and targets [N] to losses [N], each of its own sample.
        create_graph: Whether the variances are differentiable. If not, they are constants, while
            logits and losses keep their graph.
        statistic: What is returned in place of the variance: `"second_moment"`, mean_i g_i^2, is
            the variance that is not centred; `"mean"` is mean_i g_i; `"covariance"` is the whole
            matrix for each parameter, [D, P, P], which keeps all g_i, and is not for convolutions.
        unbiased: Divide variance or covariance by n - 1 instead of n.
        within_classes: Take the statistic within each class that has two samples in every domain;
            the results are named `parameter[class]`.
        batch_statistics: What to do where BatchNorm in training mode couples the samples between
            the selected parameters and the loss. `"constant"` takes for g_i the part of the
            gradient of the summed loss that passes through sample i's own activations.
        memory_limit: Most entries of a temporary tensor of per-sample gradients; one sample's may
            exceed it. Engine `"native"` only.
        all_ranks: Take the statistic over the samples of every rank of `torch.distributed`, each of
            which calls with its own part of each domain. Gradients are right once averaged over
            the ranks, as data-parallel training does. Logits and losses stay the rank's own.

    Returns:
        Logits, losses and the variances by parameter name. A selected parameter that takes no
        part in the loss has variance 0.

    Raises:
        ValueError: If a size is below 2, the sizes do not add up, the scope selects nothing, or
            the engine cannot do the model.

    Source: Ramé et al. 2022 (arXiv:2109.02934), the domain-level gradient variance.
    Departs: Divided by n instead of n - 1, as all public code does.
    """
    sizes = _checked_sizes(sizes, len(inputs))
    if statistic not in STATISTICS:
        raise ValueError(f"statistic={statistic!r}: expected one of {', '.join(STATISTICS)}")
    if all_ranks and (within_classes or statistic == "covariance"):
        raise ValueError("all_ranks: not within classes, and not for the covariance")
    parameters = select_parameters(model, scope)
    groups = group_by_class(targets, sizes) if within_classes else None
    if groups:
        inputs, targets = inputs[groups.order], targets[groups.order]
    parts = groups.sizes if groups else sizes
    covariance = statistic == "covariance"
    if engine == "backpack":
        from .backpack_engine import moments_by_backpack

        logits, losses, moments = moments_by_backpack(
            model, inputs, targets, parts, parameters, loss, create_graph, covariance
        )
    elif engine == "native":
        logits, losses, moments = native_moments(
            model,
            inputs,
            targets,
            parts,
            parameters,
            loss,
            create_graph=create_graph,
            memory_limit=memory_limit,
            allow_batch_statistics=batch_statistics == "constant",
            covariance=covariance,
        )
    else:
        raise ValueError(f"engine={engine!r}: expected 'native' or 'backpack'")
    if all_ranks:
        from .distributed import over_all_ranks

        moments, parts = over_all_ranks(moments, parts)
    values = _statistics(moments, parts, statistic, unbiased)
    if groups:
        back = groups.order.argsort()
        logits, losses = logits[back], losses[back]
        values = by_class(values, groups.classes, len(sizes))
    return GradientVariance(logits, losses, values)


def _statistics(
    moments: dict[str, Moments], sizes: tuple[int, ...], statistic: str, unbiased: bool
) -> dict[str, Tensor]:
    if statistic == "mean":
        return {name: m.mean for name, m in moments.items()}
    if statistic == "second_moment":
        return {name: m.variance + m.mean.square() for name, m in moments.items()}
    if not unbiased:
        return {name: m.variance for name, m in moments.items()}
    factors = [n / max(1, n - 1) for n in sizes]
    return {
        name: torch.stack([v * factor for v, factor in zip(m.variance, factors, strict=True)])
        for name, m in moments.items()
    }


def _checked_sizes(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in sizes)
    for domain, n in enumerate(sizes):
        if n < 2:
            raise ValueError(
                f"sizes[{domain}]={n}: a variance needs at least 2 samples of each domain"
            )
    if not sizes or sum(sizes) != count:
        raise ValueError(f"sizes={sizes} add up to {sum(sizes)}, but there are {count} inputs")
    return sizes
