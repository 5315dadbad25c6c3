"""The front door: variances of per-sample gradients, by either engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

from .losses import per_sample_losses
from .native import native_moments
from .scope import select_parameters

Loss = Callable[[Tensor, Tensor], Tensor]

MEMORY_LIMIT = 2**25
"""Most entries of a temporary tensor of per-sample gradients: 128 MiB of float32."""


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
    parameters = select_parameters(model, scope)
    if engine == "backpack":
        from .backpack_engine import moments_by_backpack

        logits, losses, moments = moments_by_backpack(
            model, inputs, targets, sizes, parameters, loss, create_graph
        )
    elif engine == "native":
        logits, losses, moments = native_moments(
            model,
            inputs,
            targets,
            sizes,
            parameters,
            loss,
            create_graph=create_graph,
            memory_limit=MEMORY_LIMIT,
            allow_batch_statistics=False,
        )
    else:
        raise ValueError(f"engine={engine!r}: expected 'native' or 'backpack'")
    return GradientVariance(logits, losses, {name: m.variance for name, m in moments.items()})


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
