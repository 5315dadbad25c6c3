"""In half precision the heart computes the network's own logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fishr_exp.gradient_variance import gradient_variance


class Network(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.classifier = nn.Linear(6, 5), norm, nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(0.1 * self.first(x)))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_the_logits_are_the_networks(norm: type[nn.Module], autocast: bool) -> None:
    torch.manual_seed(0)
    network, x = Network(norm(5)), 0.3 * torch.randn(6, 6)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    if not autocast:
        network, x = network.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected = network(x)
        found = gradient_variance(network, x, y, [3, 3], scope="all")
    difference = (expected.float() - found.logits.float()).abs().max()
    assert difference <= 0.01 * expected.float().abs().max()
