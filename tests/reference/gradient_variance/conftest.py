"""The slow, obvious twin: a loop over samples, one `torch.autograd.grad` each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fishr_exp.gradient_variance import penalty, per_sample_losses


def looped_gradients(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    names: Sequence[str],
    loss: Callable[[Tensor, Tensor], Tensor] = per_sample_losses,
) -> dict[str, Tensor]:
    """Per-sample gradients by parameter, [N, *shape], with graph."""
    by_name = dict(model.named_parameters(remove_duplicate=False))
    parameters = [by_name[name] for name in names]
    rows: list[tuple[Tensor, ...]] = []
    for i in range(len(inputs)):
        own = loss(model(inputs[i : i + 1]), targets[i : i + 1]).sum()
        grads = torch.autograd.grad(own, parameters, create_graph=True, allow_unused=True)
        rows.append(
            tuple(
                torch.zeros_like(p) if g is None else g
                for g, p in zip(grads, parameters, strict=True)
            )
        )
    return {name: torch.stack(g) for name, g in zip(names, zip(*rows, strict=True), strict=True)}


def looped_variances(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    sizes: Sequence[int],
    names: Sequence[str],
    loss: Callable[[Tensor, Tensor], Tensor] = per_sample_losses,
) -> dict[str, Tensor]:
    """Variances by parameter, [D, *shape], with graph."""
    gradients = looped_gradients(model, inputs, targets, names, loss)
    return {
        name: torch.stack([(g - g.mean(0)).square().mean(0) for g in of_all.split(list(sizes))])
        for name, of_all in gradients.items()
    }


@dataclass(frozen=True)
class Twin:
    """The slow twin, for tests to take as a fixture."""

    gradients: Callable[..., dict[str, Tensor]] = looped_gradients
    variances: Callable[..., dict[str, Tensor]] = looped_variances

    @staticmethod
    def assert_same(
        model: nn.Module,
        ours: Mapping[str, Tensor],
        theirs: Mapping[str, Tensor],
        relative: float = 1e-10,
    ) -> None:
        """Variances, and gradients of the penalty at every parameter, agree relative to scale."""
        for name, expected in theirs.items():
            _assert_near(ours[name], expected, relative, name)
        by_name = dict(model.named_parameters())
        parameters = [p for p in by_name.values() if p.requires_grad]
        found, expected_grads = (
            torch.autograd.grad(penalty(v), parameters, allow_unused=True, retain_graph=True)
            for v in (ours, theirs)
        )
        scale = max(float(g.abs().max()) for g in expected_grads if g is not None)
        for name, a, b in zip(by_name, found, expected_grads, strict=False):
            zero = torch.zeros_like(by_name[name])
            a, b = zero if a is None else a, zero if b is None else b
            assert (a - b).abs().max() <= relative * scale + 1e-16, (
                f"gradient of the penalty at {name}"
            )


def _assert_near(ours: Tensor, theirs: Tensor, relative: float, name: str) -> None:
    assert ours.shape == theirs.shape, name
    scale = theirs.detach().abs().max()
    # Dead units leave rounding alone: hence the absolute terms, here and above.
    assert (ours - theirs).abs().max() <= relative * scale + 1e-20, f"variance of {name}"


@pytest.fixture(scope="session")
def twin() -> Twin:
    """The slow twin."""
    return Twin()
