"""Who may import whom: imports go down only, and a library lives in its own room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "fishr_exp"

FLOORS = {
    "cli": 6,
    "configuration": 5,
    "training": 4, "reports": 4, "tracking": 4,
    "trainers": 3, "models": 3, "data": 3, "runs": 3,
    "gradient_variance": 2,
    "core": 1,
}  # fmt: skip
# Files beside the rooms: what `python -m` starts, the names for a user's own parts, the version.
DOORS = {"__main__": 8, "api": 7, "contracts": 2, "__init__": 0}
# A library that is known in these rooms or files only.
HOMES = {
    "hydra": {"cli/", "configuration/", "api.py"},
    "omegaconf": {"cli/", "configuration/", "api.py"},
    "mlflow": {"tracking/mlflow.py", "tracking/mlflow_objects.py"},
    "tensorboard": {"tracking/tensorboard.py"},
    "wandb": {"tracking/wandb.py"},
    "optuna": {"configuration/search.py"},
    "backpack": {"gradient_variance/engines/backpack_engine.py"},
    "matplotlib": {"reports/figures/"},
    "torchvision": {"core/_torchvision.py"},
    "numba": {"data/images/compiled.py"},
}
# Imported inside functions, never when a module is loaded: the command line must answer at once.
LAZY = {"mlflow", "tensorboard", "wandb", "matplotlib", "backpack", "scipy"}


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


def floor(name: str) -> int:
    known = {**FLOORS, **DOORS}
    assert name in known, f"{name} stands on no floor: add it to FLOORS and docs/architecture.md"
    return known[name]


def test_every_room_stands_on_a_floor() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert rooms - {"conf"} == set(FLOORS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(DOORS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    """No room imports one on its own floor or above, inside functions and for types neither."""
    here = room(path)
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] != "fishr_exp":
            continue
        there = parts[1] if len(parts) > 1 and parts[1] in {**FLOORS, **DOORS} else "__init__"
        if there != here:
            assert floor(there) < floor(here), f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_fit_on_a_screen_or_a_few(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 100, f"{path}: {node.name}"


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


def test_reports_do_without_torch() -> None:
    for path in (PACKAGE / "reports").rglob("*.py"):
        assert not [name for name, _ in imports(path) if name.split(".")[0] == "torch"], path
