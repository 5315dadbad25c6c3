"""The keys of the configuration that need more than a type: one table for all who treat them.

A key's type and default stand where it is used: a group's in the signature of what it builds, the
root's in `Arguments` and `conf/config.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_NONE = object()


@dataclass(frozen=True)
class Key:
    """What there is to know of a key, at the root (`seed`) or in a group (`dataset.root`)."""

    # A group that builds a part: the keywords that the run gives to what it builds.
    builds: tuple[str, ...] | None = None
    own: tuple[str, ...] = ()  # of such a group: the keys that the run takes, not what is built
    optional: bool = False  # a group that may be null
    choice: bool = False  # a group that only changes other keys
    argument: bool = True  # a root key that a run takes; the others say where and how to run
    bookkeeping: bool = False  # it decides where and how fast a run is computed, not what
    neutral: Any = _NONE  # a key that came later: where it computes what was computed before it
    of_a_protocol: bool = False  # only a protocol sets it; without one there is no such key
    of_each_run: bool = False  # a protocol leaves it to each run of a sweep, or to the machine
    example: str = ""  # how to give it, where KEY=VALUE would not say it

    @property
    def came_later(self) -> bool:
        """Whether runs of earlier versions lack the key."""
        return self.neutral is not _NONE


KEYS: dict[str, Key] = {
    # the parts of a run
    "dataset": Key(builds=()),
    "model": Key(builds=("input_shape", "num_classes")),
    "loss": Key(builds=()),
    "trainer": Key(builds=("loss",)),
    "optimizer": Key(builds=("params",), own=("classifier_lr_factor", "decay_norms_and_biases")),
    "scheduler": Key(
        builds=("optimizer", "total_steps"), own=("per", "monitor"), optional=True, neutral=None
    ),
    "observer": Key(builds=()),
    "averaging": Key(builds=(), optional=True, neutral=None),
    "tracker": Key(builds=("folder",), optional=True, bookkeeping=True),
    # groups without a part
    "experiment": Key(choice=True, argument=False),
    "debug": Key(choice=True, argument=False),
    "protocol": Key(choice=True, argument=False),
    "search": Key(choice=True, argument=False),
    # the root
    "test_domains": Key(of_each_run=True, example="[NAME] (a domain to leave out)"),
    "total_steps": Key(neutral=None),
    "data_seed": Key(of_a_protocol=True),
    "sampling": Key(neutral="permutation"),
    "limit_samples": Key(neutral=None),
    "clip_norm": Key(neutral=None),
    "precision": Key(neutral="fp32"),
    "channels_last": Key(neutral=False),
    "compile": Key(neutral=False),
    "metrics": Key(of_each_run=True, neutral=["accuracy", "loss"]),
    "evaluation_batch_size": Key(of_each_run=True),
    "diagnostics": Key(bookkeeping=True),
    "profile_steps": Key(bookkeeping=True),
    "tags": Key(bookkeeping=True),
    "print_config": Key(bookkeeping=True, argument=False),
    "show_test_accuracy": Key(bookkeeping=True),
    "num_workers": Key(bookkeeping=True),
    "device": Key(bookkeeping=True),
    "resume": Key(bookkeeping=True),
    "retry_failed": Key(bookkeeping=True),
    "checkpoint_every": Key(bookkeeping=True),
    "share_steps": Key(bookkeeping=True),
    "check_first": Key(bookkeeping=True, argument=False),
    "sweep_position": Key(bookkeeping=True, argument=False),
    "allow_targets": Key(bookkeeping=True, argument=False),
    "output_dir": Key(bookkeeping=True, argument=False),
    "sweep_name": Key(bookkeeping=True, argument=False),
    # in groups
    "dataset.root": Key(of_each_run=True, example="DIR (the folder of its data)"),
    "dataset.lists": Key(example="{DOMAIN:FILE,OTHER:FILE} (files of lines `path label`)"),
    "dataset.download": Key(bookkeeping=True, of_each_run=True),
    "dataset.cache": Key(bookkeeping=True),
    "dataset.missing_classes": Key(bookkeeping=True),  # refuses or not; what is read is the same
    "model.weights_file": Key(of_each_run=True),
    "protocol.trial_seed": Key(of_each_run=True),
    "protocol.hparams_seed": Key(of_each_run=True),
    "protocol.departures": Key(bookkeeping=True),  # these two follow from the other settings
    "protocol.digest": Key(bookkeeping=True),
}

PARTS = tuple(name for name, key in KEYS.items() if key.builds is not None)
CHOICES = tuple(name for name, key in KEYS.items() if key.choice)
OF_A_PROTOCOL = tuple(name for name, key in KEYS.items() if key.of_a_protocol)
OF_EACH_RUN = tuple(name for name, key in KEYS.items() if key.of_each_run)
# Root keys that are no arguments of a run.
APART = tuple(name for name, key in KEYS.items() if not key.argument)


def given_as(key: str) -> str:
    """Write how a key is given: KEY=VALUE, or with an example."""
    return f"{key}={KEYS[key].example if key in KEYS and KEYS[key].example else 'VALUE'}"
