"""The main function: variances of per-sample gradients, by either engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .engines.native import WithGradient, native_statistics
from .errors import UnsupportedError
from .losses import Loss, per_sample_losses
from .scope import select_parameters
from .terms.classes import Grouping, by_class, group_by_class
from .terms.moments import Moments

ENGINES = ("native", "backpack")
STATISTICS = ("variance", "second_moment", "mean", "covariance")
BATCH_STATISTICS = ("refuse", "constant")


class GradientVariance(NamedTuple):
    """Results of one forward pass over all domains."""

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
        inputs: [N, ...], the concatenated minibatches of all domains.
        targets: [N].
        sizes: The D sizes of the minibatches, each at least 2; they sum to N, and may differ.
        scope: `"all"`, or patterns of parameter and module names (see `select_parameters`).
        engine: `"native"`, or `"backpack"`, the independent reference.
        loss: Maps logits [N, C] and targets [N] to losses [N], each of its own sample.
        create_graph: Whether the variances are differentiable. If not, they are constants, while
            logits and losses still have a graph.
        statistic: What is returned instead of the variance: `"second_moment"`, mean_i g_i^2, is
            the uncentered variance; `"mean"` is mean_i g_i; `"covariance"` is the whole
            matrix for each parameter, [D, P, P], which keeps all g_i, and is not for convolutions.
        unbiased: Divide variance or covariance by n - 1 instead of n.
        within_classes: Compute the statistic within each class that has two samples in every
            domain; the results are named `parameter[class]`. Without such a class: zeros named
            `parameter`.
        batch_statistics: What to do if BatchNorm in training mode couples the samples between
            the selected parameters and the loss. `"constant"` uses as g_i the part of the
            gradient of the summed loss that passes through sample i's own activations.
        memory_limit: Maximum size of a temporary tensor of per-sample gradients, in MiB; one
            sample's gradient may exceed it. Engine `"native"` only.
        all_ranks: Compute the statistic over the samples of all processes of `torch.distributed`,
            each of which calls this with its own shard of each domain. Gradients are correct once
            averaged over the processes, as in data-parallel training. Logits and losses are those
            of this process only.
        reduce: Maps a parameter's name and its statistic [D, ...] to a scalar, as soon as they are
            known; the result then has the scalar instead of the statistic. Its gradient is computed
            immediately, so that no [D, ...] stays in memory, which matters for large models. With a
            method `with_gradient(name, variance)` that returns the scalar and its gradient at the
            variance, small layers need no backward pass.

    Returns:
        Logits, losses and the variances by parameter name. A selected parameter that does not
        contribute to the loss has variance 0.

    Raises:
        UnsupportedError: If a size is below 2, the sizes do not sum to N, the scope selects
            nothing, an argument is unknown or out of range, the loss is not per sample, or the
            engine does not support the model. It is a `ValueError`. Exceptions of `model`, `loss`
            and `reduce` pass through unchanged.

    Limits:
        Engine `"native"` assumes that the first dimension of a layer's output is the sample, in the
        order of the batch; if it has another size, that samples and positions are folded, [N * T,
        ...], or positions come first, [T, N, ...]. It compares its gradients with autograd's at
        calls 1, 2, 4, 8, 16, ... with the same model, selection and shapes. From then on,
        parameters that fail are computed from single samples, which is slow but exact; a model that
        mixes samples is refused. So a
        model that starts to mix or reorder its samples later gives wrong variances until the next
        of these calls, at most as many calls as were made before; one that does so only at other
        calls is not detected. From the second comparison on, parameters with small gradients are
        compared loosely, and in half precision all are, so that rounding never refuses a correct
        model. After BatchNorm with `batch_statistics="constant"` nothing is compared, and no layout
        is guessed.

        What is computed from single samples is vectorized by `torch.func`, unless that gives other
        gradients, or another gradient of the variances, than autograd does on two samples (as over
        TorchScript); this is compared at the same calls. If it does, the samples run in a loop.

    Source: Ramé et al. 2022 (arXiv:2109.02934), the domain-level gradient variance.
    Departs: Divided by n instead of n - 1, as all public code does.
    """
    sizes = _checked_sizes(sizes, len(inputs))
    _check_choices(engine, statistic, batch_statistics)
    if all_ranks and (within_classes or statistic == "covariance"):
        raise UnsupportedError(
            "all_ranks: not supported with within_classes or statistic='covariance'"
        )
    options = _Options(
        select_parameters(model, scope), engine, loss, create_graph, statistic, unbiased,
        batch_statistics, memory_limit, all_ranks, reduce,
    )  # fmt: skip
    groups = group_by_class(targets, sizes) if within_classes else None
    return _compute(model, inputs, targets, sizes, options, groups)


class _Options(NamedTuple):
    """Arguments of `gradient_variance`, checked."""

    parameters: dict[str, nn.Parameter]
    engine: str
    loss: Loss
    create_graph: bool
    statistic: str
    unbiased: bool
    batch_statistics: str
    memory_limit: float
    all_ranks: bool
    reduce: Callable[[str, Tensor], Tensor] | None


def _compute(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    sizes: tuple[int, ...],
    options: _Options,
    groups: Grouping | None,
) -> GradientVariance:
    """Compute the statistic by the engine; `groups` are the samples by class, if given."""
    if groups:
        inputs, targets = inputs[groups.order], targets[groups.order]
    counts, merge = groups.sizes if groups else sizes, None
    if options.all_ranks:
        from .terms.distributed import over_all_ranks

        merge, counts = over_all_ranks(counts, inputs.device)

    def split(name: str, value: Tensor) -> dict[str, Tensor]:
        return by_class(name, value, groups.classes, len(sizes)) if groups else {name: value}

    def finish(name: str, moments: Moments) -> Tensor:
        """Turn moments into the statistic, reduced if requested."""
        merged = merge(moments) if merge else moments
        value = _statistic(merged, counts, options.statistic, options.unbiased)
        reduce = options.reduce
        if reduce is None:
            return value
        return torch.stack([reduce(n, v) for n, v in split(name, value).items()]).sum()

    parts = groups.sizes if groups else sizes
    as_computed = (options.statistic, options.unbiased, merge, groups) == (
        "variance",
        False,
        None,
        None,
    )
    with_gradient = getattr(options.reduce, "with_gradient", None) if as_computed else None
    logits, losses, by_name = _by_engine(
        model, inputs, targets, parts, options, finish, with_gradient
    )
    if groups:
        back = groups.order.argsort()
        logits, losses = logits[back], losses[back]
    if options.reduce is None:
        by_name = {n: v for name, own in by_name.items() for n, v in split(name, own).items()}
    return GradientVariance(logits, losses, by_name)


def _by_engine(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    parts: tuple[int, ...],
    options: _Options,
    finish: Callable[[str, Moments], Tensor],
    with_gradient: WithGradient | None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return logits, losses, and the result of `finish` for the moments of each parameter."""
    parameters, covariance = options.parameters, options.statistic == "covariance"
    if options.engine == "backpack":
        from .engines.backpack_engine import moments_by_backpack

        logits, losses, moments = moments_by_backpack(
            model, inputs, targets, parts, parameters, options.loss, options.create_graph,
            covariance,
        )  # fmt: skip
        return logits, losses, {name: finish(name, own) for name, own in moments.items()}
    return native_statistics(
        model,
        inputs,
        targets,
        parts,
        parameters,
        options.loss,
        create_graph=options.create_graph,
        memory_limit=_entries(options.memory_limit, parameters.values()),
        allow_batch_statistics=options.batch_statistics == "constant",
        covariance=covariance,
        finish=finish,
        to_scalars=options.reduce is not None,
        with_gradient=with_gradient,
    )


def _check_choices(engine: str, statistic: str, batch_statistics: str) -> None:
    for name, value, allowed in (
        ("engine", engine, ENGINES),
        ("statistic", statistic, STATISTICS),
        ("batch_statistics", batch_statistics, BATCH_STATISTICS),
    ):
        if value not in allowed:
            raise UnsupportedError(f"{name}={value!r}: expected one of {', '.join(allowed)}")


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
    """Convert MiB to a number of entries of at least four bytes."""
    if not memory_limit > 0:
        raise UnsupportedError(f"memory_limit={memory_limit}: must be positive, in MiB")
    size = max(4, *(parameter.element_size() for parameter in parameters))
    return max(1, int(memory_limit * 2**20) // size)


def _checked_sizes(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in sizes)
    for domain, n in enumerate(sizes):
        if n < 2:
            raise UnsupportedError(
                f"sizes[{domain}]={n}: a variance needs at least 2 samples per domain"
            )
    if not sizes or sum(sizes) != count:
        raise UnsupportedError(f"sizes={sizes} sum to {sum(sizes)}, but there are {count} inputs")
    return sizes
