"""Ways to compute the same faster, up to rounding: half precision, memory layout, a compiler."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fishr_exp.core.contracts import Model, Trainer
from fishr_exp.core.errors import ConfigError
from fishr_exp.training.step import Autocast

_log = logging.getLogger(__name__)
PRECISIONS = ("fp32", "bf16")


def check_precision(precision: str, trainer: Trainer) -> None:
    """Refuse a precision that there is not, or that a trainer has not.

    Raises:
        ConfigError: If it is refused.
    """
    if precision not in PRECISIONS:
        raise ConfigError("precision", precision, f"choose from {', '.join(PRECISIONS)}")
    if precision != "fp32" and trainer.refuses_autocast:
        raise ConfigError("precision", precision, trainer.refuses_autocast)


def autocast(precision: str, device: torch.device) -> Autocast:
    """Return what makes the context of forward passes.

    Weights, losses, gradient variances and the optimizer's state stay in float32. There is no
    fp16: its gradients need a scale that keeps them from vanishing, and the per-sample gradients
    of layers below the classifier are taken without one.

    Args:
        precision: fp32, or bf16 for matrix products and convolutions in bfloat16; on a CPU,
            depthwise convolutions stay in float32, which is faster there.
        device: Where they are computed.
    """
    enabled = precision == "bf16"
    if enabled and device.type == "cpu":
        return _bf16_on_cpu
    return functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=enabled)


@contextlib.contextmanager
def _bf16_on_cpu() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16), _DepthwiseInFloat32():
        yield


class _DepthwiseInFloat32(TorchFunctionMode):
    """Computes depthwise convolutions in float32, and returns bfloat16 as autocast would.

    In bfloat16, CPUs compute their gradients without a fast kernel if they have a stride, or
    filters of 5×5: up to 300 times slower than in float32. `scripts/bench_precision.py` measures
    what this gains.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let every other function pass."""
        del types
        call = _conv2d if func is torch.conv2d and torch.is_autocast_enabled("cpu") else func
        return call(*args, **(kwargs or {}))


def _conv2d(input: Tensor, weight: Tensor, *others: Any, **named: Any) -> Tensor:
    """Convolve as `torch.conv2d` under autocast, in float32 if it is depthwise."""
    depthwise = weight.shape[1] == 1 < input.shape[-3]
    if not depthwise or weight.dtype is not torch.float32:
        return torch.conv2d(input, weight, *others, **named)
    with torch.autocast("cpu", enabled=False):
        made = torch.conv2d(input.float(), weight, *others, **named)
    return made.to(torch.bfloat16)


def compile_featurizer(model: Model, trainer: Trainer, backend: str = "inductor") -> None:
    """Compile a model's featurizer by `torch.compile`; names of weights stay as they are.

    Args:
        model: The model.
        trainer: That will train it.
        backend: Of the compiler.

    Raises:
        ConfigError: If the trainer refuses a compiled featurizer.
    """
    if trainer.refuses_compile:
        raise ConfigError("compile", "true", trainer.refuses_compile)
    featurizer = model.featurizer
    _log.info("compiling: the first steps and the first evaluation take a minute or two")
    torch._dynamo.reset()  # it counts variants of a function: those of a sweep's earlier runs, too

    # A function of ours: PyTorch's own `Module.compile` passes over an nn.Sequential.
    @functools.partial(torch.compile, backend=backend)
    def compiled(*args: Any, **kwargs: Any) -> Any:
        return featurizer._call_impl(*args, **kwargs)

    def out_of_sight(*args: Any, **kwargs: Any) -> Any:
        # Fishr watches the forward pass by a torch function mode, which the compiler would trace.
        with torch._C.DisableTorchFunction():
            return compiled(*args, **kwargs)

    # Where `Module.compile` keeps it: left out of copies, and of the names of weights.
    featurizer._compiled_call_impl = out_of_sight
