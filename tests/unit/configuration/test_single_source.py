"""`experiment=single_source_*` trains on every domain in turn, and tests on all others."""

from __future__ import annotations

import importlib

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from fishr_exp.configuration.options import conf_dir

from .test_zoo_quickstart import swept as methods

ALL = {
    "single_source_digits": ["0", "15", "30", "45", "60", "75"],
    "single_source_pacs": ["art_painting", "cartoon", "photo", "sketch"],
}


@pytest.mark.parametrize("experiment", ALL)
def test_every_domain_is_the_source_once(experiment: str) -> None:
    every = methods()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
        swept = config.hydra.sweeper.params
        parser = OverridesParser.create()
        override = parser.parse_override(f"test_domains={swept.test_domains}")
        tested = [
            [str(name) for name in parser.parse_override(f"test_domains={word}").value()]
            for word in override.sweep_string_iterator()
        ]
        sources = [[name for name in ALL[experiment] if name not in names] for names in tested]
        assert sources == [[name] for name in ALL[experiment]]
        assert all(len(names) == len(ALL[experiment]) - 1 for names in tested)
        known = compose("config", [f"experiment={experiment}"]).dataset
        domains = known.get("domains") or known.angles
        assert [str(name) for name in domains] == ALL[experiment]
        trainers = [trainer.strip() for trainer in swept.trainer.split(",")]
        enough = {trainer: needs(trainer) for trainer in every}
        one = {trainer for trainer, domains in enough.items() if domains == 1}
        assert len(trainers) == len(set(trainers))
        assert set(trainers) <= one


def needs(trainer: str) -> int:
    """How many training domains a method needs."""
    written = yaml.safe_load((conf_dir() / f"trainer/{trainer}.yaml").read_text())
    module, _, name = written["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name).min_domains
