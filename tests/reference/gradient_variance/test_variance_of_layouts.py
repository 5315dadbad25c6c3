"""Layers on folded inputs, and weights computed from parameters: by rule, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishr_exp.gradient_variance import UnsupportedError, gradient_variance, penalty

SIZES = (3, 2)
N = sum(SIZES)


def _inputs(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(N, *shape, dtype=torch.float64)


def _check(twin: Any, model: nn.Module, x: Tensor, caplog: Any, *, by_rule: bool = True) -> None:
    """Compare with the loop over samples, at two calls, and see how it was computed."""
    caplog.set_level("INFO")
    model.double()
    y = torch.arange(len(x)) % 3
    for _ in range(2):
        ours = gradient_variance(model, x, y, SIZES, scope="all").variances
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            twin.assert_same(model, ours, twin.variances(model, x, y, SIZES, list(ours)))
        reduced = gradient_variance(model, x, y, SIZES, scope="all", reduce=lambda _, v: v.sum())
        for name, v in ours.items():
            torch.testing.assert_close(reduced.variances[name], v.sum())
    assert ("no rule applies" not in caplog.text) == by_rule


class Folded(nn.Module):
    """Applies layers to an input [N, T, ...] whose samples and positions are one dimension."""

    def __init__(self, layers: nn.Module, positions_first: bool = False, flat: bool = True) -> None:
        super().__init__()
        self.first, self.layers, self.classifier = nn.Linear(4, 4), layers, nn.Linear(4, 3)
        self.positions_first, self.flat = positions_first, flat

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, t = x.shape[:2]
        if self.positions_first:
            x = x.transpose(0, 1)
        x = self.layers(x.flatten(0, 1) if self.flat else x)
        if self.flat:
            x = x.unflatten(0, (t, n) if self.positions_first else (n, t))
        x = torch.tanh(x.transpose(0, 1) if self.positions_first else x)
        return self.classifier(x.flatten(1, -2).mean(1) + x.flatten(1, -2)[:, 0])


def _norm(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


class _Addmm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class _Mm(_Addmm):
    def forward(self, x: Tensor) -> Tensor:
        return x.mm(self.weight) * self.bias


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "two_linear": lambda: nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 4)),
    "addmm": _Addmm,
    "mm": _Mm,
    "layer_norm": lambda: _norm(nn.LayerNorm(4)),
    "rms_norm": lambda: _norm(nn.RMSNorm(4)),
}


@pytest.mark.parametrize("positions", [3, 2 * N])
@pytest.mark.parametrize("name", LAYERS)
def test_samples_and_positions_in_one_dimension(
    twin: Any, name: str, positions: int, caplog: Any
) -> None:
    torch.manual_seed(0)
    _check(twin, Folded(LAYERS[name]()), _inputs(positions, 4), caplog)


@pytest.mark.parametrize("name", LAYERS)
def test_positions_before_samples_in_one_dimension(twin: Any, name: str, caplog: Any) -> None:
    torch.manual_seed(0)
    model = Folded(LAYERS[name](), positions_first=True)
    bare = "norm" in name or name == "mm"  # a copy for each sample is given before the check
    _check(twin, model, _inputs(3, 4), caplog, by_rule=not bare)


@pytest.mark.parametrize("positions", [3, N, 2 * N])
@pytest.mark.parametrize("name", ["linear", "two_linear", "layer_norm", "rms_norm"])
def test_positions_before_samples(twin: Any, name: str, positions: int, caplog: Any) -> None:
    torch.manual_seed(0)
    model = Folded(LAYERS[name](), positions_first=True, flat=False)
    # Of N positions nothing shows at first that they are none of the samples; nor of 2 N, but there
    # the second guess is right, except for copies, which are given before the check.
    by_rule = positions == 3 or (positions > N and "linear" in name)
    _check(twin, model, _inputs(positions, 4), caplog, by_rule=by_rule)


class Video(nn.Module):
    """Convolutions over the frames of all samples."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.norm = nn.Conv2d(2, 2, 1), layer, _norm(nn.GroupNorm(2, 4))
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.norm(self.layer(torch.tanh(self.first(x.flatten(0, 1))))))
        return self.classifier(y.mean((2, 3)).unflatten(0, (len(x), -1)).square().sum(1))


@pytest.mark.parametrize("side", [4, 9])
@pytest.mark.parametrize("transposed", [False, True])
def test_frames_of_videos(twin: Any, side: int, transposed: bool, caplog: Any) -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(2, 4, 3) if transposed else nn.Conv2d(2, 4, 3, padding=1)
    _check(twin, Video(layer), _inputs(3, 2, side, side), caplog)


class Words(nn.Module):
    """One word for each sample, or several, folded."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 6, padding_idx=padding)
        self.classifier = nn.Linear(6, 3)

    def forward(self, words: Tensor) -> Tensor:
        y = torch.tanh(self.table(words.flatten()))
        return self.classifier(y.unflatten(0, (len(words), -1)).sum(1))


@pytest.mark.parametrize("padding", [None, 1])
@pytest.mark.parametrize("shape", [(N,), (N, 3)])
def test_embeddings_of_single_words(
    twin: Any, shape: tuple[int, ...], padding: int | None, caplog: Any
) -> None:
    torch.manual_seed(0)
    _check(twin, Words(padding), torch.randint(0, 4, shape), caplog)


class StandardizedConv(nn.Conv2d):
    """As timm's `StdConv2d`: `F.batch_norm` in training mode works on the weight."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class ScaledConv(nn.Conv2d):
    """As timm's `ScaledStdConv2d`, with a gain for each channel."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None,
            weight=(self.gain * 0.3).view(-1), training=True, momentum=0.0, eps=1e-6,
        )  # fmt: skip
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


class Standardized(nn.Module):
    """Weight-standardized convolutions, in training mode, as all modules are at first."""

    def __init__(self, make: Callable[..., nn.Module], slow: bool = False) -> None:
        super().__init__()
        self.first, self.second = make(2, 3, 3), make(3, 4, 2)
        self.slow = nn.PReLU(4) if slow else nn.Tanh()
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.slow(self.second(F.relu(self.first(x)))).mean((2, 3)))


CONVOLUTIONS: dict[str, Callable[..., nn.Module]] = {
    "standardized": StandardizedConv,
    "scaled": ScaledConv,
    "weight_norm": lambda *a: nn.utils.parametrizations.weight_norm(nn.Conv2d(*a)),
    "old_weight_norm": lambda *a: torch.nn.utils.weight_norm(nn.Conv2d(*a)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("side", [5, 9])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_weights_computed_from_parameters(
    twin: Any, name: str, side: int, slow: bool, caplog: Any
) -> None:
    torch.manual_seed(0)
    model = Standardized(CONVOLUTIONS[name], slow)
    _check(twin, model, _inputs(2, side, side), caplog, by_rule=not slow)


class FoldedChannels(nn.Module):
    """BatchNorm in training mode over samples that look like a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.classifier = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).t().unsqueeze(0)  # [1, 4, N]
        return self.classifier(F.batch_norm(y, None, None, training=True)[0].t())


def test_batch_statistics_of_a_single_row_of_all_samples_are_refused() -> None:
    x = _inputs(4)
    with pytest.raises(UnsupportedError, match="BatchNorm in training mode"):
        gradient_variance(FoldedChannels().double(), x, torch.arange(N) % 3, SIZES, scope="all")


class Derived(nn.Module):
    """Parameters that are sliced, indexed, exponentiated and transposed before they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 7, 4))
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.table = nn.Parameter(torch.randn(6, 2))
        self.scale = nn.Parameter(torch.randn(2, 1, 1))
        self.weight = nn.Parameter(torch.randn(12, 4))
        self.bias = nn.Parameter(torch.randn(12))
        self.mix = nn.Linear(1, 2)
        self.register_buffer("index", torch.arange(16).reshape(4, 4) % 6)
        self.register_buffer("coordinates", torch.linspace(0, 1, 16)[:, None])
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions[:, :4]
        bias = self.bias.clone()
        bias[4:8].zero_()
        q, k = F.linear(x, self.weight[:8], bias[:8]).unflatten(2, (2, 2, 2)).permute(2, 0, 3, 1, 4)
        v = (x @ self.weight[8:].t() + bias[8:]).unflatten(2, (2, 2)).transpose(1, 2)
        of_index = self.table[self.index].permute(2, 0, 1).contiguous()
        of_mix = torch.tanh(self.mix(self.coordinates)).view(4, 4, 2).permute(2, 0, 1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(2, 3)
        scores = scores * self.scale.exp() + of_index.unsqueeze(0) + 4 * of_mix.sigmoid()
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.classifier(torch.tanh(y).mean(1))


def test_parameters_that_are_changed_before_they_are_used(twin: Any, caplog: Any) -> None:
    torch.manual_seed(0)
    _check(twin, Derived(), _inputs(3, 4), caplog)


class Constants(nn.Module):
    """Parameters on constants that are made in the forward pass, repeated and added to scores."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.classifier = nn.Parameter(torch.randn(1, 1, 4)), nn.Linear(4, 3)
        self.embed, self.to_bias = nn.Linear(1, 4), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(4, device=x.device).to(x.dtype)[:, None] / 4
        x = torch.cat([self.token.repeat(len(x), 1, 1), x], 1)
        x = x + self.embed(places).unsqueeze(0).repeat(len(x), 1, 1)
        padded = torch.zeros(len(x), 4, 5, dtype=x.dtype)
        padded[:, :, :4] = x
        heads = padded[:, :, :4].unflatten(2, (2, 2)).transpose(1, 2)
        bias = self.to_bias(places - places.t().reshape(4, 1, 1)).permute(2, 0, 1)
        y = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=torch.tanh(bias)[None])
        return self.classifier(y.transpose(1, 2).flatten(2)[:, 0])


def test_constants_of_the_forward_pass(twin: Any, caplog: Any) -> None:
    torch.manual_seed(0)
    _check(twin, Constants(), _inputs(3, 4), caplog)


class Written(nn.Module):
    """Writes its samples into a constant, in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.classifier = how, nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = torch.zeros(len(x), 4, dtype=x.dtype)
        if self.how == "copy":
            y.copy_(x)
        elif self.how == "view":
            y[:].copy_(x)
        elif self.how == "add":
            y += x
        elif self.how == "without_grad":
            with torch.no_grad():
                y[:] = x
            y = y + x
        return self.classifier(F.batch_norm(torch.tanh(y), None, None, training=True))


@pytest.mark.parametrize("how", ["copy", "view", "add", "without_grad"])
def test_constants_into_which_samples_are_written(how: str) -> None:
    x = _inputs(4)
    with pytest.raises(UnsupportedError, match="BatchNorm in training mode"):
        gradient_variance(Written(how).double(), x, torch.arange(N) % 3, SIZES, scope="all")


class Overwritten(nn.Module):
    """A tensor of parameters, into which samples are written."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.classifier = nn.Parameter(torch.randn(2, 4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.token * 1
        mean[0] = x.detach().mean(0)  # of all samples, but they have no gradient through it
        return self.classifier(torch.tanh(x * self.token[1] + mean[1]))


def test_tensors_into_which_samples_are_written(twin: Any) -> None:
    torch.manual_seed(0)
    model, x, y = Overwritten().double(), _inputs(4), torch.arange(N) % 3
    ours = gradient_variance(model, x, y, SIZES, scope="all").variances
    twin.assert_same(model, ours, twin.variances(model, x, y, SIZES, list(ours)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_derived_weights_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Standardized(ScaledConv)
    x, y = _inputs(2, 5, 5).float(), torch.arange(N) % 3
    exact = gradient_variance(model, x, y, SIZES, scope="all").variances
    with torch.autocast("cpu", dtype):
        found = gradient_variance(model, x, y, SIZES, scope="all").variances
        penalty(found).backward()
    for name, v in exact.items():
        assert (found[name] - v).norm() < 0.2 * v.norm() + 1e-6, name


class Sounds(nn.Module):
    """Short sounds, several for each sample, folded into one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.classifier = nn.Conv1d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.layer(x.flatten(0, 1)))
        return self.classifier(y.mean(2).unflatten(0, (len(x), -1)).square().sum(1))


def test_sounds_in_one_dimension(twin: Any, caplog: Any) -> None:
    torch.manual_seed(0)
    _check(twin, Sounds(), _inputs(3, 2, 9), caplog)
