"""Images a second: DomainBed's way to read training minibatches, and ours.

- `domainbed`: torchvision's `ImageFolder` with DomainBed's chain, a DataLoader a domain.
- `files`: our domains, every image decoded at every read.
- `cache`: our domains, decoded once.

All give float32 batches of one minibatch of each domain to this process, from the same images in
random order, by the same number of worker processes for each domain (DomainBed has 8, for many
cores). The contenders take turns, round after round; each first reads as many batches as its
workers hold ahead, which are not timed. `times` is the median over the rounds of the ratio to
`domainbed` in the same round; the bar is 10 for `cache` at 224. `CPU ms` is processor time of an
image in all processes, which hardly depends on what else the machine does. Memory is what all
worker processes hold beyond what they share with others (Pss), at the end, without the pages of
mapped files, which the system may take back; those are given beside.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch.utils.data import DataLoader, RandomSampler

from fishr_exp.contracts import Batch, Minibatch
from fishr_exp.data.image_folder import image_folder
from fishr_exp.data.minibatches import Minibatches, loader
from fishr_exp.results.environment import environment
from fishr_exp.vision import torchvision

CPU = torch.device("cpu")
CONTENDERS = ("domainbed", "files", "cache")
BARS = {("cache", 224): 10.0}
START, END = "<!-- bench_data -->", "<!-- end of bench_data -->"


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


def ours(root: Path, size: int, batch_size: int, workers: int, cache: str | None) -> list:
    """Return a loader a domain, as a run makes them."""
    domains = image_folder(root=str(root), name="bench", image_size=size, augment=True, cache=cache)
    return [
        loader(
            Minibatches(domain, torch.arange(len(domain)), batch_size, 0),
            0,
            10**9,
            num_workers=workers,
        )
        for domain in domains.by_name.values()
    ]


def batches(loaders: list) -> Iterator[Batch]:
    """Join a minibatch of each domain, as the loop does."""
    for minibatches in zip(*loaders, strict=True):
        yield Batch.join([m.to(CPU) if hasattr(m, "to") else Minibatch(*m) for m in minibatches])


class Contender:
    """Loaders whose workers read ahead only while they are timed."""

    def __init__(self, name: str, arguments: argparse.Namespace, size: int, cache: str) -> None:
        before = set(_children())
        root, batch_size, workers = arguments.root, arguments.batch_size, arguments.workers
        if name == "domainbed":
            loaders = domainbed(root, size, batch_size, workers)
        else:
            where = cache if name == "cache" else None
            loaders = ours(root, size, batch_size, workers, where)
        started = time.perf_counter()
        self.batches, self.images = batches(loaders), batch_size * len(loaders)
        next(self.batches)
        self.start_up = time.perf_counter() - started
        self.workers = [process for process in _children() if process not in before]
        self.ahead = 2 * arguments.workers + 1
        self.rates: list[float] = []
        self.costs: list[float] = []
        self.pause()

    def pause(self) -> None:
        """Let others have the cores."""
        for process in self.workers:
            os.kill(process, signal.SIGSTOP)

    def measure(self, count: int) -> None:
        """Read `count` batches, after those that lie ready."""
        for process in self.workers:
            os.kill(process, signal.SIGCONT)
        for _ in range(self.ahead):
            next(self.batches)
        cpu, started = self.cpu(), time.perf_counter()
        for _ in range(count):
            next(self.batches)
        seconds, cpu = time.perf_counter() - started, self.cpu() - cpu
        self.rates.append(count * self.images / seconds)
        self.costs.append(cpu / (count * self.images) * 1e3)
        self.pause()

    def cpu(self) -> float:
        """Return processor seconds of this process and the workers."""
        ticks = 0
        for process in (os.getpid(), *self.workers):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> tuple[float, float]:
        """Return MiB of the workers alone, and of mapped files that they have touched."""
        own = mapped = 0
        for process in self.workers:
            is_map = False
            for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
                if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                    is_map = ".pixels" in line
                elif line.startswith("Pss:"):
                    kib = int(line.split()[1])
                    own, mapped = own + kib * (not is_map), mapped + kib * is_map
        return own / 2**10, mapped / 2**10

    def close(self) -> None:
        """End the workers."""
        for process in self.workers:
            os.kill(process, signal.SIGCONT)
        del self.batches


def _children() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid]


def measure(arguments: argparse.Namespace, size: int, cache: str) -> list[list[object]]:
    """Measure all contenders at a size; return the rows of the table."""
    contenders = {name: Contender(name, arguments, size, cache) for name in arguments.contenders}
    shuffled = np.random.default_rng(0)
    for _ in range(arguments.rounds):
        for name in shuffled.permutation(list(contenders)):
            contenders[name].measure(arguments.batches)
    rows: list[list[object]] = []
    for name, one in contenders.items():
        first, median, third = np.quantile(one.rates, (0.25, 0.5, 0.75))
        own, mapped = one.memory()
        times = ""
        bar = ""
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
    for one in contenders.values():
        one.close()
    return rows


def header(arguments: argparse.Namespace) -> str:
    """Machine, versions and settings."""
    known, cpu = environment("cpu", 1), Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{package} {version}" for package, version in known["versions"].items())
    return (
        f"Measured {datetime.date.today()} at commit {known['git_commit'] or 'unknown'} on "
        f"{found[1] if found else 'an unknown processor'}, {cores} cores, load before "
        f"{os.getloadavg()[0]:.1f}; {arguments.root.name}, minibatches of {arguments.batch_size}, "
        f"{arguments.workers} workers for each domain, {arguments.rounds} rounds of "
        f"{arguments.batches} batches; {versions}."
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("root", type=Path, help="the folder of the domains")
    add("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS], metavar="NAME")
    add("--sizes", type=int, nargs="+", default=[96, 224])
    add("--workers", type=int, default=1, help="processes for each domain (default 1)")
    add("--batch-size", type=int, default=32, help="images of each domain (default 32)")
    add("--rounds", type=int, default=5)
    add("--batches", type=int, default=4, help="batches of a round (default 4)")
    add("--cache", help="folder of the cache (default: one that is removed)")
    add("--markdown", type=Path, metavar="FILE", help="write a section into FILE")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    head = header(arguments)
    print(head)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row for s in arguments.sizes for row in measure(arguments, s, arguments.cache or folder)
        ]
    columns = ["pixels", "contender", "images/s", "quartiles", "times", "CPU ms", "start, s",
               "MiB", "mapped", "bar"]  # fmt: skip
    print(f"\n{tabulate(rows, columns, disable_numparse=True)}")
    if arguments.markdown:
        table = tabulate(rows, columns, tablefmt="github", disable_numparse=True)
        pages = [START, "# Reading images", head, (__doc__ or "").partition("\n\n")[2], table, END]
        section = "\n\n".join(page.strip() for page in pages) + "\n"
        path = arguments.markdown
        old = path.read_text() if path.exists() else ""
        before, _, rest = old.partition(START)
        path.write_text(f"{before.rstrip()}\n\n{section}{rest.partition(END)[2]}".lstrip())


if __name__ == "__main__":
    main()
