"""The runs that are averaged: their weights, and what they have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.identity import compared, digest
from fishr_exp.runs.methods import AVERAGE_OF
from fishr_exp.runs.reading import Run
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.training.arguments import Arguments
from fishr_exp.training.checkpoint import BEST, load

# Keys in which networks of the same weights may differ: what acts in training only, and the start.
_OF_THE_START = ("model.dropout", "model.pretrained", "model.weights_file")


@dataclass(frozen=True)
class Member:
    """A run to average.

    Attributes:
        run: What was read of it.
        arguments: What prepares it, without tracker and averaging scheme.
        weights: The file with the weights of its result.
        digest: Of that file.
    """

    run: Run
    arguments: Arguments
    weights: Path
    digest: str

    @classmethod
    def of(cls, run: Run, arguments: Arguments) -> Member:
        """Find the weights of a run.

        Raises:
            ConfigError: If they are not there.
        """
        folder = RunFolder(run.path).checkpoints
        # The best weights are the result's, but in runs of earlier versions that keep the last. The
        # state has the weights as trained, which are not those of a run with averaged ones.
        names = [BEST] if run.config.get("averaging") else [BEST, f"step-{run.step}.pt"]
        for path in [path for name in names if (path := folder / name).exists()]:
            state = load(path)
            if isinstance(state, dict) and state.get("step") == run.step:
                return cls(run, arguments, path, hashlib.sha256(path.read_bytes()).hexdigest()[:16])
        reason = f"has no weights of step {run.step}, which its result is of, in {folder.name}"
        raise ConfigError("RUN", run.path, reason, "run it again with resume=false")

    def read(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights by name.

        Args:
            like: Weights of the network that they are for.

        Raises:
            ConfigError: If they are of another network, such as that of a method with its own.
        """
        state = load(self.weights).get("model")
        if not isinstance(state, dict) or _shapes(state) != _shapes(like):
            reason = f"{self.weights.name} does not hold the weights of this network"
            hint = "pass runs of methods with one network"
            raise ConfigError("RUN", self.run.path, reason, hint)
        return state

    @property
    def what(self) -> dict[str, Any]:
        """What must be the same in all runs of an average."""
        values = compared(self.run.config)
        return {
            "dataset": self.run.dataset,
            "test_domains": sorted(self.run.test_domains),
            **{k: v for k, v in values.items() if k.startswith("dataset.")},
            **{
                k: v for k, v in values.items() if k.startswith("model.") and k not in _OF_THE_START
            },
        }


class Mean:
    """A mean of weights, summed in float64; what is not a float is that of the first."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}
        self.count = 0

    def with_another(self, state: Mapping[str, Tensor]) -> Mean:
        """Return the mean with one more; this one stays as it is."""
        other = Mean()
        other.count = self.count + 1
        other._first = self._first or dict(state)
        other._sums = {
            name: value.double() + self._sums.get(name, 0)
            for name, value in state.items()
            if value.is_floating_point()
        }
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """Return it, of the types of the first."""
        means = {n: (s / self.count).to(self._first[n].dtype) for n, s in self._sums.items()}
        return {name: means.get(name, value) for name, value in self._first.items()}


def _shapes(state: Mapping[str, object]) -> dict[str, object]:
    return {n: v.shape if isinstance(v, Tensor) else type(v) for n, v in state.items()}


def check_alike(members: Sequence[Member]) -> None:
    """Refuse runs whose weights have no meaning together.

    Raises:
        ConfigError: If they are too few, or differ in dataset, test domains or network.
    """
    first = members[0]
    if len(members) < 2:
        raise ConfigError("RUN", first.run.path, "is the only run", "pass at least two")
    for member in members[1:]:
        there, here = first.what, member.what
        for key in {**there, **here}:
            if there.get(key) != here.get(key):
                reason = f"has {key} {here.get(key)}, and {first.run.path} {there.get(key)}"
                hint = "pass runs with the same dataset, test domains and network"
                raise ConfigError("RUN", member.run.path, reason, hint)


def folder_of(members: Sequence[Member], how: str, out: Path) -> Path:
    """Return the run folder of an average: another one for other weights."""
    of = digest([how, sorted(member.digest for member in members)])
    return out / f"average-{how}-of{len(members)}-seed{seed_of(members)}-{of}"


def config_of(members: Sequence[Member], how: str, out: Path) -> dict[str, Any]:
    """Return the configuration of an average: what its runs have in common, and how it was made."""
    config = _common([member.run.config for member in members])
    config["trainer"] = config.get("trainer") or {}
    if "protocol" in config and isinstance(config["protocol"], dict):
        seeds = [member.run.config["protocol"].get("hparams_seed", 0) for member in members]
        config["protocol"]["hparams_seed"] = min(seeds)  # one candidate of its trial
    return {
        **config,
        "seed": seed_of(members),
        "test_domains": list(members[0].run.test_domains),
        "output_dir": str(out),
        "tracker": None,
        AVERAGE_OF: {"how": how, "runs": len(members)},
    }


def _common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in configs[0].items():
        others = [config.get(key) for config in configs[1:]]
        if all(key in config for config in configs[1:]) and all(o == value for o in others):
            found[key] = value
        elif isinstance(value, Mapping) and all(isinstance(o, Mapping) for o in others):
            found[key] = _common([value, *others])  # type: ignore[list-item]
    return found


def seed_of(members: Sequence[Member]) -> int:
    """Return the seed that an average of the runs counts as: the smallest of theirs."""
    return min(member.run.seed for member in members)
