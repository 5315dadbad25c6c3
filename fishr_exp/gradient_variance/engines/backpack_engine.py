"""The reference engine: per-sample gradients by BackPACK (Dangel et al. 2020).

The only file that uses BackPACK. It works on a copy of the model that shares its parameters and
buffers, so that the user's modules never have BackPACK's hooks, and nothing remains after the call.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from traceback import walk_tb

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..losses import losses_of_samples
from ..terms.moments import Moments, moments_of_gradients


def moments_by_backpack(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    sizes: Sequence[int],
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
    create_graph: bool,
    covariance: bool,
) -> tuple[Tensor, Tensor, dict[str, Moments]]:
    """Moments of the per-sample gradients of `parameters`; see `gradient_variance`.

    Keeps all per-sample gradients in memory.

    Returns:
        Logits [N, C], losses [N], and the moments by parameter name.

    Raises:
        UnsupportedError: If BackPACK does not support a module, or the model uses a parameter in a
            way that BackPACK does not see. Exceptions of the model and the loss pass through.

    Source: Dangel, Kunstner, Hennig 2020, "BackPACK: Packing more into backprop", `BatchGrad`.
    """
    from backpack import backpack, extend
    from backpack.context import CTX
    from backpack.extensions import BatchGrad

    copied, handles = _copy_modules(model), len(CTX.hook_handles)
    features: list[Tensor] = []
    _refuse_batch_statistics(copied, parameters)
    for module in _owners(copied, parameters):
        # BackPACK's hooks only fire if gradients of the modules' inputs are requested too.
        module.register_forward_pre_hook(lambda _, args: features.extend(args))
        extend(module)
    wanted = list(parameters.values())
    try:
        logits = copied(inputs)
        losses = losses_of_samples(loss, logits, targets, len(inputs))
        at = wanted + [x for x in features if isinstance(x, Tensor) and x.requires_grad]
        # From BackPACK's hooks, here and in the caller's backward pass.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        with backpack(BatchGrad()):
            totals = torch.autograd.grad(
                losses.sum(), at, create_graph=create_graph, retain_graph=True, allow_unused=True
            )
        gradients = {
            name: _collect(name, parameter, total, len(inputs))
            for (name, parameter), total in zip(parameters.items(), totals, strict=False)
        }
    except (AttributeError, RuntimeError, ValueError) as error:
        if not _is_from_backpack(error):
            raise
        raise UnsupportedError(
            f"engine='backpack': BackPACK does not support this model ({error}); "
            "use engine='native'"
        ) from error
    finally:
        features.clear()  # they refer to the graph, which refers to the hooks that hold them
        _forget(copied, wanted, handles)
    if not create_graph:
        gradients = {name: g.detach() for name, g in gradients.items()}
    return (
        logits,
        losses,
        {n: moments_of_gradients(g, sizes, covariance) for n, g in gradients.items()},
    )


def _is_from_backpack(error: Exception) -> bool:
    """Whether `error` is from BackPACK, and not from the model, the loss, or lack of memory."""
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
        return "BackwardHookFunction" in str(error)  # an output with a hook was changed in place
    modules = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(module.split(".")[0] == "backpack" for module in modules)


def _copy_modules(model: nn.Module) -> nn.Module:
    """Copy the modules of `model`, but not its parameters and buffers."""
    shared = [*model.parameters(), *model.buffers()]
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for module in copied.modules():
        if getattr(module, "inplace", False):  # BackPACK's hooks do not support it
            module.inplace = False  # type: ignore[assignment]
    return copied


def _forget(copied: nn.Module, parameters: Sequence[nn.Parameter], handles: int) -> None:
    """Remove what BackPACK leaves on modules, on parameters and in its global list of hooks."""
    from backpack import memory_cleanup
    from backpack.context import CTX

    for module in copied.modules():
        memory_cleanup(module)
    for parameter in parameters:
        if hasattr(parameter, "grad_batch"):
            del parameter.grad_batch
    for handle in CTX.hook_handles[handles:]:
        handle.remove()
    del CTX.hook_handles[handles:]


def _owners(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[nn.Module]:
    """Yield the modules that hold a selected parameter themselves."""
    selected = {id(parameter) for parameter in parameters.values()}
    for module in model.modules():
        if any(id(parameter) in selected for parameter in module.parameters(recurse=False)):
            yield module


def _refuse_batch_statistics(copied: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Make BatchNorm in training mode fail if it is, or runs after, a selected module."""
    started: list[nn.Module] = []
    for module in _owners(copied, parameters):
        module.register_forward_pre_hook(lambda module, _: started.append(module))

    def refuse(module: nn.Module, _: object) -> None:
        if started and module.training:
            raise UnsupportedError(
                "engine='backpack': BatchNorm in training mode between the selected parameters "
                "and the loss, where a sample has no gradient of its own; put it into evaluation "
                "mode"
            )

    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(refuse)


def _collect(name: str, parameter: nn.Parameter, total: Tensor | None, count: int) -> Tensor:
    """Return BackPACK's gradients [N, *shape], whose sum must be the total."""
    if total is None:
        return parameter.new_zeros(count, *parameter.shape)
    gradients = getattr(parameter, "grad_batch", None)
    if gradients is None:
        raise UnsupportedError(
            f"engine='backpack': BackPACK has no rule for the module of {name}; use engine='native'"
        )
    missed = len(gradients) != count or bool(
        (gradients.sum(0) - total).abs().max() > 1e-3 * total.abs().max()
    )
    if missed:
        raise UnsupportedError(
            f"engine='backpack': BackPACK does not see every use of {name} "
            "(a module used twice, a function called directly); use engine='native'"
        )
    return gradients
