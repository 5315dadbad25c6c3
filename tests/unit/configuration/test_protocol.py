"""DomainBed's protocol: draws of hyperparameters, seeds, sizes of sweeps."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fishr_exp.configuration.options import conf_dir
from fishr_exp.configuration.protocol import DISTRIBUTIONS, draw, run_seed
from fishr_exp.core.errors import ConfigError

METHODS = ("erm", "fishr_domainbed", "irm", "vrex")
MNIST, IMAGES = "colored_mnist_domainbed", "pacs"
# DomainBed's default and distribution: bounds of the value, or of the exponent of 10 or 2.
SHARED = {
    (MNIST, "optimizer.lr"): (1e-3, "10_to", -4.5, -2.5),
    (MNIST, "batch_size"): (64, "int_2_to", 3, 9),
    (IMAGES, "optimizer.lr"): (5e-5, "10_to", -5, -3.5),
    (IMAGES, "batch_size"): (32, "int_2_to", 3, 5.5),
    (IMAGES, "optimizer.weight_decay"): (0, "10_to", -6, -2),
    (IMAGES, "model.dropout"): (0, "one_of", 0.0, 0.1, 0.5),
}
OWN = {
    ("fishr_domainbed", "trainer.gamma"): (1000, "10_to", 1, 4),
    ("fishr_domainbed", "trainer.anneal_steps"): (1500, "int_uniform", 0, 5000),
    ("fishr_domainbed", "trainer.ema_decay"): (0.95, "uniform", 0.90, 0.99),
    ("irm", "trainer.gamma"): (100, "10_to", -1, 5),
    ("irm", "trainer.anneal_steps"): (500, "int_10_to", 0, 4),
    ("vrex", "trainer.gamma"): (10, "10_to", -1, 5),
    ("vrex", "trainer.anneal_steps"): (500, "int_10_to", 0, 4),
    ("coral", "trainer.gamma"): (1.0, "10_to", -1, 1),
    ("mmd", "trainer.gamma"): (1.0, "10_to", -1, 1),
    ("causirl_coral", "trainer.gamma"): (1.0, "10_to", -1, 1),
    ("causirl_mmd", "trainer.gamma"): (1.0, "10_to", -1, 1),
    ("sd", "trainer.gamma"): (0.1, "10_to", -5, -1),
    ("iga", "trainer.gamma"): (1000.0, "10_to", 1, 5),
    ("ib_erm", "trainer.gamma"): (100.0, "10_to", -1, 5),
    ("ib_erm", "trainer.anneal_steps"): (500, "int_10_to", 0, 4),
    ("ib_irm", "trainer.irm_gamma"): (100.0, "10_to", -1, 5),
    ("ib_irm", "trainer.irm_anneal_steps"): (500, "int_10_to", 0, 4),
    ("ib_irm", "trainer.ib_gamma"): (100.0, "10_to", -1, 5),
    ("ib_irm", "trainer.ib_anneal_steps"): (500, "int_10_to", 0, 4),
    ("group_dro", "trainer.eta"): (0.01, "10_to", -3, -1),
    ("eqrm", "trainer.quantile"): (0.75, "uniform", 0.5, 0.99),
    ("eqrm", "trainer.anneal_steps"): (2500, "int_10_to", 2.5, 3.5),
    ("eqrm", "trainer.lr_after"): (1e-6, "10_to", -7, -5),
    ("mixup", "trainer.alpha"): (0.2, "10_to", -1, 1),
    ("rsc", "trainer.drop_features"): (1 / 3, "uniform", 0, 0.5),
    ("rsc", "trainer.drop_samples"): (1 / 3, "uniform", 0, 0.5),
    ("cad", "trainer.temperature"): (0.1, "one_of", 0.05, 0.1),
    ("cond_cad", "trainer.temperature"): (0.1, "one_of", 0.05, 0.1),
    ("rdm", "trainer.gamma"): (5.0, "uniform", 1, 10),
    ("rdm", "trainer.variance_weight"): (0.004, "uniform", 0.001, 0.007),
    ("rdm", "trainer.anneal_steps"): (1500, "int_uniform", 800, 2700),
    ("rdm", "trainer.lr_after"): (1.5e-5, "uniform", 8e-6, 2e-5),
    ("rdm", "batch_size"): (88, "int_uniform", 70, 100),
    ("idm", "trainer.feature_gamma"): (1.0, "10_to", -1, 1),  # of its authors' code
    ("idm", "trainer.gradient_gamma"): (1000.0, "10_to", 1, 5),
    ("idm", "trainer.anneal_steps"): (1500, "int_uniform", 0, 5000),
    ("idm", "trainer.ema_decay"): (0.95, "uniform", 0.90, 0.99),
    ("and_mask", "trainer.tau"): (1.0, "uniform", 0.5, 1),
    ("sand_mask", "trainer.tau"): (0.5, "uniform", 0, 1),  # DomainBed's default trains nothing
    ("sand_mask", "trainer.k"): (10.0, "10_to", -3, 5),
    ("mldg", "trainer.beta"): (1.0, "10_to", -1, 1),
    ("mldg", "trainer.n_meta_test"): (2, "one_of", 1, 2),
    ("fish", "trainer.meta_lr"): (0.5, "one_of", 0.05, 0.1, 0.5),
    ("sam", "trainer.rho"): (0.05, "one_of", 0.01, 0.02, 0.05, 0.1),  # of SWAD's code
    ("sagm", "trainer.rho"): (0.05, "one_of", 0.01, 0.02, 0.05, 0.1),  # of SAGM's code
    ("sagm", "trainer.alpha"): (0.001, "one_of", 0.01, 0.02, 0.05, 0.1),
    ("gsam", "trainer.rho"): (0.05, "one_of", 0.01, 0.02, 0.05, 0.1),
    ("transfer", "trainer.gamma"): (1.0, "10_to", -2, 1),
    ("transfer", "trainer.radius"): (2.0, "uniform", 0.1, 3),
    ("transfer", "trainer.adversary_steps"): (10, "one_of", 1, 2, 5),
    ("transfer", "trainer.adversary_lr"): (1e-3, "10_to", -4.5, -2.5),
    ("urm", "trainer.adversarial_weight"): (0.1, "uniform", 0, 0.2),
    ("urm", "trainer.output"): ("tanh", "one_of", "tanh", "relu"),
    ("urm", "trainer.discriminator_layers"): (1, "one_of", 1, 2, 3),
    ("urm", "trainer.discriminator_lr"): (5e-5, "10_to", -6, -4.5),
}
CASES = [(dataset, "erm", key, of) for (dataset, key), of in SHARED.items()]
CASES += [(IMAGES, method, key, of) for (method, key), of in OWN.items()]


def composed(*overrides: str, protocol: str = "paper_2022") -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [f"protocol={protocol}", *overrides, "sweep_name=test"])
    OmegaConf.update(config, "dataset.root", "somewhere")
    return config


def at(config: DictConfig, trial_seed: int = 0, hparams_seed: int = 0) -> DictConfig:
    config.protocol.trial_seed, config.protocol.hparams_seed = trial_seed, hparams_seed
    return config


@functools.cache
def roots() -> list[DictConfig]:
    return [OmegaConf.create({"protocol": {"trial_seed": trial, "hparams_seed": hparams}})
            for trial in range(2) for hparams in range(1, 1001)]  # fmt: skip


def drawn(name: str, distribution: str, *bounds: Any) -> list[Any]:
    return [draw(name, None, distribution, *bounds, _root_=root) for root in roots()]


def exponent(distribution: str, value: Any) -> float:
    base = {"10": math.log10, "2_": math.log2}
    return base.get(distribution.removeprefix("int_")[:2], float)(value)


@pytest.mark.parametrize(("dataset", "method", "key", "of"), CASES)
def test_a_hyperparameter_is_domainbeds(
    dataset: str, method: str, key: str, of: tuple[Any, ...]
) -> None:
    config = composed(f"dataset={dataset}", f"trainer={method}", "test_domains=[a]")
    default, distribution, *bounds = of
    assert OmegaConf.select(config, key) == default
    values = [OmegaConf.select(at(config, trial, hparams), key)
              for trial in range(2) for hparams in range(1, 16)]  # fmt: skip
    if distribution == "one_of":
        assert set(values) == set(bounds)
        return
    assert len(set(values)) > 15
    whole = distribution.startswith("int_")
    assert all(isinstance(value, int) == whole for value in values)
    low, high = bounds
    assert all(low - 0.2 * whole <= exponent(distribution, v) <= high for v in values if v)
    mean = sum(exponent(distribution, v) for v in values if v) / len(values)
    # Of 30 uniform draws; four standard errors, since there are many hyperparameters.
    assert abs(mean - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * 30) + 0.1 * whole


@pytest.mark.parametrize("method", ["cad", "cond_cad"])
def test_cad_draws_powers_of_ten(method: str) -> None:
    config = composed(f"dataset={IMAGES}", f"trainer={method}", "test_domains=[a]")
    values = {at(config, 0, hparams).trainer.gamma for hparams in range(1, 60)}
    assert values == {1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0}


@pytest.mark.parametrize(
    ("dataset", "gamma", "variance", "steps", "batch"),
    [
        ("domain_net", (0.1, 1.0), (0, 0), (1500, 3000), (30, 60)),
        ("terra_incognita", (1.0, 10.0), (0, 0), (800, 2700), (30, 60)),
        ("office_home", (0.1, 10.0), (0, 0), (800, 2700), (70, 100)),
        ("vlcs", (0.1, 10.0), (0.001, 0.007), (800, 2700), (70, 100)),
        (MNIST, (0.1, 10.0), (0.001, 0.007), (800, 2700), (8, 512)),
    ],
)
def test_rdm_has_ranges_for_each_dataset(
    dataset: str,
    gamma: tuple[float, float],
    variance: tuple[float, float],
    steps: tuple[int, int],
    batch: tuple[int, int],
) -> None:
    config = composed(f"dataset={dataset}", "trainer=rdm", "test_domains=[a]")
    for hparams in range(1, 20):
        at(config, 0, hparams)
        assert gamma[0] <= config.trainer.gamma <= gamma[1]
        assert variance[0] <= config.trainer.variance_weight <= variance[1]
        assert steps[0] <= config.trainer.anneal_steps <= steps[1]
        assert batch[0] <= config.batch_size <= batch[1]


def test_mixup_of_2020_did_not_search() -> None:
    config = composed(f"dataset={IMAGES}", "trainer=mixup_2020", "test_domains=[a]")
    assert [at(config, 0, hparams).trainer.alpha for hparams in range(3)] == [0.2, 0.1, 0.1]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):  # without a search
        assert compose("config", ["trainer=mixup_2020"]).trainer.alpha == 0.1


def test_domain_net_has_smaller_batches() -> None:
    config = composed("dataset=image_folder", "dataset.name=domain_net", "test_domains=[a]")
    assert (config.batch_size, config.steps_per_epoch) == (32, 1000)
    largest = max(at(config, trial, hparams).batch_size
                  for trial in range(2) for hparams in range(1, 31))  # fmt: skip
    assert 28 <= largest < 2**5


@pytest.mark.parametrize("distribution", [d for d in DISTRIBUTIONS if d != "one_of"])
def test_draws_are_uniform_in_the_exponent(distribution: str) -> None:
    values = [exponent(distribution, v) for v in drawn("x", distribution, 10, 14)]
    assert min(values) >= 10 - 0.01
    assert max(values) < 14
    quarters = [sum(int(v) == 10 + i for v in values) / len(values) for i in range(4)]
    assert quarters == pytest.approx(4 * [0.25], abs=0.04)  # four standard errors


def test_names_and_seeds_part_the_streams() -> None:
    first, second = (drawn(name, "uniform", 0, 1) for name in ("lr", "batch_size"))
    pairs = list(zip(first, second, strict=True))
    covariance = sum((a - 0.5) * (b - 0.5) for a, b in pairs) / len(pairs)
    assert abs(12 * covariance) < 0.09  # correlation; four standard errors
    assert len(set(first)) == len(first)  # so trials differ, too
    assert first == drawn("lr", "uniform", 0, 1)


def test_a_draw_is_the_same_on_every_machine() -> None:
    root = OmegaConf.create({"protocol": {"trial_seed": 1, "hparams_seed": 2}})
    assert draw("lr", 0, "uniform", 0, 1, _root_=root) == 0.442240018523925


@pytest.mark.parametrize("dataset", [MNIST, IMAGES])
def test_all_methods_share_what_is_not_theirs(dataset: str) -> None:
    keys = ("batch_size", "optimizer.lr", "optimizer.weight_decay", "model.dropout", "data_seed")
    configs = [composed(f"dataset={dataset}", f"trainer={m}", "test_domains=[a]") for m in METHODS]
    for hparams_seed in (0, 1, 7):
        shared = {tuple(OmegaConf.select(at(config, 1, hparams_seed), key) for key in keys)
                  for config in configs}  # fmt: skip
        assert len(shared) == 1


def test_what_is_set_wins() -> None:
    config = composed("dataset=pacs", "optimizer.lr=0.5", "test_domains=[a]")
    assert at(config, 0, 3).optimizer.lr == 0.5


def test_data_and_splits_follow_from_the_trial_alone() -> None:
    for overrides in (["trainer=erm"], ["trainer=irm", "test_domains=[plus90]"]):
        for hparams_seed in (0, 5):
            config = at(composed(f"dataset={MNIST}", *overrides), 2, hparams_seed)
            assert (config.data_seed, config.dataset.seed) == (2, 2)


def test_every_run_of_a_sweep_has_its_own_seed() -> None:
    options = itertools.product(
        (MNIST, "rotated_mnist"), METHODS, ("[plus90]", "[minus90]"), range(3), range(4)
    )
    seeds = []
    for dataset, method, test_domains, trial, hparams in options:
        root = {
            "dataset": {"_target_": dataset}, "trainer": {"_target_": method},
            "test_domains": test_domains.strip("[]").split(","),
            "protocol": {"trial_seed": trial, "hparams_seed": hparams},
        }  # fmt: skip
        seeds.append(run_seed(_root_=OmegaConf.create(root)))
    assert len(set(seeds)) == len(seeds) == 192
    pair = composed(f"dataset={MNIST}", "test_domains=[plus90,plus80]").seed
    assert pair == composed(f"dataset={MNIST}", "test_domains=[plus80,plus90]").seed
    assert composed(f"dataset={MNIST}", "trainer=erm").seed == 1516420389  # in every process


@pytest.mark.parametrize(
    ("key", "value"),
    [("trial_seed", "abc"), ("hparams_seed", -1), ("hparams_seed", True), ("trial_seed", 0.5)],
)
def test_a_seed_that_is_none(key: str, value: object) -> None:
    root = OmegaConf.create({"protocol": {"trial_seed": 0, "hparams_seed": 0, key: value}})
    with pytest.raises(ConfigError, match=rf"protocol\.{key}={value}: must be a whole number"):
        draw("lr", 1, "uniform", 0, 1, _root_=root)


@pytest.mark.parametrize(
    ("dataset", "steps"),
    [(MNIST, 100), ("rotated_mnist", 100), (IMAGES, 300), ("domain_net", 1000), ("vlcs", 300)],
)
def test_the_presets(dataset: str, steps: int) -> None:
    paper = composed(f"dataset={dataset}", "test_domains=[a]")
    main = composed(f"dataset={dataset}", "test_domains=[a]", protocol="domainbed_main")
    for config in (paper, main):
        assert (config.total_steps, config.steps_per_epoch, config.epochs) == (5001, steps, None)
        assert (config.holdout_fraction, config.evaluate_train) == (0.2, True)
        assert (config.observer.monitor, config.observer.keep) == ("validation_accuracy", "best")
        assert config.observer.patience is None
    differing = {key for key in paper if key != "dataset" and paper[key] != main[key]}
    assert differing == {"protocol", "model"}
    assert (paper.model.freeze_bn, paper.model.pretrained) == (True, True)
    assert (main.model.freeze_bn, main.model.pretrained) == (False, False)


@pytest.mark.parametrize("dataset", ["camelyon17", "fmow", "spawrious"])
@pytest.mark.parametrize("protocol", ["paper_2022", "domainbed_main"])
def test_datasets_of_which_domainbed_sets_no_interval(dataset: str, protocol: str) -> None:
    """Its default is 100 steps; the hyperparameters stay those of images of 224x224."""
    config = composed(f"dataset={dataset}", "test_domains=[a]", protocol=protocol)
    assert (config.steps_per_epoch, config.total_steps, config.batch_size) == (100, 5001, 32)
    given = composed(f"dataset={dataset}", "steps_per_epoch=300", protocol=protocol)
    assert given.steps_per_epoch == 300


def planned(experiment: str, *overrides: str) -> list[list[str]]:
    """What Hydra's sweeper would run."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    params = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    parsed = OverridesParser.create().parse_overrides([*params, *overrides])
    return BasicSweeper.split_arguments(
        list({o.key_or_group: o for o in parsed}.values()), max_batch_size=None
    )[0]


@pytest.mark.parametrize(
    ("experiment", "domains", "single", "with_pairs"),
    [
        ("domainbed_colored_mnist", ["plus90", "plus80", "minus90"], 180, 360),
        ("domainbed_rotated_mnist", ["'0'", "'15'", "'30'", "'45'", "'60'", "'75'"], 360, 1260),
        ("domainbed_pacs", ["art_painting", "cartoon", "photo", "sketch"], 240, 600),
        ("domainbed_vlcs", ["Caltech101", "LabelMe", "SUN09", "VOC2007"], 240, 600),
        ("domainbed_office_home", ["Art", "Clipart", "Product", "'Real World'"], 240, 600),
        ("domainbed_terra_incognita", [f"location_{i}" for i in (100, 38, 43, 46)], 240, 600),
        (
            "domainbed_domain_net",
            ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"],
            360,
            1260,
        ),
        (
            "domainbed_sviro",
            [
                *("aclass", "escape", "hilux", "i3", "lexus"),
                *("tesla", "tiguan", "tucson", "x5", "zoe"),
            ],
            600,
            3300,
        ),
    ],
)
def test_a_sweep_has_as_many_runs_as_domainbeds(
    experiment: str, domains: list[str], single: int, with_pairs: int
) -> None:
    jobs = planned(experiment)
    assert len(jobs) == 2 * single  # methods
    assert len({tuple(job) for job in jobs}) == len(jobs)
    left_out = [*((d,) for d in domains), *itertools.combinations(domains, 2)]
    both = ",".join(f"[{','.join(names)}]" for names in left_out)
    assert len(planned(experiment, f"test_domains={both}", "trainer=irm")) == with_pairs


BENCHMARKS = ("pacs", "vlcs", "office_home", "terra_incognita", "domain_net", "sviro")


@pytest.mark.parametrize("dataset", BENCHMARKS)
def test_an_experiment_leaves_out_each_domain_of_its_dataset_in_its_order(dataset: str) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [f"experiment=domainbed_{dataset}"])
    params = planned(f"domainbed_{dataset}", "trainer=erm,irm,vrex")
    keys = [word.partition("=")[0] for word in params[0]]
    swept = [dict(zip(keys, (w.partition("=")[2] for w in job), strict=True)) for job in params]
    assert {job["trainer"] for job in swept} == {"erm", "irm", "vrex"}
    left_out = dict.fromkeys(job["test_domains"] for job in swept)
    parser = OverridesParser.create()
    names = [parser.parse_override(f"test_domains={word}").value() for word in left_out]
    assert [str(name) for (name,) in names] == list(config.dataset.domains)
    assert list(config.test_domains) == list(config.dataset.domains)[:1]


@pytest.mark.parametrize(("dataset", "steps"), [("domain_net", 15001), ("pacs", 5001)])
def test_15000_steps_are_a_protocol_of_their_own(dataset: str, steps: int) -> None:
    """As in the codes of SWAD, MIRO and SAGM: N_STEPS 15001, for DomainNet only."""
    words = [f"experiment=domainbed_{dataset}", "dataset.root=somewhere"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        short, long = (
            compose("config", [*words, *more]) for more in ([], ["protocol=domainbed_15000"])
        )
    assert (short.total_steps, long.total_steps) == (5001, steps)
    assert (short.protocol.name, long.protocol.name) == ("paper_2022", "domainbed_15000")
    assert short.steps_per_epoch == long.steps_per_epoch
    differing = {key for key in short if short[key] != long[key]}
    assert differing == {"protocol", "total_steps"} - ({"total_steps"} if steps == 5001 else set())
