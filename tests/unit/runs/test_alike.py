from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishr_exp.runs.alike import Alike
from fishr_exp.runs.identity import compared

VALUES = st.sampled_from([0, 0.0, 1, 1.0, True, False, None, "1", "data/", "NaN", [1.0, 2], []])
PART = st.dictionaries(
    st.sampled_from(["_target_", "gamma", "root", "name", "seed", "weights_file", "lr"]),
    VALUES | st.dictionaries(st.sampled_from(["a", "gamma"]), VALUES, max_size=2),
    max_size=4,
)
NEUTRAL = st.dictionaries(st.sampled_from(["gamma", "seed", "lr"]), VALUES, max_size=2)
PARTS = PART | st.builds(lambda part, neutral: {**part, "_neutral_": neutral}, PART, NEUTRAL)
NAMES = ["trainer", "dataset", "model", "protocol", "averaging", "seed", "precision",
         "test_domains", "output_dir", "total_steps", "trainer.gamma"]  # fmt: skip
CONFIGS = st.dictionaries(st.sampled_from(NAMES), PARTS | VALUES, max_size=6)


@settings(deadline=None)
@given(st.lists(CONFIGS, min_size=1, max_size=6))
def test_settings_are_those_of_each_configuration_by_itself(configs):
    alike = Alike()
    for config in configs:
        written = copy.deepcopy(config)
        kept, found = alike.config(config)
        assert repr(kept) == repr(written)  # 1 is not 1.0 here
        assert repr(list(found.items())) == repr(list(compared(written).items()))


def test_neutral_values_at_the_root():
    config = {"_neutral_": {"trainer.gamma": 3}, "trainer": {"gamma": 3, "l2": 0}}
    assert Alike().config(config)[1] == compared(config)


def test_neutral_values_of_a_key_with_a_dot():
    config = {"trainer": {"_neutral_": {"gamma": 0}}, "trainer.gamma": 0}
    assert Alike().config(config)[1] == compared(config)


def test_equal_parts_are_one_object():
    alike = Alike()
    (one, _), (other, _) = (
        alike.config({"trainer": {"gamma": gamma}, "model": {"hidden": [1, 2]}}) for gamma in (1, 2)
    )
    assert one["model"] is other["model"]
    assert one["trainer"] != other["trainer"]
    assert alike.one("a b") is alike.one(" ".join("ab"))
    assert type(alike.one(True)) is bool
    assert alike.one(1) == 1


def test_a_damaged_configuration_is_refused_each_time():
    alike = Alike()
    for _ in range(2):
        with pytest.raises((AttributeError, TypeError, ValueError)):
            alike.config({"trainer": {"_neutral_": 3}})
