"""Every YAML is bound to what it builds; every method to its YAML."""

from __future__ import annotations

import inspect
from pathlib import Path

import hydra.utils
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fishr_exp.configuration import binding
from fishr_exp.configuration.binding import SUPPLIED, bind, run_name
from fishr_exp.configuration.options import conf_dir
from fishr_exp.configuration.starting import prefer_own_sweepers
from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.keys import APART, KEYS, OF_A_PROTOCOL, PARTS
from fishr_exp.training.arguments import Arguments, Grouping, Timing

YAMLS = sorted(p for group in PARTS for p in (conf_dir() / group).glob("*.yaml"))
OF_THE_RUN = {"optimizer": Grouping, "scheduler": Timing}
EXPERIMENTS = sorted((conf_dir() / "experiment").glob("*.yaml"))
DEBUG = sorted((conf_dir() / "debug").glob("*.yaml"))
PROTOCOLS = sorted((conf_dir() / "protocol").glob("*.yaml"))
SWEEPERS = sorted((conf_dir() / "hydra" / "sweeper").glob("*.yaml"))
LOGGING = [*(conf_dir() / "hydra").glob("*_logging/fishr_exp.yaml")]
FITTING = sorted((conf_dir() / "dataset" / "fitting").glob("*.yaml"))
SEARCHES = sorted((conf_dir() / "search").rglob("*.yaml"))


def arguments(config) -> Arguments:
    return binding.arguments(config, {"dataset": "", "model": "", "trainer": ""})


def composed(*overrides: str):
    prefer_own_sweepers()  # as the command does
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", [*overrides, "sweep_name=test"])


def node(path: Path):
    group = path.parent.name
    return composed(f"{group}={path.stem}").get(group)


def test_the_root_holds_the_arguments_of_a_run() -> None:
    fields = set(inspect.signature(Arguments).parameters) - set(SUPPLIED)
    assert set(composed()) - set(APART) == fields - set(OF_A_PROTOCOL)
    keys = set(composed("protocol=paper_2022")) - set(APART)
    assert keys == fields


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_yaml_is_bound_to_what_it_builds(path: Path) -> None:
    group = path.parent.name
    config = node(path)
    if path.stem == "none":
        assert config is None
        return
    target = hydra.utils.get_object(config["_target_"])
    own = set(KEYS[group].own)
    keys = set(config) - {"_target_", "_neutral_"} - own
    parameters = set(inspect.signature(target).parameters) - set(KEYS[group].builds or ())
    if config["_target_"].startswith("fishr_exp."):
        assert keys == parameters
    else:  # a library's own defaults hold for the rest
        assert keys <= parameters
    values = OmegaConf.to_container(config, resolve=False)
    known = {k: v for k, v in values.items() if v != "???" and not str(v).startswith("${")}
    given = {
        "seed": 0,
        "root": "text",
        "sweep": "text",
        "project": "text",
        "mode": "offline",
        "lists": {},
        "name": "some",
        "freeze_bn": True,
        "tracking_uri": "sqlite:///x.db",
        "experiment": "some",
        "inner_lr": 0.001,
        "inner_weight_decay": 0.0,
    }  # mandatory or interpolated
    known |= {key: value for key, value in given.items() if key in keys - set(known)}
    known = {key: value for key, value in known.items() if key in keys}
    assert set(bind(target, known, f"{group}.", (KEYS[group].builds or ()))) == keys
    assert not own & parameters
    if own:
        bind(OF_THE_RUN[group], {k: config[k] for k in own & set(config)}, f"{group}.")


@pytest.mark.parametrize("group", [group for group in PARTS if KEYS[group].own])
def test_keys_of_a_group_that_the_run_takes_are_those_of_a_signature(group: str) -> None:
    assert set(KEYS[group].own) == set(inspect.signature(OF_THE_RUN[group]).parameters)


def test_every_yaml_was_found() -> None:
    found = set((conf_dir()).rglob("*.yaml")) - {conf_dir() / "config.yaml"}
    assert found == {
        *YAMLS,
        *EXPERIMENTS,
        *DEBUG,
        *PROTOCOLS,
        *SEARCHES,
        *SWEEPERS,
        *FITTING,
        *LOGGING,
    }


@pytest.mark.parametrize("path", FITTING, ids=lambda p: p.stem)
def test_what_fits_a_dataset_is_of_use(path: Path) -> None:
    line = f"defaults: [fitting/{path.stem}]"
    assert any(line in of.read_text() for of in (conf_dir() / "dataset").glob("*.yaml"))


IMAGE_SETS = ("camelyon17", "fmow", "image_folder", "pacs", "path_lists", "spawrious")


@pytest.mark.parametrize("dataset", IMAGE_SETS)
def test_image_sets_bring_what_fits_them(dataset: str) -> None:
    """DomainBed's network, learning rate and minibatches; any word on the command line wins."""
    of = (f"dataset={dataset}", "dataset.root=x", "test_domains=[a]")
    config = composed(*of)
    assert (config.model.name, config.model.pretrained) == ("resnet50", True)
    assert config.model.freeze_bn is True
    assert (config.optimizer.lr, config.batch_size) == (5e-5, 32)
    assert (config.observer.patience, config.observer.keep) == (None, "best")
    chosen = composed(*of, "model=mlp", "optimizer=sgd", "observer=last_step", "batch_size=4")
    assert chosen.model == composed("model=mlp").model
    assert chosen.optimizer == composed("optimizer=sgd").optimizer
    assert chosen.observer == composed("observer=last_step").observer
    assert chosen.batch_size == 4
    experiment = composed("experiment=images_quickstart", *of)
    assert (experiment.model.name, experiment.optimizer.lr) == ("resnet18", 1e-3)
    assert composed(*of, "protocol=paper_2022").model._target_.endswith("domainbed")


def test_batch_norm_is_frozen_where_its_statistics_were_learned() -> None:
    for words, frozen in (
        ((), False), (("model.pretrained=true",), True), (("model.weights_file=w.pt",), True),
        (("model.freeze_bn=true",), True), (("model.pretrained=true", "model.freeze_bn=0"), 0),
    ):  # fmt: skip
        assert composed("model=resnet18", *words).model.freeze_bn == frozen


@pytest.mark.parametrize("path", SWEEPERS, ids=lambda p: p.stem)
def test_sweeper_is_bound_to_its_class(path: Path) -> None:
    config = OmegaConf.load(path)
    target = hydra.utils.get_object(config["_target_"])
    parameters = set(inspect.signature(target).parameters)
    assert set(config) - {"_target_", "_recursive_"} == parameters


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda p: p.stem)
def test_protocol_binds(path: Path) -> None:
    config = composed(f"protocol={path.stem}")
    assert config.protocol.name == path.stem
    assert arguments(config).config["protocol"] == config.protocol


@pytest.mark.parametrize("path", SEARCHES, ids=lambda p: str(p.relative_to(conf_dir() / "search")))
def test_search_binds(path: Path) -> None:
    """Each YAML belongs to a search and to an option of its group, and sets keys that are there."""
    parts = path.relative_to(conf_dir() / "search").with_suffix("").parts
    if len(parts) == 1:
        arguments(composed("protocol=paper_2022", f"search={path.stem}"))
        return
    place, search, option = parts
    group = place.removeprefix("of_")
    assert (conf_dir() / "search" / f"{search}.yaml").exists()
    config = composed("protocol=paper_2022", f"search={search}", f"{group}={option}")
    if OmegaConf.is_missing(config.dataset, "root"):
        config.dataset.root = "somewhere"
    if OmegaConf.is_missing(config, "test_domains"):
        config.test_domains = ["a"]
    assert arguments(config)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_binds(path: Path) -> None:
    config = composed(f"experiment={path.stem}")
    for key in OmegaConf.missing_keys(config):
        assert key == "dataset.root"
        OmegaConf.update(config, key, "somewhere")
    assert arguments(config).trainer().min_domains >= 1


def test_every_method_has_its_yaml() -> None:
    package = Path(binding.__file__).parents[1] / "trainers"
    methods = {p.stem for p in package.glob("*.py") if not p.stem.startswith("_")}
    for method in methods:
        target = node(conf_dir() / "trainer" / f"{method}.yaml")["_target_"]
        assert target.startswith(f"fishr_exp.trainers.{method}.")
    for yaml in (conf_dir() / "trainer").glob("*.yaml"):
        assert node(yaml)["_target_"].split(".")[2] in methods


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.gamma=abc", ["trainer.gamma=abc", "must be float"]),
        ("epochs=many", ["epochs=many", "must be int"]),
        ("batch_size=[1]", ["batch_size=[1]", "a number, null or {DOMAIN:NUMBER,...}"]),
        ("test_domains=minus90", ["test_domains=minus90", "list[str]"]),
        ("+trainer.stps=3", ["trainer.stps=3", "no such key", "gamma"]),
        ("+trainer.gama=3", ["trainer.gama=3", "did you mean trainer.gamma?"]),
        ("+sede=3", ["sede=3", "did you mean seed?"]),
        ("trainer._target_=fishr_exp.trainers.no.No", ["trainer._target_", "is not what"]),
        ("test_domains=???", ["test_domains=???", "must be given"]),
        ("dataset=pacs", ["dataset.root=???", "must be given", "dataset.root=DIR"]),
    ],
)
def test_a_mistake_names_key_value_and_what_is_allowed(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        arguments(composed(override))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_text_becomes_the_annotated_type() -> None:
    checked = arguments(composed("trainer.gamma='1e3'", "test_domains=[75]"))
    assert checked.trainer().gamma == 1000.0
    assert checked.test_domains == ["75"]


def test_the_run_name_follows_the_settings_alone() -> None:
    def name(*overrides: str) -> str:
        return run_name(composed(*overrides), "fishr")

    assert name() == name("device=cpu", "tracker=none", "resume=false", "output_dir=elsewhere")
    assert name().startswith("fishr-gamma1-seed0-")
    assert name() == name("trainer.gamma=1")
    assert len({name(), name("seed=1"), name("trainer.l2=1"), name("epochs=2")}) == 4


IMAGE_DATASETS = [
    p.stem for p in YAMLS if p.parent.name == "dataset" and "image_size:" in p.read_text()
]


@pytest.mark.parametrize("dataset", IMAGE_DATASETS)
def test_make_run_composes_for_every_dataset_of_images(dataset: str) -> None:
    more = ["dataset.lists={a:[a.txt],b:[b.txt]}"] if dataset == "path_lists" else []
    words = ["experiment=images_quickstart", f"dataset={dataset}", "dataset.root=x", *more]
    config = composed(*words, "test_domains=[a]", "trainer=erm")
    bound = arguments(config)
    assert bound.test_domains == ["a"]
    assert bound.config["dataset"]["image_size"] == 96


def test_a_wrong_word_lists_the_words_that_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        arguments(composed("trainer=coral", "trainer.ramp=linea"))
    said = "trainer.ramp=linea: choose from none, linear, exponential; did you mean linear?"
    assert str(caught.value) == said
