"""Comparison of per-sample gradients, and of their own gradients, with those of a batch of two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

Way = Callable[..., tuple[dict[str, Tensor], Tensor]]
"""Maps model, inputs, targets, parameters, loss and `create_graph` to gradients and losses."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference, relative to the norm; 0.1 in half precision."""

FLOOR = 0.1
"""A parameter's difference is compared to at least this fraction of the largest norm of all."""


class _Sums(NamedTuple):
    """First and second derivatives of a randomly weighted sum of losses."""

    first: Sequence[Tensor]  # G, the gradients at the selected parameters
    second: Sequence[Tensor]  # the gradients of <G, U>, with U random, at all parameters


class Probe:
    """Two samples, with what autograd gives for both together.

    sum_i w_i g_i, of per-sample gradients g_i, must be the gradient of sum_i w_i l_i, and so must
    be their gradients. Computed without autocast, and with logits that are scaled to [-1, 1], where
    no loss is saturated, so that little but wrong derivatives makes a difference.

    Attributes:
        can_compare: Whether the batch of two itself can be differentiated as often as needed.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        parameters: Mapping[str, nn.Parameter],
        loss: Callable[[Tensor, Tensor], Tensor],
        create_graph: bool,
    ) -> None:
        self.model, self.parameters, self.loss = model, parameters, loss
        self.create_graph = create_graph
        self.selected = list(parameters.values())
        self.all = [p for p in model.parameters() if p.requires_grad]
        first = self.selected[0]
        self.dtype, self.device = first.dtype, inputs.device.type
        self.inputs, self.targets = inputs[:2].detach(), targets[:2]
        if inputs.is_floating_point():
            self.inputs = self.inputs.to(first.dtype)
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(2, generator=generator).to(first)
        self.directions = [torch.randn(p.shape, generator=generator).to(p) for p in self.selected]
        self.scale = 1.0
        self._expected = self._of_the_batch()

    @property
    def can_compare(self) -> bool:
        """Whether there is something to compare with."""
        return self._expected is not None

    def disagreement(self, way: Way, may_fail: bool) -> str | None:
        """Why gradients computed in a `way` are not those of the batch; None if they are.

        Exceptions in the way pass through, `RuntimeError` only unless it `may_fail`.
        """
        assert self._expected is not None
        with torch.autocast(self.device, enabled=False), torch.enable_grad():
            arguments = (self.inputs, self.targets, self.parameters, self._scaled_loss)
            try:
                gradients, _ = way(self.model, *arguments, self.create_graph)
            except RuntimeError as error:
                if not may_fail:
                    raise
                return f"does not support this model ({str(error).splitlines()[0]})"
            first = [torch.tensordot(self.weights.to(g), g, 1) for g in gradients.values()]
            if not self._same(first, self._expected.first):
                return "gives other gradients than the batch"
            try:
                found = self._with_second(first)
            except RuntimeError as error:
                return f"cannot be differentiated ({str(error).splitlines()[0]})"
        if not self._same(found.second, self._expected.second):
            return "gives another gradient of the penalty than the batch"
        return None

    def _of_the_batch(self) -> _Sums | None:
        try:
            with torch.autocast(self.device, enabled=False), torch.enable_grad():
                logits = self.model(self.inputs)
                self.scale = 1 / (1 + float(logits.detach().abs().max()))
                total = (self.weights * self._scaled_loss(logits, self.targets)).sum()
                first = torch.autograd.grad(
                    total, self.selected, create_graph=self.create_graph, materialize_grads=True
                )
                sums = self._with_second(first)
        except RuntimeError:
            return None
        return sums if all(g.isfinite().all() for g in (*sums.first, *sums.second)) else None

    def _with_second(self, first: Sequence[Tensor]) -> _Sums:
        constants = [g.detach() for g in first]
        if not self.create_graph:
            return _Sums(constants, [])
        products = [(u * g).sum() for u, g in zip(self.directions, first, strict=True)]
        total = torch.stack(products).sum()
        if not total.requires_grad:
            return _Sums(constants, [torch.zeros_like(p) for p in self.all])
        return _Sums(constants, torch.autograd.grad(total, self.all, materialize_grads=True))

    def _scaled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.scale * logits, targets)

    def _same(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        tolerance = TOLERANCE.get(self.dtype, 0.1)
        largest = max((float(e.norm()) for e in expected), default=0.0)
        return all(
            float((f.detach() - e).norm()) <= tolerance * max(float(e.norm()), FLOOR * largest)
            for f, e in zip(found, expected, strict=True)
        )
