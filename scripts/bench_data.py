"""Images per second of DomainBed's training loader and of ours, and how long a step waits.

- `domainbed`: torchvision's `ImageFolder` with DomainBed's chain, one DataLoader per domain.
- `files`: our domains, every image decoded at every read.
- `cache`: our domains, decoded once.

All yield float32 minibatches of each domain in turn, from the same images in random order, with
the same number of workers per domain: processes for `domainbed` (DomainBed itself uses 8, for many
cores), threads for ours. Each contender has its own process. They take turns, round after round,
and the workers of the others are stopped meanwhile. Each first reads as many batches as its workers
prefetch, which are not timed. `times` is the median over the rounds of the ratio to `domainbed` in
the same round; the bar is 10 for `cache` at 224. `CPU ms` is the processor time per image in all
processes, which hardly depends on other load. Memory is what process and workers hold (Pss) at the
end, minus what the process held before the loaders were made, without the pages of mapped files,
which the system may reclaim; `mapped` shows those.

The second table is about ERM steps of a ResNet-18 in bfloat16 with channels_last, the fastest here
and so the hardest to feed, with `cache`: the share of a step that waits for its batch (bar: under
3 %), and how much longer a step takes than on a batch that is already in memory. Batches that were
ready when the timing began are not counted. The loader's threads and the step share these cores.

With `--device cuda` a minibatch counts as read once it is on the device, as float32: DomainBed's is
copied as its `train.py` does; ours comes from page-locked memory, without waiting for the copy, and
the device changes the colors. Steps run on the device, which goes on computing while the next batch
is read; the host waits for it once a step, as in a run, when it looks at the objective. The waiting
is the host's.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from pages import explained, measured, write_page
from tabulate import tabulate
from torch.utils.data import DataLoader, RandomSampler

from fishr_exp.core._torchvision import torchvision
from fishr_exp.core.contracts import Batch
from fishr_exp.data.datasets.image_folder import image_folder
from fishr_exp.data.minibatches import Minibatches, loader
from fishr_exp.models.backbone import backbone
from fishr_exp.trainers.erm import Erm
from fishr_exp.training.precision import autocast
from fishr_exp.training.step import make_players, optimizer_step

CONTENDERS = ("domainbed", "files", "cache")
BARS = {("cache", 224): 10.0}
MOST_WAITING = 0.03  # of a step


def domainbed(root: Path, size: int, batch_size: int, workers: int) -> list[DataLoader]:
    """Return a loader a domain, as DomainBed makes them."""
    T = torchvision.transforms
    chain = T.Compose(
        [
            T.RandomResizedCrop(size, scale=(0.7, 1.0)),
            T.RandomHorizontalFlip(),
            T.ColorJitter(0.3, 0.3, 0.3, 0.3),
            T.RandomGrayscale(),
            T.ToTensor(),
            T.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    found = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        images = torchvision.datasets.ImageFolder(str(folder), transform=chain)
        endless = RandomSampler(images, replacement=True, num_samples=10**9)
        found.append(DataLoader(images, batch_size, sampler=endless, num_workers=workers))
    return found


def ours(
    root: Path, size: int, batch_size: int, workers: int, cache: str | None, device: torch.device
) -> list:
    """Return a loader a domain, as a run makes them."""
    domains = image_folder(root=str(root), name="bench", image_size=size, augment=True, cache=cache)
    return [
        loader(
            Minibatches(domain, torch.arange(len(domain)), batch_size, 0),
            0,
            10**9,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        for domain in domains.by_name.values()
    ]


def batches(loaders: list, device: torch.device) -> Iterator[Batch]:
    """Join a minibatch of each domain on the device, as the loop does."""
    for minibatches in zip(*loaders, strict=True):
        yield Batch.join([minibatch.to(device) for minibatch in minibatches])


def arrived(minibatches: Iterable, device: torch.device) -> None:
    """Take minibatches of either kind to a device; on the CPU they are there."""
    if device.type != "cpu":
        for minibatch in minibatches:
            if isinstance(minibatch, list):  # DomainBed's
                for tensor in minibatch:
                    tensor.to(device)
            else:
                minibatch.to(device)


class Contender:
    """A process with loaders, whose workers read ahead only in its turn."""

    def __init__(self, name: str, arguments: argparse.Namespace, size: int, cache: str) -> None:
        # What this process uses of CUDA does not survive a fork.
        context = multiprocessing.get_context("spawn" if arguments.device == "cuda" else None)
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, name, arguments, size, cache))
        self.process.start()
        self.start_up = self.pipe.recv()
        self.rates: list[float] = []
        self.costs: list[float] = []
        self.signal(signal.SIGSTOP)

    def measure(self, seconds: float) -> None:
        """Read for so long."""
        self.signal(signal.SIGCONT)
        self.pipe.send(seconds)
        rate, cost = self.pipe.recv()
        self.rates.append(rate)
        self.costs.append(cost)
        self.signal(signal.SIGSTOP)

    def memory(self) -> tuple[float, float]:
        """Return MiB of all processes beyond what was held before, and of mapped files."""
        self.signal(signal.SIGCONT)
        self.pipe.send(None)
        return self.pipe.recv()

    def signal(self, number: int) -> None:
        """Send a signal to the process and its workers."""
        for process in (self.process.pid, *_children(self.process.pid)):
            os.kill(process, number)

    def close(self) -> None:
        """End the process and its workers."""
        for process in (*_children(self.process.pid), self.process.pid):
            os.kill(process, signal.SIGKILL)
        self.process.join()


def _serve(
    pipe: Connection, name: str, arguments: argparse.Namespace, size: int, cache: str
) -> None:
    """Make loaders, read when told to, and say how fast that was."""
    torch.set_num_threads(1)  # a process that is not forked does not know of it
    device = torch.device(arguments.device)
    torch.zeros(1, device=device)  # what a device needs is held before
    before, _ = _pss([os.getpid()])
    root, batch_size, workers = arguments.root, arguments.batch_size, arguments.workers
    started = time.perf_counter()
    if name == "domainbed":
        loaders = domainbed(root, size, batch_size, workers)
    else:
        loaders = ours(root, size, batch_size, workers, cache if name == "cache" else None, device)
    stream, images = zip(*loaders, strict=True), batch_size * len(loaders)
    arrived(next(stream), device)
    pipe.send(time.perf_counter() - started)
    while True:
        seconds = pipe.recv()
        everybody = [os.getpid(), *_children(os.getpid())]
        if seconds is None:
            own, mapped = _pss(everybody)
            pipe.send((own - before, mapped))
            continue
        for _ in range(2 * workers + 1):
            arrived(next(stream), device)
        _synchronize(device)
        cpu, started, count = _cpu(everybody), time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            arrived(next(stream), device)
            count += images
        _synchronize(device)
        elapsed = time.perf_counter() - started
        pipe.send((count / elapsed, (_cpu(everybody) - cpu) / count * 1e3))


def _synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _children(process: int | None) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    if path.exists():
        return [int(child) for child in path.read_text().split()]
    found = []  # some kernels do not list them
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if int(stat.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(stat.parent.name))
    return found


def _cpu(processes: list[int]) -> float:
    """Return processor seconds of processes."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _pss(processes: list[int]) -> tuple[float, float]:
    """Return MiB that processes hold, and of the cache's mapped files."""
    own = mapped = 0
    for process in processes:
        is_map = False
        for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                is_map = ".pixels" in line
            elif line.startswith("Pss:"):
                kib = int(line.split()[1])
                own, mapped = own + kib * (not is_map), mapped + kib * is_map
    return own / 2**10, mapped / 2**10


def measure(arguments: argparse.Namespace, size: int, cache: str) -> list[list[object]]:
    """Measure all contenders at a size; return the rows of the table."""
    contenders = {name: Contender(name, arguments, size, cache) for name in arguments.contenders}
    shuffled = np.random.default_rng(0)
    for _ in range(arguments.rounds):
        for name in shuffled.permutation(list(contenders)):
            contenders[name].measure(arguments.seconds)
    rows: list[list[object]] = []
    for name, one in contenders.items():
        first, median, third = np.quantile(one.rates, (0.25, 0.5, 0.75))
        own, mapped = one.memory()
        times = bar = ""
        if "domainbed" in contenders:
            ratio = float(np.median(np.divide(one.rates, contenders["domainbed"].rates)))
            times, least = f"{ratio:.1f}", BARS.get((name, size))
            if least:
                bar = f"≥ {least:g} {'met' if ratio >= least else 'not met'}"
        rows.append(
            [size, name, f"{median:.0f}", f"{first:.0f} – {third:.0f}", times,
             f"{np.median(one.costs):.2f}", f"{one.start_up:.1f}", f"{own:.0f}", f"{mapped:.0f}",
             bar]
        )  # fmt: skip
        one.close()
    return rows


def waiting(arguments: argparse.Namespace, size: int, cache: str) -> list[list[object]]:
    """Take steps on batches as they come, and on one that is there; return rows of the table."""
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    model = backbone(
        input_shape=(3, size, size), num_classes=7, library="torchvision", name="resnet18",
        pretrained=False, weights_file=None, freeze_bn=False, dropout=0.0,
    ).to(device, memory_format=torch.channels_last)  # fmt: skip
    method = Erm()
    players = make_players(method, model, torch.optim.Adam)

    def step(batch: Batch) -> None:
        optimizer_step(method, model, players, batch, 0, autocast("bf16", device))

    def stream_of(workers: int) -> Iterator[Batch]:
        root, batch_size = arguments.root, arguments.batch_size
        return batches(ours(root, size, batch_size, workers, cache, device), device)

    there = next(stream_of(0))
    for _ in range(3 if device.type == "cuda" else 1):
        step(there)
    _synchronize(device)
    alone = [_seconds(lambda: step(there)) for _ in range(arguments.steps)]
    rows: list[list[object]] = []
    for workers in sorted({0, 1, arguments.workers}):
        stream = stream_of(workers)
        for _ in range(2 * workers + 2):  # what lies ready, and what starting up takes
            step(next(stream))
        whole, waited = [], []
        for _ in range(arguments.steps):
            started = time.perf_counter()
            batch = next(stream)
            waited.append(time.perf_counter() - started)
            step(batch)
            whole.append(time.perf_counter() - started)
        share = sum(waited) / sum(whole)
        longer = float(np.median(whole) / np.median(alone)) - 1
        rows.append(
            [size, workers, f"{np.median(alone):.3g}", f"{np.median(whole):.3g}",
             f"{100 * share:.2f} %", f"{100 * longer:+.1f} %",
             f"< 3 % {'met' if share < MOST_WAITING else 'not met'}"]
        )  # fmt: skip
    return rows


def _seconds(act: Callable[[], None]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def header(arguments: argparse.Namespace) -> str:
    """Machine, versions and settings."""
    return measured(
        f"{len(os.sched_getaffinity(0))} cores",
        f"load before {os.getloadavg()[0]:.1f}",
        f"{arguments.root.name} in minibatches of {arguments.batch_size}",
        f"{arguments.workers} workers for each domain",
        f"{arguments.rounds} rounds of {arguments.seconds:g} s",
        device=arguments.device,
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("root", type=Path, help="the folder of the domains")
    add("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS], metavar="NAME")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--sizes", type=int, nargs="+", default=[96, 224])
    add(
        "--workers",
        type=int,
        default=1,
        help="for each domain: processes, or our threads (default 1)",
    )
    add("--batch-size", type=int, default=32, help="images of each domain (default 32)")
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=3, help="of a turn (default 3)")
    add("--steps", type=int, default=5, help="of a ResNet-18, for the waiting (default 5)")
    add("--cache", help="folder of the cache (default: one that is removed)")
    add("--markdown", type=Path, metavar="FILE", help="write a page")
    arguments = parser.parse_args(argv)
    head = header(arguments)
    print(head)
    columns = ["pixels", "contender", "images/s", "quartiles", "times", "CPU ms", "start, s",
               "MiB", "mapped", "bar"]  # fmt: skip
    more = ["pixels", "workers", "step alone, s", "step, s", "waiting", "longer", "bar"]
    rows: list[list[object]] = []
    waits: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = arguments.cache or folder
        for measured, names, read, threads in (
            (rows, columns, measure, 1),
            (waits, more, waiting, len(os.sched_getaffinity(0))),
        ):
            torch.set_num_threads(threads)
            for size in arguments.sizes:
                measured += read(arguments, size, cache)
                if arguments.markdown:  # after each, so that a stopped command leaves it
                    pages = ["# Reading images", head, explained(__doc__)]
                    pages += [
                        tabulate(lines, headers, tablefmt="github", disable_numparse=True)
                        for lines, headers in ((rows, columns), (waits, more))
                        if lines
                    ]
                    write_page(arguments.markdown, pages)
            print(f"\n{tabulate(measured, names, disable_numparse=True)}", flush=True)


if __name__ == "__main__":
    main()
