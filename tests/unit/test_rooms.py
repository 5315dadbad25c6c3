"""Who may import whom: imports go down only, and a library lives in its own room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "fishr_exp"

FLOORS = {
    "cli": 4, "mistakes": 4, "config": 4, "protocol": 4, "table_cli": 4, "__main__": 4,
    "baseline": 4, "plan_cli": 4, "probe": 4, "diagnostics_cli": 4, "sync_cli": 4,
    "data_cli": 4, "sweeping": 4, "search": 4,
    "run": 3,
    "trainers": 2, "training": 2, "tracking": 2,
    "gradient_variance": 1, "data": 1, "models": 1, "results": 1, "ranks": 1,
    "runs": 0,
    "contracts": 0, "seeding": 0, "errors": 0, "vision": 0, "__init__": 0,
}  # fmt: skip
# A library that is known in these rooms or files only.
HOMES = {
    "hydra": {
        "cli.py", "config.py", "mistakes.py", "protocol.py", "baseline.py", "plan_cli.py",
        "sweeping.py", "data_cli.py", "search.py",
    },
    "omegaconf": {
        "cli.py", "config.py", "mistakes.py", "protocol.py", "baseline.py", "plan_cli.py",
        "sweeping.py", "data_cli.py",
    },
    "mlflow": {"tracking/mlflow.py"},
    "optuna": {"search.py"},
    "backpack": {"gradient_variance/backpack_engine.py"},
    "matplotlib": {
        "results/canvas.py", "results/figure.py", "results/curves_figure.py",
        "results/diagnostics_figure.py",
    },
    "torchvision": {"vision.py"},
    "numba": {"data/compiled.py"},
}  # fmt: skip
# Imported inside functions, never when a module is loaded: the command line must answer at once.
LAZY = {"mlflow", "matplotlib", "backpack", "scipy"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> list[tuple[str, bool]]:
    """Return (dotted name, whether it is at the top of the module) of each import."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = ["fishr_exp", *path.relative_to(PACKAGE).parts]
            package = ".".join(here[: len(here) - node.level]) if node.level else ""
            module = ".".join(part for part in (package, node.module) if part)
            found += [(f"{module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    assert here in FLOORS, f"{here} stands on no floor: add it to FLOORS and to the house plan"
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] != "fishr_exp":
            continue
        there = parts[1] if len(parts) > 1 and parts[1] in FLOORS else "__init__"
        if there == here:
            continue
        if FLOORS[here] == 4 and FLOORS[there] == 4:  # the top floor is one room
            continue
        assert FLOORS[there] < FLOORS[here], f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    relative = path.relative_to(PACKAGE).as_posix()
    for name, at_top in imports(path):
        library = name.split(".")[0]
        homes = HOMES.get(library)
        if homes is not None:
            assert any(relative.startswith(home) for home in homes), f"{path} imports {name}"
        assert not (library in LAZY and at_top), f"{path}: {name}"


def test_the_heart_knows_torch_only() -> None:
    allowed = {"torch", "backpack", "fishr_exp"}
    import sys

    for path in (PACKAGE / "gradient_variance").rglob("*.py"):
        for name, _ in imports(path):
            library = name.split(".")[0]
            assert library in allowed or library in sys.stdlib_module_names, f"{path}: {name}"
            if library == "fishr_exp":
                assert name.startswith("fishr_exp.gradient_variance"), f"{path}: {name}"


def test_results_do_without_torch() -> None:
    for path in (PACKAGE / "results").rglob("*.py"):
        assert not [name for name, _ in imports(path) if name.split(".")[0] == "torch"], path
