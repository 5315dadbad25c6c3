import pytest
import torch
from torch import nn

from fishr_exp.core.keeping import keeping_buffers, keeping_modes, keeping_random_streams


@pytest.mark.parametrize("fails", [False, True])
def test_state_is_that_from_before_also_after_an_error(fails):
    networks = [nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)) for _ in range(2)]
    networks[1][0].eval()
    modes = [[part.training for part in network.modules()] for network in networks]
    buffers = [[b.clone() for b in network.buffers()] for network in networks]
    stream = torch.get_rng_state()
    with (
        pytest.raises(KeyError) if fails else keeping_modes(),
        keeping_random_streams(*networks),
        keeping_buffers(*networks),
        keeping_modes(*networks),
    ):
        for network in networks:
            network.train()(torch.randn(4, 3))
        networks[0].eval()
        assert not torch.equal(networks[0][1].running_mean, buffers[0][0])
        assert not torch.equal(torch.get_rng_state(), stream)
        if fails:
            raise KeyError
    assert [[part.training for part in network.modules()] for network in networks] == modes
    assert torch.equal(torch.get_rng_state(), stream)
    for network, before in zip(networks, buffers, strict=True):
        assert all(torch.equal(b, old) for b, old in zip(network.buffers(), before, strict=True))
