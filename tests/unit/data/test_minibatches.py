"""The streams of minibatches: pure, resumable, the same for any number of workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fishr_exp.core.contracts import Minibatch
from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.data.datasets.tensors import TensorDomain
from fishr_exp.data.images.decoding import Picture
from fishr_exp.data.images.domain import ImageDomain
from fishr_exp.data.minibatches import Minibatches, awaited, chunks, loader


class Noisy:
    """A domain whose labels are the indices and whose images are the augmentation's draws."""

    def __init__(self, name="noisy", count=23, broken_at=-1):
        self.name, self.count, self.broken_at = name, count, broken_at

    def __len__(self):
        return self.count

    def read(self, indices, augment=None):
        if self.broken_at in indices.tolist():
            raise TrainingError("pictures/seven.png: the image cannot be read")
        x = (
            torch.zeros(len(indices))
            if augment is None
            else torch.rand(len(indices), generator=augment)
        )
        return Minibatch(x, indices.clone())


def in_memory(count=23):
    x = torch.arange(count, dtype=torch.float32).reshape(count, 1, 1, 1)
    return TensorDomain("memory", x, torch.arange(count))


def stream(domain=None, batch_size=5, seed=0, count=23):
    domain = domain or Noisy(count=count)
    return Minibatches(domain, torch.arange(len(domain)), batch_size, seed)


def same(ones, others):
    ones, others = list(ones), list(others)
    return len(ones) == len(others) and all(
        torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(ones, others, strict=True)
    )


def test_a_pass_shows_each_sample_once_and_drops_the_rest():
    minibatches = stream()
    assert minibatches.per_pass == 4
    for number in range(3):
        shown = torch.cat([minibatches[4 * number + i].y for i in range(4)])
        assert len(set(shown.tolist())) == 20


def test_passes_have_orders_of_their_own():
    minibatches = stream(batch_size=23)
    assert not torch.equal(minibatches[0].y, minibatches[1].y)
    assert sorted(minibatches[0].y.tolist()) == sorted(minibatches[1].y.tolist())


def test_only_the_samples_of_the_part_are_shown():
    minibatches = Minibatches(Noisy(), torch.tensor([3, 5, 7, 11]), 2, seed=0)
    assert {i for k in range(6) for i in minibatches[k].y.tolist()} == {3, 5, 7, 11}


def test_a_minibatch_depends_on_nothing_but_seed_name_and_number():
    forward = [stream()[k] for k in range(9)]  # a fresh stream each
    torch.rand(5)
    minibatches = stream()
    backward = [minibatches[k] for k in reversed(range(9))][::-1]
    assert same(forward, backward)
    assert not same(forward, [stream(seed=1)[k] for k in range(9)])
    assert not same(forward, [stream(Noisy("another"))[k] for k in range(9)])


def test_augmentation_is_drawn_anew_for_each_minibatch():
    minibatches = stream(batch_size=23)
    assert not torch.equal(minibatches[0].x, minibatches[1].x)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("domain", [Noisy(), in_memory()])
def test_a_loader_gives_the_same_from_any_start_with_any_number_of_workers(domain, num_workers):
    reference = [stream(domain)[k] for k in range(9)]
    assert same(loader(stream(domain), 0, 9, num_workers=num_workers), reference)
    assert same(loader(stream(domain), 6, 9, num_workers=num_workers), reference[6:])


def test_loaders_leave_the_global_stream_alone():
    before = torch.get_rng_state()
    list(loader(stream(), 0, 5))
    list(loader(stream(), 0, 5, num_workers=1))
    list(chunks(Noisy(), torch.arange(5), 2))
    assert torch.equal(before, torch.get_rng_state())


def test_a_loader_of_an_endless_run_starts_at_once():
    endless = iter(loader(stream(), 0, 10**15))
    assert torch.equal(next(endless).y, stream()[0].y)


def test_the_whole_part_comes_in_order_and_is_augmented_anew():
    minibatches = stream(batch_size=None)
    assert minibatches.per_pass == 1
    assert not minibatches.constant
    assert torch.equal(minibatches[0].y, torch.arange(23))
    assert torch.equal(minibatches[1].y, torch.arange(23))
    assert not torch.equal(minibatches[0].x, minibatches[1].x)


def test_the_whole_part_of_a_domain_in_memory_is_read_once():
    domain = in_memory()
    minibatches = Minibatches(domain, torch.arange(2, 20), None, seed=0)
    assert minibatches.constant
    read = list(loader(minibatches, 0, 3, num_workers=2, pin_memory=True))
    assert len({m.x.data_ptr() for m in read}) == 1
    assert read[0].y.tolist() == list(range(2, 20))
    assert not stream(domain).constant


def test_no_worker_is_started_for_what_is_there_already():
    iterator = iter(loader(Minibatches(in_memory(), torch.arange(9), None, 0), 0, 2, num_workers=2))
    next(iterator)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_expected_error_of_a_worker_stays_one_line(num_workers):
    minibatches = stream(Noisy(broken_at=7))
    with pytest.raises(TrainingError) as caught:
        list(loader(minibatches, 0, 20, num_workers=num_workers))
    assert str(caught.value) == "pictures/seven.png: the image cannot be read"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_chunks_read_a_part_once_in_order_without_augmentation(num_workers):
    indices = torch.tensor([9, 2, 4, 4, 0])
    read = list(chunks(Noisy(), indices, 2, num_workers=num_workers))
    assert [len(m.y) for m in read] == [2, 2, 1]
    assert torch.equal(torch.cat([m.y for m in read]), indices)
    assert not torch.cat([m.x for m in read]).any()


def test_an_empty_part_has_no_chunk():
    read = chunks(Noisy(), torch.arange(0), 2)
    assert len(read) == 0
    assert list(read) == []


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [
        (23, 1, r"batch_size=1: .*at least 2"),
        (23, 0, r"batch_size=0: .*at least 2"),
        (1, None, r"batch_size=null: domain noisy has 1 training sample, .*holdout_fraction"),
        (0, 8, r"batch_size=8: domain noisy has 0 training samples, .*at least 2"),
        (23, 24, r"batch_size=24: domain noisy has 23 training samples; choose at most 23"),
    ],
)
def test_sizes_that_cannot_be_name_the_domain_and_the_mend(count, batch_size, expected):
    with pytest.raises(ConfigError, match=expected):
        stream(count=count, batch_size=batch_size)


def test_a_process_ends_though_a_loader_is_open():
    """Its workers ignore SIGTERM, by which Python ends them."""
    code = """
import torch
from fishr_exp.data.minibatches import Minibatches, loader
from fishr_exp.data.datasets.tensors import TensorDomain

domain = TensorDomain("a", torch.zeros(8, 1), torch.zeros(8, dtype=torch.int64))
stream = iter(loader(Minibatches(domain, torch.arange(8), 2, 0), 0, 99, num_workers=1))
next(stream)
import builtins; builtins.kept = stream
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Pictures:
    """Images of one color each, as many as are asked for; reads take their time."""

    def __init__(self, count=23, broken_at=-1):
        self.count, self.broken_at = count, broken_at

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i == self.broken_at:
            raise TrainingError("pictures/seven.png: the image cannot be read")
        return Picture(np.full((8, 9, 3), 10 * i, np.uint8), (8, 9))


def images(**arguments):
    pictures = Pictures(**arguments)
    return ImageDomain("images", pictures, torch.arange(len(pictures)), image_size=6, augment=True)


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_threads_read_images_in_order_from_any_start(num_workers):
    reference = [stream(images())[k] for k in range(30)]  # over several passes
    assert same(loader(stream(images()), 0, 30, num_workers=num_workers), reference)
    assert same(loader(stream(images()), 7, 30, num_workers=num_workers), reference[7:])
    parts = [images().read(part) for part in torch.arange(23).split(4)]
    assert same(chunks(images(), torch.arange(23), 4, num_workers=num_workers), parts)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_cannot_be_read_ends_a_loader(num_workers):
    with pytest.raises(TrainingError, match=r"^pictures/seven\.png: the image cannot be read$"):
        list(loader(stream(images(broken_at=7)), 0, 20, num_workers=num_workers))


def test_threads_end_with_their_loader():
    iterator = iter(loader(stream(images()), 0, 10**15, num_workers=3))
    next(iterator)
    assert any(thread.name.startswith("images") for thread in threading.enumerate())
    iterator.close()
    for thread in threading.enumerate():
        if thread.name.startswith("images"):
            thread.join(timeout=10)
            assert not thread.is_alive()


class EnoughError(Exception):
    pass


class Stuck(Noisy):
    """A domain of which only the first sample can be read, until there is a file."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def go_on(self):
        self.file.touch()

    def read(self, indices, augment=None):
        while indices.tolist() != [0] and not self.file.exists():
            time.sleep(0.01)
        return super().read(indices, augment)


class StuckPictures(Pictures):
    """The same of images."""

    def __init__(self):
        super().__init__()
        self.event = threading.Event()

    def go_on(self):
        self.event.set()

    def __getitem__(self, i):
        if i:
            self.event.wait()
        return super().__getitem__(i)


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_a_wait_can_be_ended(kind, monkeypatch, tmp_path):
    """It would be endless, as on a file system that does not answer."""
    for module in ("minibatches", "images.threads"):
        monkeypatch.setattr(f"fishr_exp.data.{module}.PATIENCE", 0.01)
    source = domain = Stuck(tmp_path / "go on")
    if kind == "threads":
        source, labels = StuckPictures(), torch.arange(23)
        domain = ImageDomain("images", source, labels, image_size=6, augment=False)
    calls = []

    def waiting():
        calls.append(None)
        if first and len(calls) == 3:
            raise EnoughError

    first = None
    read = awaited(chunks(domain, torch.arange(2), 1, num_workers=1), waiting)
    try:
        first = next(read)
        assert first.y.tolist() == [0]
        calls.clear()  # of the time in which the worker started
        with pytest.raises(EnoughError):
            next(read)
    finally:
        source.go_on()


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_a_wait_goes_on_otherwise(kind, monkeypatch, tmp_path):
    for module in ("minibatches", "images.threads"):
        monkeypatch.setattr(f"fishr_exp.data.{module}.PATIENCE", 0.01)
    source = domain = Stuck(tmp_path / "go on")
    if kind == "threads":
        source, labels = StuckPictures(), torch.arange(23)
        domain = ImageDomain("images", source, labels, image_size=6, augment=False)
    read = list(awaited(chunks(domain, torch.arange(2), 1, num_workers=1), source.go_on))
    assert [m.y.tolist() for m in read] == [[0], [1]]


def test_what_is_not_read_by_workers_is_awaited_as_it_is():
    batches = [Noisy().read(torch.tensor([k])) for k in range(2)]
    assert same(awaited(batches, lambda: None), batches)


def test_a_minibatch_that_cannot_be_sent_is_an_error(monkeypatch):
    """With a full /dev/shm, PyTorch loses it in a thread of the worker, and waits forever."""

    def full(tensor):
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)\nmore")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    said = (
        r"^num_workers=2: a worker cannot send a minibatch \(unable to write .* \(28\)\); enlarge"
    )
    with pytest.raises(TrainingError, match=said):
        list(loader(stream(), 0, 3, num_workers=2))
    assert len(list(loader(stream(), 0, 3))) == 3  # as the message says


def test_workers_that_cannot_be_started_are_an_error(monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(multiprocessing, "Lock", full)
    said = r"^num_workers=1: the workers cannot be started \(No space left on device\); enlarge"
    with pytest.raises(TrainingError, match=said):
        list(loader(stream(), 0, 3, num_workers=1))


class Deadly(Noisy):
    """A domain whose reader is killed, as by the system for its memory."""

    def read(self, indices, augment=None):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_an_error():
    with pytest.raises(TrainingError, match=r"^num_workers=1: DataLoader worker .*; it may lack"):
        list(loader(stream(Deadly()), 0, 3, num_workers=1))


def test_a_worker_that_a_waiting_signal_ended_is_none():
    """The signal is handled, as at the end of a step."""

    def handle() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        list(awaited(loader(stream(Deadly()), 0, 3, num_workers=1), handle))


LEAVES_OTHERS_ALONE = """
import multiprocessing, signal, time
from tests.unit.data.test_minibatches import Noisy
from fishr_exp.data.minibatches import Minibatches, loader
import torch

def sleep():
    time.sleep(60)

if __name__ == "__main__":
    other = multiprocessing.get_context("fork").Process(target=sleep, daemon=True)
    other.start()
    stream = Minibatches(Noisy(), torch.arange(8), 4, 0)
    batches = iter(loader(stream, 0, 4, num_workers=1))
    next(batches)
    from fishr_exp.data import minibatches
    (own,) = minibatches._workers
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch raises an error there
    minibatches._kill_workers()
    own.join(10)
    print(own.is_alive(), other.is_alive())
    other.kill()
"""


def test_only_our_own_workers_are_ended(tmp_path):
    """A program that uses the loaders keeps its other child processes."""
    script = tmp_path / "host.py"
    script.write_text(LEAVES_OTHERS_ALONE)
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([sys.executable, str(script)], env=path, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert done.stdout.split() == ["False", "True"], done.stderr
