"""What a configuration has built, checked before anything depends on it.

A part of a user's own may be any object. What a run needs of it is checked here, and taken from
the classes of `fishr_exp.contracts` where it can be.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fishr_exp.core.contracts import Domains, Model, Trainer
from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.core.keeping import keeping_buffers, keeping_modes, keeping_random_streams
from fishr_exp.training.arguments import Mirror

log = logging.getLogger(__name__)
T = TypeVar("T")

_TRIED: weakref.WeakKeyDictionary[Model, set[object]] = weakref.WeakKeyDictionary()
_LARGEST_READ_AT_ONCE = 3 * 64 * 64  # numbers of a sample that a linear layer may sensibly read


def build_part(
    make: Callable[[], T], group: str, config: Mapping[str, Any], refusal: type[ValueError]
) -> T:
    """Make a part that knows nothing of our errors: PyTorch refuses a rate below 0, say."""
    try:
        return make()
    except ConfigError:
        raise
    except refusal as error:
        raise ConfigError(*_blamed(group, config[group], str(error))) from error


def _blamed(group: str, node: Mapping[str, Any], reason: str) -> tuple[str, object, str]:
    """Return the key that a reason is about, its value, and the reason.

    A reason of ours begins with the key; one of a library may end with the key's value.
    """
    name, _, rest = reason.partition("=")
    if name in node and ": " in rest:
        return f"{group}.{name}", node[name], rest.partition(": ")[2]
    ending = reason.rpartition(" ")[2]
    keys = [
        k for k, v in node.items() if isinstance(v, int | float) and ending in (f"{v}", f"{v:.1f}")
    ]
    key, value = (f"{group}.{keys[0]}", node[keys[0]]) if len(keys) == 1 else (group, _given(node))
    return key, value, reason


def _given(node: Mapping[str, Any]) -> str:
    """What a group of the configuration holds, as the command line would write it."""
    shown = {key: value for key, value in node.items() if not key.startswith("_")}
    return f"{{{', '.join(f'{k}: {v}' for k, v in shown.items())}}}"


def as_trainer(built: Any) -> Trainer:
    """Return a trainer; a module that has an objective only takes all else from `Trainer`.

    Raises:
        ConfigError: If it is no such module.
    """
    kind = type(built)
    objective = getattr(kind, "objective", None)
    has_objective = callable(objective) and objective is not Trainer.objective
    if isinstance(built, Trainer) and has_objective:
        return built
    if not (isinstance(built, nn.Module) and has_objective):
        raise ConfigError(
            "trainer", kind.__name__, "is not a Trainer with an objective",
            "derive it from fishr_exp.contracts.Trainer, and give it an objective",
        )  # fmt: skip
    named = {"printed_name": getattr(kind, "printed_name", "")}
    built.__class__ = type(kind.__name__, (kind, Trainer), named)
    reset_at = getattr(built, "reset_optimizer_at", None)  # as methods said it before `resets`
    if reset_at is not None and not built.resets:
        built.resets = {int(reset_at): {}}  # type: ignore[assignment]
    return built  # type: ignore[return-value]


def as_domains(built: Any) -> Domains:
    """Return a dataset that was built.

    Raises:
        ConfigError: If it is something else, or has no domain or an empty one.
    """
    kind = type(built).__name__
    if not isinstance(built, Domains):
        hint = "return fishr_exp.contracts.Domains, as fishr_exp.data.datasets.domains_of does"
        raise ConfigError("dataset", kind, "is not a dataset with domains", hint)
    if empty := [name for name, domain in built.by_name.items() if not len(domain)]:
        raise ConfigError("dataset", built.name, f"domain {empty[0]} has no samples")
    if built.class_names and len(built.class_names) != built.num_classes:
        reason = f"names {len(built.class_names)} of its {built.num_classes} classes"
        raise ConfigError("dataset", built.name, reason, "name all of them in class_names, or none")
    return built


def as_kind(built: Any, kind: type[T], group: str) -> T:
    """Return a part that was built, if it is of its group's kind.

    Raises:
        ConfigError: If it is something else.
    """
    if isinstance(built, kind):
        return built
    name = f"{kind.__module__}.{kind.__name__}"
    hint = f"pass {group}=NAME, or derive it from {name}"
    raise ConfigError(group, type(built).__name__, f"is not what {group} builds", hint)


def as_mirror(built: Any) -> Mirror:
    """Return a tracker that was built.

    Raises:
        ConfigError: If it lacks a method of a tracker.
    """
    for method in ("start", "catch_up", "sync", "finish"):
        if not callable(getattr(built, method, None)):
            hint = "pass tracker=NAME, or derive it from fishr_exp.tracking.mirror.Mirror"
            raise ConfigError("tracker", type(built).__name__, f"has no method {method}", hint)
    return built  # type: ignore[no-any-return]


def two_samples(domains: Domains) -> Tensor:
    """Return two samples [2, *input_shape] of a dataset, to try a network with."""
    domain = next(iter(domains.by_name.values()))
    try:
        return domain.read(torch.tensor([0, len(domain) - 1])).x
    except TrainingError:  # a file that cannot be read; it is told when its turn comes
        return torch.rand(2, *domains.input_shape, generator=torch.Generator().manual_seed(0))


def as_model(built: Any, samples: Tensor) -> Model:
    """Return a model; any network that ends in a linear layer is divided before that layer.

    Args:
        built: A `Model`, a module with a `featurizer` and a linear `classifier`, or any module
            that maps x [n, *input_shape] to logits by a linear layer that comes last.
        samples: Two samples [2, *input_shape].

    Raises:
        ConfigError: If it is none of these.
    """
    if isinstance(built, Model):
        return built
    name = type(built).__name__
    hint = "build fishr_exp.contracts.Model(featurizer, classifier)"
    if not isinstance(built, nn.Module):
        raise ConfigError("model", name, "is not a torch.nn.Module", hint)
    with _trial(built):
        expected = _first_call(built, samples, name)
        for halves in (_its_own, _divided):
            featurizer, last = halves(built, samples)
            if featurizer is not None and last is not None:
                model = Model(featurizer, last).eval()
                with contextlib.suppress(RuntimeError), torch.no_grad():
                    if torch.equal(model(samples), expected):
                        return model
    reason = "does not end in a linear layer, whose gradients the methods need"
    raise ConfigError("model", name, reason, hint)


def check_fit(model: Model, samples: Tensor, classes: int, label: str, key: str = "model") -> None:
    """Pass two samples through a model, in training and evaluation mode; its state stays.

    Warns of a network that is absurd for samples of this shape.

    Args:
        model: With its weights, on its device.
        samples: Two samples [2, *input_shape].
        classes: Number of classes.
        label: What the model is called.
        key: The key that calls it so.

    Raises:
        ConfigError: If the samples do not fit the model, or its logits do not fit the classes.
    """
    tried = (tuple(samples.shape[1:]), samples.dtype, classes)
    if tried in _TRIED.get(model, ()):  # by another run of a plan, which shares its networks
        return
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    samples = samples.to(device)
    size = samples[0].numel()
    whole: list[str] = []
    tiny: list[str] = []
    with _trial(model), _watching(model, size, whole, tiny):
        for mode in (False, True):
            logits = _first_call(model.train(mode), samples, label, key)
            fits = isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == 2
            if not fits or not (logits.shape[1] >= classes or (logits.shape[1], classes) == (1, 2)):
                shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                reason = f"gives {shape} for two samples, not logits [2, {classes}]"
                hint = "end it in a layer with num_classes outputs"
                raise ConfigError(key, label, reason, hint)
    if logits.shape[1] > max(classes, 2):
        log.warning("%s=%s has %d outputs for %d classes", key, label, logits.shape[1], classes)
    _TRIED.setdefault(model, set()).add(tried)
    shown = _shown(samples)
    if whole:
        log.warning(
            "%s=%s: %s reads all %d numbers of a sample of %s at once; choose a convolutional "
            "network or a transformer for such images, as model=resnet50_pretrained",
            key, label, whole[0], size, shown,
        )  # fmt: skip
    if tiny:
        convolutions = sum(map(_looks_around, model.modules()))
        log.warning(
            "%s=%s: %d of its %d convolutions see a single pixel, because samples of %s are "
            "small for this network; raise dataset.image_size or choose a smaller network",
            key, label, len(tiny), convolutions, shown,
        )  # fmt: skip


def _first_call(
    network: Callable[[Tensor], Any], samples: Tensor, label: str, key: str = "model"
) -> Any:
    try:
        with torch.no_grad():
            return network(samples)
    except (MemoryError, torch.OutOfMemoryError, ConfigError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"does not fit samples of {_shown(samples)} ({lines[0] if lines else error!r})"
        hint = "choose another model or another size of the samples (dataset.image_size)"
        raise ConfigError(key, label, reason, hint) from error


def _its_own(network: nn.Module, samples: Tensor) -> tuple[nn.Module | None, nn.Linear | None]:
    """Return the network's featurizer and classifier, if it has both."""
    del samples
    featurizer, last = getattr(network, "featurizer", None), getattr(network, "classifier", None)
    both = isinstance(featurizer, nn.Module) and isinstance(last, nn.Linear)
    return (featurizer, last) if both else (None, None)


def _divided(network: nn.Module, samples: Tensor) -> tuple[nn.Module | None, nn.Linear | None]:
    """Divide a network before the linear layer whose output it returns, if there is one."""
    outputs: dict[str, Tensor] = {}
    linear = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear)}

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: outputs.update({name: output})

    handles = [module.register_forward_hook(note(name)) for name, module in linear.items()]
    with torch.no_grad():
        logits = network(samples)
    for handle in handles:
        handle.remove()
    last = next((name for name, output in outputs.items() if output is logits), None)
    if last is None:
        return None, None
    if not last:  # the network is that layer
        return nn.Identity(), linear[last]
    body = copy.deepcopy(network)  # which others may share
    layer = body.get_submodule(last)
    body.set_submodule(last, nn.Identity())
    assert isinstance(layer, nn.Linear)
    return body, layer


@contextlib.contextmanager
def _trial(module: nn.Module) -> Iterator[None]:
    """Evaluate in the block; mode, buffers and random streams are kept as they were before it."""
    with keeping_random_streams(module), keeping_buffers(module), keeping_modes(module):
        module.eval()
        yield


@contextlib.contextmanager
def _watching(model: nn.Module, size: int, whole: list[str], tiny: list[str]) -> Iterator[None]:
    """Note linear layers that read a whole large sample, and convolutions that see one pixel."""
    handles = []
    for name, module in model.named_modules():

        def look(module: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            x = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            if x is None:
                return
            if isinstance(module, nn.Linear) and size > _LARGEST_READ_AT_ONCE:
                if x.shape[-1] == size and name not in whole:
                    whole.append(name)
            elif _looks_around(module) and set(x.shape[2:]) == {1} and name not in tiny:
                tiny.append(name)

        handles.append(module.register_forward_pre_hook(look))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _looks_around(module: nn.Module) -> bool:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return isinstance(module, kinds) and max(module.kernel_size) > 1


def _shown(samples: Tensor) -> str:
    return "x".join(map(str, samples.shape[1:]))
