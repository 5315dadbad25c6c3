"""Every layer with a rule, and some without, against the loop over samples, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishr_exp.gradient_variance import gradient_variance

SIZES = (3, 2)
N = sum(SIZES)


class Applied(nn.Module):
    """A layer, what makes its output a vector, and a classifier."""

    def __init__(self, layer: nn.Module, width: int, before: nn.Module | None = None) -> None:
        super().__init__()
        self.before = before or nn.Identity()
        self.layer = layer
        self.classifier = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.before(x))
        return self.classifier(torch.tanh(y.flatten(1)))


def _check(twin: Any, model: nn.Module, x: Tensor, scope: str = "all", **options: Any) -> None:
    model.double()
    y = torch.arange(len(x)) % 3
    ours = gradient_variance(model, x, y, SIZES, scope=scope, **options).variances
    assert ours
    twin.assert_same(model, ours, twin.variances(model, x, y, SIZES, list(ours)))


def _inputs(*shape: int) -> Tensor:
    return torch.randn(N, *shape, dtype=torch.float64)


def _width(layer: nn.Module, x: Tensor) -> int:
    return layer.double()(x).flatten(1).shape[1]


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 6)),
    "many_positions": (lambda: nn.Conv2d(2, 3, 3), (2, 9, 10)),
    "stride": (lambda: nn.Conv2d(2, 3, 3, stride=(2, 3), padding=1), (2, 8, 9)),
    "dilation": (lambda: nn.Conv2d(2, 3, (3, 2), dilation=2, padding=(2, 1)), (2, 7, 7)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 9, 9)),
    "same": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same"), (2, 5, 6)),
    "valid": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 6)),
    "reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 6)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 6)),
    "replicate": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"), (2, 5, 6)),
    "one_d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 9)),
    "one_d_same": (lambda: nn.Conv1d(2, 3, 4, padding="same", dilation=2), (2, 9)),
    "three_d": (lambda: nn.Conv3d(2, 2, 2, stride=(1, 2, 1), padding=1), (2, 3, 4, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), (2, 4, 4)),
    "transposed_1d": (lambda: nn.ConvTranspose1d(2, 4, 3, groups=2, padding=1), (2, 5)),
}


@pytest.mark.parametrize("memory_limit", [128, 3e-4])
@pytest.mark.parametrize("before", [nn.Identity, nn.Tanh], ids=["first", "deeper"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(
    twin: Any, name: str, before: Callable[[], nn.Module], memory_limit: float
) -> None:
    torch.manual_seed(0)
    make, shape = CONVOLUTIONS[name]
    x = _inputs(*shape)
    first = nn.Identity() if before is nn.Identity else nn.Conv1d(shape[0], shape[0], 1)
    if before is not nn.Identity:  # so that the input of the layer under test needs a gradient
        kinds = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}
        first = nn.Sequential(kinds[len(shape)](shape[0], shape[0], 1), nn.Tanh())
    model = Applied(make(), _width(make(), x), first)
    _check(twin, model, x, memory_limit=memory_limit)


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: nn.LayerNorm(4), (3, 4)),
    "layer_image": (lambda: nn.LayerNorm([4, 3, 3]), (4, 3, 3)),
    "group": (lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "group_vector": (lambda: nn.GroupNorm(2, 8), (8,)),
    "instance": (lambda: nn.InstanceNorm2d(4, affine=True), (4, 3, 3)),
    "instance_tracked": (
        lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True).eval(),
        (4, 5),
    ),
    "batch": (lambda: nn.BatchNorm2d(4).eval(), (4, 3, 3)),
    "batch_vector": (lambda: nn.BatchNorm1d(4).eval(), (4,)),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("scope", ["all", "before", "layer.weight"])
def test_normalizations(twin: Any, name: str, scope: str) -> None:
    torch.manual_seed(0)
    make, shape = NORMS[name]
    x = _inputs(*shape)
    layer = make()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    if getattr(layer, "running_mean", None) is not None:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    before = nn.Sequential(nn.Linear(shape[-1], shape[-1]), nn.ReLU(inplace=True))
    _check(twin, Applied(layer, _width(layer, x), before), x, scope)


class Tokens(nn.Module):
    """Class token, positions, layer scale, attention, in the manner of a vision transformer."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(1, 7, 4))
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.scale = nn.Parameter(torch.randn(4))
        self.classifier = nn.Linear(4, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.positions
        z = self.norm(x)
        z = z if self.batch_first else z.transpose(0, 1)
        z = self.attention(z, z, z, need_weights=False)[0]
        z = z if self.batch_first else z.transpose(0, 1)
        x = x + self.scale * z
        return self.classifier(x[:, 0])


def _math_attention() -> Any:
    return nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH)


@pytest.mark.parametrize("batch_first", [True, False])
def test_tokens_and_attention(twin: Any, batch_first: bool) -> None:
    torch.manual_seed(0)
    with _math_attention():  # for the loop, whose second derivative needs it
        _check(twin, Tokens(batch_first), _inputs(6, 3))


def test_attention_with_as_many_positions_as_samples(twin: Any) -> None:
    torch.manual_seed(0)
    with _math_attention():
        model = Tokens()
        model.positions = nn.Parameter(torch.randn(1, N, 4))
        _check(twin, model, _inputs(N - 1, 3))


class Crossed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.attention(x[:, :2], x, x.tanh())[0].sum(1))


def test_attention_to_other_tokens(twin: Any) -> None:
    torch.manual_seed(0)
    with _math_attention():
        _check(twin, Crossed(), _inputs(4, 4))


class Words(nn.Module):
    """An embedding whose table is the classifier's weight, too."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4, padding_idx=padding)
        self.mix = nn.Linear(4, 4)
        self.classifier = nn.Linear(4, 3)
        self.classifier.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.mix(self.table(words))).mean(1))


@pytest.mark.parametrize("padding", [None, 0, -1])
def test_embeddings_and_shared_weights(twin: Any, padding: int | None) -> None:
    torch.manual_seed(0)
    _check(twin, Words(padding), torch.randint(0, 3, (N, 5)))


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.classifier = nn.Linear(4 * 9 * 9 if isinstance(layer, nn.Conv2d) else 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layer(x), inplace=True)
        x = x + torch.tanh(self.layer(x))
        return self.classifier(x.flatten(1))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 4), (4,)),
        (nn.Conv2d(4, 4, 3, padding=1), (4, 9, 9)),
        (nn.LayerNorm(4), (4,)),
    ],
    ids=["linear", "convolution", "norm"],
)
def test_a_module_used_twice(twin: Any, layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    _check(twin, Twice(layer), _inputs(*shape))


class Residual(nn.Module):
    """In-place activations and additions, as in torchvision's ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4).eval()
        self.spare = nn.Linear(2, 2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        y = self.norm(self.conv(x))
        y += x
        return self.fc(F.relu_(y).mean((2, 3)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_residuals_in_place(twin: Any, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = Residual().to(memory_format=memory_format)
    model.conv.weight.requires_grad_(True)
    model.stem.bias.requires_grad_(False)
    _check(twin, model, _inputs(2, 6, 6).to(memory_format=memory_format))


class ByHand(nn.Module):
    """Parameters that functions take, not modules."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 5))
        self.gain = nn.Parameter(torch.randn(5))
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x @ self.w) * self.gain
        return F.linear(y, self.fc.weight) + self.fc.bias


def test_functions_by_hand(twin: Any) -> None:
    torch.manual_seed(0)
    _check(twin, ByHand(), _inputs(4))
    _check(twin, ByHand(), _inputs(3, 4).mean(1))


class PositionsFirst(nn.Module):
    """Works on [T, N, K] with T = N: only the result shows that the first dimension is not N's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.layer(x.transpose(0, 1)))
        return self.classifier(y.transpose(0, 1)[:, 0] + y[-1])


def test_positions_taken_for_samples_are_found_out(
    twin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    caplog.set_level("INFO")
    model = PositionsFirst()
    _check(twin, model, _inputs(N, 4))
    _check(twin, model, _inputs(N, 4))
    assert caplog.text.count("no rule applies to layer.bias, layer.weight") == 1


@pytest.mark.parametrize("batch_statistics", ["refuse", "constant"])
def test_rules_are_checked_where_batch_statistics_are_allowed(
    twin: Any, batch_statistics: str
) -> None:
    torch.manual_seed(0)
    _check(twin, PositionsFirst(), _inputs(N, 4), batch_statistics=batch_statistics)


class Sorted(nn.Module):
    """Works on its samples in another order, but for the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.conv = nn.Conv1d(1, 1, 3)
        self.classifier = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        order = torch.arange(len(x)).flip(0).roll(1)
        y = self.conv(self.norm(torch.tanh(self.layer(x[order])))[:, None])
        return self.classifier(y[:, 0])[order.argsort()]


@pytest.mark.parametrize("scope", ["all", "classifier"])
def test_samples_in_another_order_are_found_out(twin: Any, scope: str) -> None:
    torch.manual_seed(0)
    _check(twin, Sorted(), _inputs(4), scope)


class ChangedLogits(nn.Module):
    """Changes its classifier's result in place, behind BatchNorm in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.classifier(self.norm(x))
        z *= torch.tensor([3.0, 0.1, -2.0])
        return z


@pytest.mark.parametrize("scope", ["all", "classifier"])
def test_logits_changed_in_place(twin: Any, scope: str) -> None:
    torch.manual_seed(0)
    model, x, y = ChangedLogits().double(), _inputs(4), torch.arange(N) % 3
    ours = gradient_variance(model, x, y, SIZES, scope=scope, batch_statistics="constant").variances
    constants = copy.deepcopy(model).eval()
    constants.norm.running_mean, constants.norm.running_var = x.mean(0), x.var(0, correction=0)
    expected = twin.variances(constants, x, y, SIZES, ["classifier.weight", "classifier.bias"])
    for name, v in expected.items():
        torch.testing.assert_close(ours[name], v, rtol=1e-10, atol=0)


@pytest.mark.parametrize("scopes", [("layer.bias", "layer.weight"), ("layer.weight", "layer.bias")])
def test_what_one_scope_found_out_is_not_taken_for_another(
    twin: Any, scopes: tuple[str, str]
) -> None:
    torch.manual_seed(0)
    model = PositionsFirst()
    for scope in scopes:
        _check(twin, model, _inputs(N, 4), scope)


class Scripted(nn.Module):
    """A use that no torch function shows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(_Hidden.apply(x, self.weight))


class _Hidden(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:  # type: ignore[override]
        return x * w * w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, w = ctx.saved_tensors
        return grad * w * w, 2 * (grad * x * w).reshape(-1, len(w)).sum(0)


class _Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(4, 4, 4)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.layer(x, x)))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(4, 3, batch_first=True)
        self.classifier = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layer(x)[0][:, -1])


WITHOUT_RULE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "prelu": (lambda: Applied(nn.PReLU(4), 12, nn.Linear(3, 3)), (4, 3)),
    "bilinear": (_Bilinear, (4,)),
    "weight_norm": (
        lambda: Applied(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), 4),
        (4,),
    ),
    "hidden": (Scripted, (4,)),
    "recurrent": (_Recurrent, (3, 4)),
}


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_what_has_no_rule_runs_one_by_one(twin: Any, name: str) -> None:
    torch.manual_seed(0)
    make, shape = WITHOUT_RULE[name]
    _check(twin, make(), _inputs(*shape))


class SequenceFirst(nn.Module):
    """Layers that work on [T, N, K], where no rule holds."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(4, 3)
        for layer in self.modules():
            if isinstance(layer, nn.LayerNorm):
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.layers(x.transpose(0, 1)))[0])


class _LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, self.normalized_shape, self.weight, self.bias)


SEQUENCE_FIRST: dict[str, Callable[[], list[nn.Module]]] = {
    "norm": lambda: [nn.Linear(4, 4), nn.LayerNorm(4)],
    "norm_by_hand": lambda: [nn.Linear(4, 4), _LayerNorm(4)],
    "encoder": lambda: [nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)],
    "encoder_norm_first": lambda: [
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, norm_first=True)
    ],
}


@pytest.mark.parametrize("name", SEQUENCE_FIRST)
def test_second_derivatives_of_what_has_no_rule(twin: Any, name: str) -> None:
    torch.manual_seed(0)
    model = SequenceFirst(*SEQUENCE_FIRST[name]()).double()
    x, y = _inputs(4, 4), torch.arange(N) % 3
    ours = gradient_variance(model, x, y, SIZES, scope="all").variances
    with _math_attention():
        twin.assert_same(model, ours, twin.variances(model, x, y, SIZES, list(ours)))


class _Attended(nn.Module):
    """Attention by hand behind a layer without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.PReLU(4)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x.flatten(0, 1)).view_as(x)
        return self.classifier(F.scaled_dot_product_attention(x, x, x)[:, 0])


def test_attention_behind_what_has_no_rule(twin: Any) -> None:
    torch.manual_seed(0)
    model, x, y = _Attended().double(), _inputs(6, 4), torch.arange(N) % 3
    ours = gradient_variance(model, x, y, SIZES, scope="all").variances
    with _math_attention():
        twin.assert_same(model, ours, twin.variances(model, x, y, SIZES, list(ours)))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smoothed": lambda z, y: F.cross_entropy(z, y, reduction="none", label_smoothing=0.1),
    "weighted": lambda z, y: F.cross_entropy(
        z, y, weight=torch.tensor([1.0, 2.0, 0.5]).to(z), reduction="none"
    ),
    "squared": lambda z, y: (z - F.one_hot(y, 3)).square().sum(1),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scope", ["all", "classifier"])
def test_any_loss_of_each_sample(twin: Any, name: str, scope: str) -> None:
    torch.manual_seed(0)
    model = Applied(nn.Linear(4, 4), 4).double()
    x, y = _inputs(4), torch.arange(N) % 3
    loss = LOSSES[name]
    ours = gradient_variance(model, x, y, SIZES, scope=scope, loss=loss).variances
    twin.assert_same(model, ours, twin.variances(model, x, y, SIZES, list(ours), loss))
