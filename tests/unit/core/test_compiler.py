"""Optimizers without the import of PyTorch's compiler: the same weights, and no way out is lost."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

from fishr_exp.core.compiler import compiler_not_imported

ROOT = Path(__file__).resolve().parents[3]
NAME = "torch._dynamo"

# All optimizers of torch.optim, with what a run calls and what users hang on them. It prints the
# digest of all weights and states, and whether the compiler was imported.
EVERY_OPTIMIZER = """
import contextlib, hashlib, pickle, sys
import torch
from fishr_exp.core.compiler import compiler_not_imported

if sys.argv[1] == "plainly":
    import torch._dynamo
    compiler_not_imported = contextlib.nullcontext

def rounds(kind, **options):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(3, 2))]
    late = torch.nn.Parameter(torch.randn(2, 2))
    seen = []
    with compiler_not_imported():
        optimizer = kind(weights[:1] if kind is torch.optim.LBFGS else weights, **options)
        if kind is not torch.optim.LBFGS:
            optimizer.add_param_group({"params": [late]})
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    def closure():
        with compiler_not_imported():
            optimizer.zero_grad(set_to_none=True)
        loss = sum((w**2).sum() for w in (*weights, late))
        loss.backward()
        if kind is torch.optim.SparseAdam:
            for w in (*weights, late):
                w.grad = w.grad.to_sparse()
        return loss

    for step in range(5):
        if kind is torch.optim.LBFGS:
            with compiler_not_imported():
                optimizer.step(closure)
        else:
            closure()
            with compiler_not_imported():
                optimizer.step()
        schedule.step()
        if step == 2:
            with compiler_not_imported():
                optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before", "after"] * 5
    with compiler_not_imported():
        state = optimizer.state_dict()
    everything = [*weights, late, *(v for s in state["state"].values() for v in s.values())]
    tensors = [v.detach().numpy().tobytes() for v in everything if isinstance(v, torch.Tensor)]
    return hashlib.sha256(b"".join(tensors)).hexdigest()

kinds = {
    name: kind for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and kind is not torch.optim.Optimizer
    and issubclass(kind, torch.optim.Optimizer)
}
assert len(kinds) >= 13, kinds
for name, kind in sorted(kinds.items()):
    print(name, rounds(kind))
    if name not in ("LBFGS", "SparseAdam", "Adafactor", "Muon"):
        print(name, "foreach", rounds(kind, foreach=True))
print("torch._dynamo" in sys.modules)
"""

# It prints the weight, and what the compiler knows of a method of the optimizer.
COMPILED = """
import sys
import torch
from fishr_exp.core.compiler import compiler_not_imported

def step(weight, optimizer):
    optimizer.zero_grad()
    loss = (weight**2).sum()
    loss.backward()
    return loss

def begin():
    weight = torch.nn.Parameter(torch.ones(3))
    with compiler_not_imported():
        optimizer = torch.optim.Adam([weight], lr=0.1)
        step(weight, optimizer)
        optimizer.step()
    return weight, optimizer

if sys.argv[1] == "afterwards":
    begin()
    assert "torch._dynamo" not in sys.modules
import torch._dynamo
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
weight, optimizer = begin()
torch.compile(step, backend=backend)(weight, optimizer)
torch.compile(optimizer.step, backend=backend)()
with compiler_not_imported():
    optimizer.step()
assert len(graphs) >= 2, "nothing was compiled"
kept = getattr(torch.optim.Optimizer.zero_grad.__wrapped__, "__dynamo_disable")
print(weight.tolist(), len(graphs), kept._torchdynamo_disable)
"""


def run(program: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """What is imported as the compiler in these tests, which takes no time; it can be told from it.

    Other tests of this process may have imported the compiler itself.
    """
    module = types.ModuleType(NAME)
    module.reset = lambda: "reset"  # type: ignore[attr-defined]
    module.disable = lambda *given, **named: ("disabled", *given, named)  # type: ignore[attr-defined]
    monkeypatch.setattr(
        importlib, "import_module", lambda name: sys.modules.setdefault(name, module)
    )
    monkeypatch.setitem(sys.modules, NAME, module)
    monkeypatch.delitem(sys.modules, NAME)
    return module


def test_every_optimizer_of_torch_comes_to_the_same_bits() -> None:
    plainly, ours = run(EVERY_OPTIMIZER, "plainly"), run(EVERY_OPTIMIZER, "ours")
    assert plainly.splitlines()[:-1] == ours.splitlines()[:-1]
    assert (plainly.splitlines()[-1], ours.splitlines()[-1]) == ("True", "False")


@pytest.mark.slow
def test_what_is_compiled_afterwards_is_compiled_as_ever() -> None:
    assert run(COMPILED, "alone") == run(COMPILED, "afterwards")


def test_nothing_is_left_of_the_stand_in(real: types.ModuleType) -> None:
    def function() -> None: ...

    with compiler_not_imported():
        function.kept = sys.modules[NAME].disable(function)  # type: ignore[attr-defined]
        function.other = 1  # type: ignore[attr-defined]
        assert function.kept is function  # type: ignore[attr-defined]
    assert NAME not in sys.modules
    assert vars(function) == {"other": 1}


def test_after_an_error_too(real: types.ModuleType) -> None:
    with pytest.raises(KeyError), compiler_not_imported():
        raise KeyError
    assert NAME not in sys.modules


@pytest.mark.parametrize("inner", [False, True])
def test_any_other_use_finds_the_module_itself(real: types.ModuleType, inner: bool) -> None:
    with compiler_not_imported(), compiler_not_imported() if inner else contextlib.nullcontext():
        stand_in = sys.modules[NAME]
        assert stand_in is not real
        assert stand_in.reset() == "reset"
        assert sys.modules[NAME] is real
        assert stand_in.disable(recursive=False) == ("disabled", {"recursive": False})
    assert sys.modules[NAME] is real


def test_where_the_module_is_there_it_is_used(real: types.ModuleType) -> None:
    sys.modules[NAME] = real
    with compiler_not_imported():
        assert sys.modules[NAME] is real
    assert sys.modules[NAME] is real
