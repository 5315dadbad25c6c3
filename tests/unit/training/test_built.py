"""Parts are checked when they are built, in one line each; any network can be a model."""

from __future__ import annotations

import logging
from collections import namedtuple

import pytest
import torch
from torch import nn

from fishr_exp.contracts import Model, Trainer
from fishr_exp.core._torchvision import torchvision
from fishr_exp.core.contracts import Domains, Minibatch
from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.data.datasets.tensors import TensorDomain
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.models.backbone import backbone
from fishr_exp.models.mlp import mlp
from fishr_exp.training.built import as_domains, as_model, as_trainer, check_fit, two_samples

SMALL = (3, 8, 8)


class Shuffled(nn.Module):
    """Its last layer in use is not the one that was made last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5), nn.Dropout())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu())


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.featurizer = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        self.classifier = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.featurizer(x))


class Pooling(Halves):
    """Does something between its featurizer and its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.featurizer = nn.Conv2d(3, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.featurizer(x).mean((2, 3)))


@pytest.mark.parametrize(
    "network",
    [Shuffled(), Halves(), Pooling(), nn.Sequential(nn.Flatten(), nn.Linear(192, 3)),
     torchvision.models.resnet18(num_classes=3), torchvision.models.vit_b_16(image_size=32)],
    ids=lambda network: type(network).__name__,
)  # fmt: skip
def test_a_network_is_divided_before_its_last_linear_layer(network: nn.Module) -> None:
    shape = (3, 32, 32) if isinstance(network, torchvision.models.VisionTransformer) else SMALL
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.rand(4, *shape)
    network.eval()
    with torch.no_grad():
        expected = network(x)
    samples, stream = torch.rand(2, *shape), torch.get_rng_state()
    model = as_model(network, samples)
    stream_after = torch.get_rng_state()
    assert torch.equal(stream_after, stream)
    assert isinstance(model, Model)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), expected)
    assert sum(v.numel() for v in model.state_dict().values()) == sum(
        v.numel() for v in before.values()
    )


def test_a_network_that_others_share_stays_whole() -> None:
    samples = torch.rand(2, *SMALL)
    network = Shuffled()
    for _ in range(2):
        as_model(network, samples)
    assert isinstance(network.head, nn.Linear)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.linear(x.flatten(1))


class Skipping(Halves):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x.flatten(1)[:, :3]


@pytest.mark.parametrize("network", [Scaled(), nn.Sequential(nn.Flatten()), Skipping()])
def test_a_network_that_does_not_end_in_a_linear_layer_is_refused(network: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"model=\w+: does not end in a linear layer.*Model\("):
        as_model(network, torch.rand(2, *SMALL))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model=int: is not a torch.nn.Module"):
        as_model(3, torch.rand(2, *SMALL))
    with pytest.raises(ConfigError, match="trainer=Linear: is not a Trainer"):
        as_trainer(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="Own: is not a Trainer with an objective"):
        as_trainer(type("Own", (Trainer,), {})(per_sample_losses))
    with pytest.raises(ConfigError, match="dataset=list: is not a dataset with domains"):
        as_domains([1])


def test_an_empty_domain_is_refused() -> None:
    y = torch.zeros(0, dtype=torch.int64)
    domains = Domains("own", {"a": TensorDomain("a", torch.zeros(0, 1, 2, 2), y)}, 2, (1, 2, 2))
    with pytest.raises(ConfigError, match="dataset=own: domain a has no samples"):
        as_domains(domains)


def test_a_module_with_an_objective_becomes_a_trainer() -> None:
    class Own(nn.Module):
        def objective(self, model, batch, step):
            raise NotImplementedError

    trainer = as_trainer(Own())
    assert isinstance(trainer, Trainer)
    assert trainer.min_domains == 1


def test_a_trainer_by_its_objective_keeps_its_printed_name() -> None:
    class Own(nn.Module):
        printed_name = "OWN"

        def objective(self, model, batch, step):
            raise NotImplementedError

    assert vars(type(as_trainer(Own())))["printed_name"] == "OWN"


# --- the samples fit ---------------------------------------------------------------------------


def built(name: str, size: int) -> Model:
    return backbone(
        input_shape=(3, size, size), num_classes=2, library="torchvision", name=name,
        pretrained=False, weights_file=None, freeze_bn=False, dropout=0.5,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 64), ("alexnet", 16)])
def test_samples_that_do_not_fit_are_one_line(name: str, size: int) -> None:
    with pytest.raises(ConfigError, match=f"model={name}: does not fit samples of 3x{size}x{size}"):
        check_fit(built(name, size), torch.rand(2, 3, size, size), 2, name)


def test_networks_with_auxiliary_classifiers_are_without_them() -> None:
    check_fit(built("googlenet", 64), torch.rand(2, 3, 64, 64), 2, "googlenet")


def test_samples_are_those_of_the_dataset() -> None:
    """Words of a vocabulary, or numbers of 64 bits: not what a random image is."""

    class Words:
        name = "a"

        def __len__(self) -> int:
            return 1

        def read(self, indices, augment=None):
            return Minibatch(torch.tensor([[3, 1, 4]])[indices], torch.zeros(len(indices)).long())

    domains = Domains("own", {"a": Words()}, 2, (3,))
    samples = two_samples(domains)
    assert samples.tolist() == [[3, 1, 4]] * 2
    network = nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(6, 2))
    check_fit(as_model(network, samples), samples, 2, "words")


def test_a_sample_that_cannot_be_read_is_told_when_its_turn_comes() -> None:
    class Broken:
        def __len__(self) -> int:
            return 3

        def read(self, indices, augment=None):
            raise TrainingError("0.png: cut off")

    assert two_samples(Domains("own", {"a": Broken()}, 2, SMALL)).shape == (2, *SMALL)


def test_trying_leaves_everything_as_it_was() -> None:
    model = built("resnet18", 32)
    model.featurizer.body.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    samples = torch.rand(2, 3, 32, 32)
    stream = torch.get_rng_state()
    check_fit(model, samples, 2, "resnet18")
    assert torch.equal(torch.get_rng_state(), stream)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


Pair = namedtuple("Pair", "one other")


@pytest.mark.parametrize(
    ("returned", "shown"),
    [(lambda x: Pair(x, x), "Pair"), (lambda x: x[:, :2], r"\[2, 2\]"), (lambda x: x[0], r"\[3\]")],
)
def test_what_are_not_logits_is_one_line(returned, shown: str) -> None:
    class Odd(Model):
        def forward(self, x: torch.Tensor):
            return returned(super().forward(x))

    model = Odd(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(ConfigError, match=rf"model=odd: gives {shown} for two samples, not logits"):
        check_fit(model, torch.rand(2, *SMALL), 3, "odd")


def test_more_outputs_than_classes_are_warned_of(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        check_fit(Model(nn.Flatten(), nn.Linear(192, 9)), torch.rand(2, *SMALL), 3, "wide")
    assert "model=wide has 9 outputs for 3 classes" in caplog.text


def test_one_logit_is_enough_for_two_classes() -> None:
    model = Model(nn.Flatten(), nn.Linear(192, 1))
    check_fit(model, torch.rand(2, *SMALL), 2, "one")
    with pytest.raises(ConfigError, match=r"not logits \[2, 3\]"):
        check_fit(model, torch.rand(2, *SMALL), 3, "one")


def test_a_network_that_reads_a_large_image_at_once_is_warned_of(caplog) -> None:
    def model(size: int) -> Model:
        return mlp(
            input_shape=(3, size, size), num_classes=2, hidden=4, hidden_layers=2,
            single_logit=False,
        )  # fmt: skip

    with caplog.at_level(logging.WARNING):
        check_fit(model(32), torch.rand(2, 3, 32, 32), 2, "mlp")
        check_fit(built("resnet18", 64), torch.rand(2, 3, 64, 64), 2, "resnet18")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        check_fit(model(96), torch.rand(2, 3, 96, 96), 2, "mlp")
    assert "reads all 27648 numbers of a sample of 3x96x96 at once" in caplog.text


def test_a_network_that_is_too_deep_for_its_images_is_warned_of(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        check_fit(built("resnet18", 8), torch.rand(2, 3, 8, 8), 2, "resnet18")
    assert "model=resnet18: 11 of its 17 convolutions see a single pixel" in caplog.text


def test_names_of_some_classes_only_are_refused() -> None:
    domains = {"a": TensorDomain("a", torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]))}
    with pytest.raises(ConfigError, match="names 1 of its 2 classes"):
        as_domains(Domains("own", domains, 2, (1, 2, 2), class_names=("cat",)))
