"""The reference engine: per-sample gradients by BackPACK (Dangel et al. 2020).

The only file that knows BackPACK. It works on a twin of the model that shares parameters and
buffers, so that the user's modules never carry BackPACK's hooks, and nothing outlives the call.
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
        UnsupportedError: If BackPACK cannot do a module, or the model uses a parameter in a way
            that BackPACK does not see. Exceptions of the model and the loss pass through.

    Source: Dangel, Kunstner, Hennig 2020, "BackPACK: Packing more into backprop", `BatchGrad`.
    """
    from backpack import backpack, extend
    from backpack.context import CTX
    from backpack.extensions import BatchGrad

    twin, handles = _twin(model), len(CTX.hook_handles)
    features: list[Tensor] = []
    _refuse_batch_statistics(twin, parameters)
    for module in _owners(twin, parameters):
        # BackPACK's hooks fire only if gradients at the modules' inputs are asked for, too.
        module.register_forward_pre_hook(lambda _, args: features.extend(args))
        extend(module)
    wanted = list(parameters.values())
    try:
        logits = twin(inputs)
        losses = losses_of_samples(loss, logits, targets, len(inputs))
        at = wanted + [x for x in features if isinstance(x, Tensor) and x.requires_grad]
        # Of BackPACK's hooks, here and in the backward pass of whoever called us.
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
        if not _is_of_backpack(error):
            raise
        raise UnsupportedError(
            f"engine='backpack': BackPACK cannot do this model ({error}); engine='native' can"
        ) from error
    finally:
        features.clear()  # they lead to the graph, which leads to the hooks that hold them
        _forget(twin, wanted, handles)
    if not create_graph:
        gradients = {name: g.detach() for name, g in gradients.items()}
    return (
        logits,
        losses,
        {n: moments_of_gradients(g, sizes, covariance) for n, g in gradients.items()},
    )


def _is_of_backpack(error: Exception) -> bool:
    """Whether `error` is BackPACK's, not the model's, the loss's, or for lack of memory."""
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
        return "BackwardHookFunction" in str(error)  # a result with a hook was changed in place
    modules = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(module.split(".")[0] == "backpack" for module in modules)


def _twin(model: nn.Module) -> nn.Module:
    """Copy the modules of `model`, but none of its parameters and buffers."""
    shared = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for module in twin.modules():
        if getattr(module, "inplace", False):  # which BackPACK's hooks do not stand
            module.inplace = False  # type: ignore[assignment]
    return twin


def _forget(twin: nn.Module, parameters: Sequence[nn.Parameter], handles: int) -> None:
    """Take away what BackPACK leaves on modules, on parameters and in its global list of hooks."""
    from backpack import memory_cleanup
    from backpack.context import CTX

    for module in twin.modules():
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


def _refuse_batch_statistics(twin: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Let BatchNorm in training mode fail if it runs as, or after, a selected module."""
    started: list[nn.Module] = []
    for module in _owners(twin, parameters):
        module.register_forward_pre_hook(lambda module, _: started.append(module))

    def refuse(module: nn.Module, _: object) -> None:
        if started and module.training:
            raise UnsupportedError(
                "engine='backpack': BatchNorm in training mode between the selected parameters "
                "and the loss, where a sample has no gradient of its own; put it into evaluation "
                "mode"
            )

    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(refuse)


def _collect(name: str, parameter: nn.Parameter, total: Tensor | None, count: int) -> Tensor:
    """Return the gradients [N, *shape] that BackPACK left, which must add up to the total."""
    if total is None:
        return parameter.new_zeros(count, *parameter.shape)
    gradients = getattr(parameter, "grad_batch", None)
    if gradients is None:
        raise UnsupportedError(
            f"engine='backpack': BackPACK has no rule for the module of {name}; engine='native' has"
        )
    missed = len(gradients) != count or bool(
        (gradients.sum(0) - total).abs().max() > 1e-3 * total.abs().max()
    )
    if missed:
        raise UnsupportedError(
            f"engine='backpack': BackPACK does not see every use of {name} "
            "(a module used twice, a function called by hand); engine='native' does"
        )
    return gradients
