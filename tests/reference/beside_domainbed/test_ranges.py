"""Each hyperparameter that DomainBed draws for a method has the same distribution here."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fishr_exp.configuration.options import conf_dir

from .conftest import DomainBed

FOLDER = Path(str(conf_dir())) / "search" / "of_trainer" / "domainbed"
DATASETS = ("OfficeHome", "RotatedMNIST")
UNUSED = {  # by DomainBed's code, or shared with other methods here; see the cards
    "Transfer": {"weight_decay_d", "beta1"},
    "DANN": {"lr_g", "weight_decay_g"},
    "CDANN": {"lr_g", "weight_decay_g"},
}
OTHER_DEFAULT = {("SANDMask", "tau")}  # DomainBed's default trains nothing


class Draw(NamedTuple):
    """A draw as a file has it: ${draw:NAME,DEFAULT,KIND,BOUNDS}."""

    name: str
    default: str
    kind: str
    bounds: list[str]

    def fits(self, default: Any, values: list[Any], *, any_default: bool) -> bool:
        """Whether hundreds of DomainBed's draws look like ours, and the defaults are equal."""
        if not any_default and not same(self.default, default):
            return False
        if self.kind == "one_of":
            found = {value if isinstance(value, str) else float(value) for value in values}
            return found == {b if re.match("[a-z]", b) else float(b) for b in self.bounds}
        if isinstance(values[0], str):
            return False
        low, high = map(float, self.bounds)
        exponent = {"10_to": math.log10, "2_to": math.log2}.get(
            self.kind.removeprefix("int_"), float
        )
        inner = [(exponent(max(v, 1e-9)) - low) / (high - low) for v in values]
        middle = sum(inner) / len(inner)
        wide = min(inner) < 0.05 and max(inner) > 0.9
        return wide and min(inner) > -0.3 and max(inner) <= 1 and abs(middle - 0.5) < 0.1


def same(ours: str, theirs: Any) -> bool:
    try:
        return math.isclose(float(ours), float(theirs))
    except ValueError:
        return ours == theirs


def plain(name: str) -> str:
    return name.lower().replace("_domainbed", "").replace("_", "")


FILES = {plain(path.stem): path for path in sorted(FOLDER.glob("*.yaml"))}


def draws(path: Path) -> list[Draw]:
    """The draws of a file, also of a file that it is a variant of."""
    text = path.read_text()
    if parent := re.search(r"^defaults: \[(?:domainbed/)?(\w+)\]", text, re.M):
        text += (FOLDER / f"{parent[1]}.yaml").read_text()
    # Where a bound depends on the dataset, that of most datasets.
    text = re.sub(r"\$\{of_dataset:\{[^{}]*\},([^{}]+)\}", r"\1", text)
    found = re.findall(r"\$\{draw:(\w+),([^,{}]+),(\w+),([^{}]+)\}", text)
    return [Draw(name, default, kind, bounds.split(",")) for name, default, kind, bounds in found]


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("option", sorted(FILES))
def test_ranges_are_domainbeds(domainbed: DomainBed, option: str, dataset: str) -> None:
    algorithms = {plain(name): name for name in domainbed.algorithms.ALGORITHMS}
    if option not in algorithms:
        pytest.skip("DomainBed does not have this method")
    algorithm, registry = algorithms[option], domainbed.registry
    defaults = registry.default_hparams(algorithm, dataset)
    drawn = [registry.random_hparams(algorithm, dataset, seed) for seed in range(1, 400)]
    own = set(defaults) - set(registry.default_hparams("ERM", dataset))
    ours = draws(FILES[option])
    for name in sorted(own - UNUSED.get(algorithm, set())):
        values = [hparams[name] for hparams in drawn]
        if len(set(values)) == 1:
            continue
        any_default = (algorithm, name) in OTHER_DEFAULT
        assert any(d.fits(defaults[name], values, any_default=any_default) for d in ours), (
            f"{name}: default {defaults[name]}, draws {min(values)} to {max(values)}"
        )
