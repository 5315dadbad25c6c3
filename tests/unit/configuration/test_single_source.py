"""`experiment=single_source_*` trains on every domain in turn, and tests on all others."""

from __future__ import annotations

import importlib

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from fishr_exp.configuration.options import conf_dir

ALL = {
    "single_source_digits": ["0", "15", "30", "45", "60", "75"],
    "single_source_pacs": ["art_painting", "cartoon", "photo", "sketch"],
}


@pytest.mark.parametrize("experiment", ALL)
def test_every_domain_is_the_source_once(experiment: str) -> None:
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
        for trainer in swept.trainer.split(","):
            chosen = compose("config", [f"experiment={experiment}", f"trainer={trainer.strip()}"])
            module, _, name = chosen.trainer._target_.rpartition(".")
            assert getattr(importlib.import_module(module), name).min_domains == 1
