"""Weights from a file or an installed package: a state dict, of PyTorch or of safetensors."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fishr_exp.core.contracts import Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.files import expanded, require_file

_WRAPPERS = (
    "state_dict",
    "state_dict_ema",
    "model",
    "model_ema",
)  # keys under which programs store weights
_PREFIXES = ("module.", "_orig_mod.")  # of a network that was saved while wrapped
_MOST_PACKED = 10  # bytes of content per byte of a file, at most
_PACKAGE = "package:"
_SUFFIXES = (".pth", ".pt", ".safetensors")


def load_model(model: Model, weights_file: str) -> Model:
    """Load the weights of a model that was trained here, with its classifier.

    Raises:
        ConfigError: If the file does not hold them.
    """
    state = read_state(weights_file)
    try:
        model.load_state_dict(state)
    except Exception as error:  # sparse or quantized tensors raise almost anything
        raise does_not_fit(weights_file, error) from error
    return model


def does_not_fit(weights_file: str, error: Exception) -> ConfigError:
    """Return the error for weights of another network."""
    return _bad_file(weights_file, f"does not fit the model: {_first_problem(error)}")


def read_state(weights_file: str) -> Mapping[str, Tensor]:
    """Read a state dict from a file that may be damaged, or made to do harm.

    Args:
        weights_file: A path; or `package:NAME`, the only file of weights in that installed package.

    Raises:
        ConfigError: Whatever is wrong with it.
    """
    package = package_of(weights_file)
    path = expanded(weights_file) if package is None else _in_package(package, weights_file)
    try:
        require_file(path)
        if path.suffix == ".safetensors":
            content: Any = importlib.import_module("safetensors.torch").load_file(path)
        else:
            _refuse_packed(path)
            with warnings.catch_warnings():  # of odd pickles, which are told as errors
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
        state = _state_in(content)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            "model.weights_file", weights_file, "needs the package safetensors",
            "pip install safetensors",
        ) from error  # fmt: skip
    except OSError as error:
        problem = error.strerror or first_line(error)
        raise ConfigError(
            "model.weights_file", weights_file, f"cannot be read ({problem})", "check the path"
        ) from error
    except Exception as error:
        problem = "is not a file of tensors, or is damaged"
        raise _bad_file(weights_file, f"{problem} ({_name(error)})") from error
    if state is None:
        raise _bad_file(weights_file, "does not contain a state dict, which maps names to tensors")
    return state


def package_of(weights_file: object) -> str | None:
    """Return the name of the package that a source of weights names; None if it is another."""
    named = isinstance(weights_file, str) and weights_file.startswith(_PACKAGE)
    return str(weights_file).removeprefix(_PACKAGE) if named else None


def _in_package(name: str, weights_file: str) -> Path:
    """Return the file of weights in an installed package."""
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:  # no such name
        hint = f"pip install {name}" if name else "pass package:NAME"
        raise ConfigError(
            "model.weights_file", weights_file, "this package is not installed", hint
        ) from error
    # A .pth beside the packages is Python's own, a list of folders.
    own = [file for file in files if file.suffix == ".pth" and len(file.parts) == 1]
    found = [file for file in files if file.suffix in _SUFFIXES and file not in own]
    if len(found) != 1:
        problem = f"this package has {len(found) or 'no'} files of weights, and one is needed"
        raise ConfigError("model.weights_file", weights_file, problem, "pass the path of a file")
    return Path(str(found[0].locate()))


def _refuse_packed(path: Path) -> None:
    """Refuse a zip that would become far larger in memory; torch.save does not compress."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            size = sum(member.file_size for member in packed.infolist())
        if size > _MOST_PACKED * path.stat().st_size:
            raise _bad_file(str(path), f"is compressed, and has {size / 1e9:.1f} GB in memory")


def _state_in(content: Any) -> Mapping[str, Tensor] | None:
    """Return the state dict in what a file contains; None without one."""
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        return None
    return {_unwrapped(name): value for name, value in content.items()}


def _unwrapped(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _bad_file(weights_file: str, problem: str) -> ConfigError:
    return ConfigError(
        "model.weights_file",
        weights_file,
        problem,
        "pass the state dict of that network in its library's format, or of a model trained here",
    )


def _name(error: Exception) -> str:
    """Return the name of a type of errors: IndexError, struct.error."""
    kind = type(error)
    of = "" if kind.__module__ == "builtins" else f"{kind.__module__.lstrip('_')}."
    return f"{of}{kind.__name__}"


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its name."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _first_problem(error: Exception) -> str:
    """Return the first error that `load_state_dict` lists, shortened to one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    problem = lines[1] if len(lines) > 1 else lines[0]
    return problem if len(problem) <= 160 else f"{problem[:160]}…"
