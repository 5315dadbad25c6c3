"""The front door: variances of per-sample gradients, by either engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .engines.native import native_statistics
from .errors import UnsupportedError
from .losses import Loss, per_sample_losses
from .scope import select_parameters
from .terms.classes import by_class, group_by_class
from .terms.moments import Moments

STATISTICS = ("variance", "second_moment", "mean", "covariance")
BATCH_STATISTICS = ("refuse", "constant")


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
    memory_limit: float = 128,
    all_ranks: bool = False,
    reduce: Callable[[str, Tensor], Tensor] | None = None,
) -> GradientVariance:
    """Variance, within each domain, of the per-sample gradients of the selected parameters.

    v_e = mean_i (g_i - mean_i g_i)^2 over the n samples of domain e, element by element, with g_i
    the gradient of the loss of sample i, not divided by n. No `.grad` is touched.

    Args:
        model: Maps `inputs` to logits; must treat samples independently (see "Limits").
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
            the results are named `parameter[class]`. Zeros named `parameter`, if there is none.
        batch_statistics: What to do where BatchNorm in training mode couples the samples between
            the selected parameters and the loss. `"constant"` takes for g_i the part of the
            gradient of the summed loss that passes through sample i's own activations.
        memory_limit: Most of a temporary tensor of per-sample gradients, in MiB; one sample's may
            exceed it. Engine `"native"` only.
        all_ranks: Take the statistic over the samples of every rank of `torch.distributed`, each of
            which calls with its own part of each domain. Gradients are right once averaged over
            the ranks, as data-parallel training does. Logits and losses stay the rank's own.
        reduce: Maps a parameter's name and its statistic [D, ...] to a scalar, as soon as they are
            known; the scalar takes the statistic's place in the result. Its gradient is taken at
            once, so that no [D, ...] has to stay in memory: less of it for large models.

    Returns:
        Logits, losses and the variances by parameter name. A selected parameter that takes no
        part in the loss has variance 0.

    Raises:
        UnsupportedError: If a size is below 2, the sizes do not add up, the scope selects nothing,
            an argument is unknown or outside its range, the loss is not one per sample, or the
            engine cannot do the model. It is a `ValueError`. Exceptions of `model`, `loss` and
            `reduce` pass through unchanged.

    Limits:
        Engine `"native"` takes the first dimension of a layer's results for the samples', in the
        batch's order. It compares its gradients with autograd's at calls 1, 2, 4, 8, 16, ... with
        the same model, selection and shapes. Parameters that fail are computed from single
        samples from then on, which is slow but exact; a model that mixes samples is refused. A
        model that starts to mix or reorder its samples later therefore gives wrong variances up
        to the next of these calls, at most as many calls as were made before; one that does so
        at other calls only is not noticed. From the second comparison on, parameters with small
        gradients are compared loosely, and in half precision all are: rounding must not refuse a
        correct model. Behind BatchNorm with `batch_statistics="constant"` nothing is compared.

    Source: Ramé et al. 2022 (arXiv:2109.02934), the domain-level gradient variance.
    Departs: Divided by n instead of n - 1, as all public code does.
    """
    sizes = _checked_sizes(sizes, len(inputs))
    if statistic not in STATISTICS:
        raise UnsupportedError(f"statistic={statistic!r}: expected one of {', '.join(STATISTICS)}")
    if batch_statistics not in BATCH_STATISTICS:
        expected = ", ".join(BATCH_STATISTICS)
        raise UnsupportedError(f"batch_statistics={batch_statistics!r}: expected one of {expected}")
    if all_ranks and (within_classes or statistic == "covariance"):
        raise UnsupportedError("all_ranks: not within classes, and not for the covariance")
    parameters = select_parameters(model, scope)
    groups = group_by_class(targets, sizes) if within_classes else None
    if groups:
        inputs, targets = inputs[groups.order], targets[groups.order]
    parts = groups.sizes if groups else sizes
    covariance = statistic == "covariance"
    counts, merge = parts, None
    if all_ranks:
        from .terms.distributed import over_all_ranks

        merge, counts = over_all_ranks(parts, inputs.device)

    def finish(name: str, moments: Moments) -> Tensor:
        """Turn moments into the statistic, reduced if asked for."""
        value = _statistic(merge(moments) if merge else moments, counts, statistic, unbiased)
        if reduce is None:
            return value
        named = by_class(name, value, groups.classes, len(sizes)) if groups else {name: value}
        return torch.stack([reduce(n, v) for n, v in named.items()]).sum()

    if engine == "backpack":
        from .engines.backpack_engine import moments_by_backpack

        logits, losses, moments = moments_by_backpack(
            model, inputs, targets, parts, parameters, loss, create_graph, covariance
        )
        by_name = {name: finish(name, own) for name, own in moments.items()}
    elif engine == "native":
        logits, losses, by_name = native_statistics(
            model,
            inputs,
            targets,
            parts,
            parameters,
            loss,
            create_graph=create_graph,
            memory_limit=_entries(memory_limit, parameters.values()),
            allow_batch_statistics=batch_statistics == "constant",
            covariance=covariance,
            finish=finish,
            to_scalars=reduce is not None,
        )
    else:
        raise UnsupportedError(f"engine={engine!r}: expected 'native' or 'backpack'")
    if groups:
        back = groups.order.argsort()
        logits, losses = logits[back], losses[back]
        if reduce is None:
            by_name = {
                part: v
                for name, value in by_name.items()
                for part, v in by_class(name, value, groups.classes, len(sizes)).items()
            }
    return GradientVariance(logits, losses, by_name)


def _statistic(moments: Moments, sizes: Sequence[int], statistic: str, unbiased: bool) -> Tensor:
    if statistic == "mean":
        return moments.mean
    if statistic == "second_moment":
        return moments.variance + moments.mean.square()
    if not unbiased:
        return moments.variance
    factors = [n / max(1, n - 1) for n in sizes]
    return torch.stack([v * f for v, f in zip(moments.variance, factors, strict=True)])


def _entries(memory_limit: float, parameters: Iterable[Tensor]) -> int:
    """Turn MiB into entries, of four bytes at least."""
    if not memory_limit > 0:
        raise UnsupportedError(f"memory_limit={memory_limit}: must be positive, in MiB")
    size = max(4, *(parameter.element_size() for parameter in parameters))
    return max(1, int(memory_limit * 2**20) // size)


def _checked_sizes(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in sizes)
    for domain, n in enumerate(sizes):
        if n < 2:
            raise UnsupportedError(
                f"sizes[{domain}]={n}: a variance needs at least 2 samples of each domain"
            )
    if not sizes or sum(sizes) != count:
        raise UnsupportedError(
            f"sizes={sizes} add up to {sum(sizes)}, but there are {count} inputs"
        )
    return sizes
