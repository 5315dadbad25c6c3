"""The command `fishr-data`: list, download, check and cache image datasets."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import OmegaConf
from tabulate import tabulate

from fishr_exp.cli.output import Parser, command
from fishr_exp.configuration.binding import part, unknown_key
from fishr_exp.configuration.command_line import quoted
from fishr_exp.configuration.messages import one_line
from fishr_exp.configuration.options import conf_dir, search_path
from fishr_exp.configuration.permissions import permissions_of
from fishr_exp.core.errors import ConfigError, printable
from fishr_exp.core.files import expanded
from fishr_exp.data.datasets.known import KNOWN
from fishr_exp.data.download.sources import SOURCES, UNTESTED

if TYPE_CHECKING:
    from fishr_exp.data.images.check import Found
    from fishr_exp.data.images.listed import Images

_BUILDERS = (  # of images in files
    "fishr_exp.data.datasets.image_folder.image_folder",
    "fishr_exp.data.datasets.path_lists.path_lists",
    "fishr_exp.data.datasets.spawrious.spawrious",
)
_NAMED = 5  # maximum number of files in a message


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 for problems in the data, 2 for a configuration error."""
    parser = Parser(
        prog="fishr-data", description="Download image datasets, and check them before training."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the datasets that have a configuration")
    get = commands.add_parser(
        "download",
        help="download a dataset: fetch, compare checksums, unpack",
        description="Fetch the archives of a dataset into DIR, or use those that are there, and"
        " unpack them into a folder of DIR. The same command resumes an interrupted transfer."
        f" {UNTESTED.capitalize()}. If a license or a web page prevents a download, the command"
        " prints where to download the files manually.",
    )
    get.add_argument("dataset", help=", ".join(SOURCES))
    get.add_argument("folder", metavar="DIR", help="for the archives and the dataset's folder")
    get.add_argument(
        "--mirror", action="append", default=[], metavar="URL",
        help="try URL/NAME for each archive first; may be given several times",
    )  # fmt: skip
    check = commands.add_parser(
        "check",
        help="count, read and compare all images of a dataset",
        description="Read every image. Exit status 1 for images that cannot be read, for files in"
        " two domains, and for counts that differ from those of the dataset. Images of odd sizes"
        " or of one color are only named.",
    )
    prepare = commands.add_parser(
        "prepare",
        help="decode all images of a dataset once, into a cache",
        description="Write the cache to dataset.cache, or to outputs/cache; if it exists, compare"
        " every byte, and write damaged files again.",
    )
    for of_dataset in (check, prepare):
        add = of_dataset.add_argument
        add("dataset", help="an option of the group dataset: pacs, vlcs, ...")
        add("root", help="the folder of its domains")
        add(
            "overrides",
            nargs="*",
            default=[],
            metavar="dataset.KEY=VALUE",
            help="overrides, as for fishr-exp",
        )
        add("-cd", "--config-dir", metavar="DIR", help="a folder of options, as for fishr-exp")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fishr_exp").setLevel(logging.INFO)  # such as the number of ignored files
    try:
        if options.command == "list":
            sys.stdout.write(_list())
            return 0
        if options.command == "download":
            return _download(options.dataset, options.folder, options.mirror)
        by_name = {"check": _check, "prepare": _prepare}[options.command]
        own = search_path(options.config_dir)
        return by_name(options.dataset, options.root, [*own, *quoted(options.overrides)])
    except Exception as error:
        message = one_line(error)
        if message is None:
            raise
        sys.stderr.write(f"fishr-data: {message}\n")
        return 2


def _list() -> str:
    rows = []
    for path in sorted((conf_dir() / "dataset").glob("*.yaml")):
        known = KNOWN.get(path.stem)
        description = next(
            line for line in path.read_text().splitlines() if not line.startswith("# @")
        )
        images = (known.images or "?") if known else ""
        classes = known.classes if known else ""
        rows.append(
            [path.stem, classes, images, _availability(path.stem), description.lstrip("# ")]
        )
    table = tabulate(rows, ["dataset", "classes", "images", "download", "what"], stralign="left")
    return f"{table}\n\nfishr-data download: {UNTESTED}\n"


def _availability(dataset: str) -> str:
    """Return how a dataset can be downloaded."""
    source = next((one for one in SOURCES.values() if dataset in one.datasets), None)
    if source is None:
        return ""
    return "manual" if source.by_hand else "untested"


def _download(dataset: str, folder: str, mirrors: Sequence[str]) -> int:
    from fishr_exp.data.download.download import download, find

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    if not folder.strip():
        raise ConfigError("DIR", folder, "must name a folder", "pass . for the current folder")
    try:
        target = download(dataset, expanded(folder), mirrors, say)
    except KeyboardInterrupt:
        sys.stderr.write("fishr-data: stopped; the same command resumes\n")
        return 130
    name = find(dataset)[1].datasets[0]
    if name in KNOWN:
        say(f"check it with: fishr-data check {name} {target}")
    else:
        say(f"train with: fishr-exp dataset={name} dataset.root={target.parent}")
    return 0


def _check(dataset: str, root: str, overrides: Sequence[str]) -> int:
    from fishr_exp.data.images import check
    from fishr_exp.data.images.decoding import MAX_PIXELS

    build = _builder(dataset, root, overrides)
    images = _images(build)
    found = check.examine(images, build.keywords.get("max_pixels", MAX_PIXELS))
    bad, odd, twice = check.unreadable(found), check.oddly_sized(found), [*check.duplicates(found)]
    plain = check.of_one_color(found)
    leaks = [group for group in twice if len({one.domain for one in group}) > 1]
    sys.stdout.write(f"{_table(images, bad, odd, plain, twice)}\n")
    known = KNOWN.get(dataset)
    wrong = []
    if known and (classes := len(next(iter(images.values())))) != known.classes:
        wrong.append(f"{known.title} has {known.classes} classes, but {classes} were found")
    if known and known.images not in (None, len(found)):
        wrong.append(f"{known.title} has {known.images} images, but {len(found)} were found")
    wrong += [f"{one.path}: cannot be read ({one.fault})" for one in bad[:_NAMED]]
    wrong += _more(bad, "that cannot be read")
    wrong += [f"two domains share an image: {_paths(group)}" for group in leaks[:_NAMED]]
    wrong += _more(leaks, "that domains share")
    notes = [
        f"{one.path}: all pixels have the color {one.color} (red, green, blue)"
        for one in plain[:_NAMED]
    ]
    notes += _more(plain, "of one color")
    notes += [f"{one.path}: {one.size[0]}x{one.size[1]} pixels" for one in odd[:_NAMED]]
    for line in (*wrong, *notes):
        sys.stdout.write(f"{printable(line)}\n")
    return int(bool(wrong))


def _prepare(dataset: str, root: str, overrides: Sequence[str]) -> int:
    from fishr_exp.data.images.cache import Cached

    build = _builder(dataset, root, ['dataset.cache="outputs/cache"', *overrides])
    domains, rows = build(), []
    for name, domain in domains.by_name.items():
        if not isinstance(domain.pictures, Cached):
            raise ConfigError(
                "dataset.cache", "null", "does not name a folder", "pass dataset.cache=DIR"
            )
        path, damaged = domain.pictures.path, not domain.pictures.is_intact()
        if damaged:
            path.unlink(missing_ok=True)
        size, skipped = 0 if damaged else path.stat().st_size, domains.skipped.get(name, 0)
        rows.append([name, len(domain), skipped, size / 2**20, path])
    if any(not row[3] for row in rows):
        sys.stderr.write("fishr-data: a file was damaged, and is written again\n")
        return _prepare(dataset, root, overrides)
    headers = ["domain", "images", "skipped", "MiB", "file"]
    sys.stdout.write(f"{tabulate(rows, headers, floatfmt='.1f')}\n")
    sys.stdout.write(f"train with dataset.cache={build.keywords['cache']}\n")
    return 0


def _images(build: functools.partial[Any]) -> Images:
    """List the images of a dataset with the function that its builder uses."""
    from fishr_exp.data.datasets.image_folder import find_images, image_folder
    from fishr_exp.data.datasets.path_lists import images_in_lists, path_lists
    from fishr_exp.data.datasets.spawrious import find_spawrious, spawrious

    finders: dict[Any, Callable[..., Images]] = {
        image_folder: find_images,
        spawrious: find_spawrious,
        path_lists: images_in_lists,
    }
    find = finders[build.func]
    keys = inspect.signature(find).parameters
    return find(**{key: build.keywords[key] for key in keys if key in build.keywords})


def _builder(dataset: str, root: str, overrides: Sequence[str]) -> functools.partial[Any]:
    """Return the dataset's builder, with its checked arguments."""
    with (
        permissions_of(overrides),
        hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"),
    ):
        own = [word for word in overrides if word.startswith("hydra.")]
        plain = hydra.compose("config", [f"dataset={dataset}", *own]).dataset
        if plain._target_ not in _BUILDERS:
            reason, hint = "is not a dataset of image files", "choose image_folder, pacs, vlcs, ..."
            raise ConfigError("dataset", dataset, reason, hint)
        for override in overrides:
            key, _, value = override.lstrip("+").partition("=")
            if key.startswith("dataset.") and key.split(".")[1] not in [*plain]:
                raise unknown_key(key, value, [name for name in plain if name[0] != "_"])
        node = hydra.compose("config", [f"dataset={dataset}", *overrides]).dataset
    node.root = root  # an override would need quotes and escapes
    if missing := sorted(OmegaConf.missing_keys(node)):
        raise ConfigError(missing[0], "???", "must be given", f"add {missing[0]}=VALUE")
    build = part(OmegaConf.to_container(node), "dataset")
    assert isinstance(build, functools.partial)
    return build


def _table(
    images: Images,
    bad: list[Found],
    odd: list[Found],
    plain: list[Found],
    twice: list[list[Found]],
) -> str:
    repeated = [
        one for group in twice for one in group[1:]
    ]  # the first of equal files is the image
    rows = []
    for domain, classes in images.items():
        counts = {name: len(paths) for name, paths in classes.items()}
        least = min(counts, key=lambda name: counts[name])
        kinds = (bad, repeated, odd, plain)
        lost = [sum(one.domain == domain for one in kind) for kind in kinds]
        rows.append(
            [domain, sum(counts.values()), len(counts), f"{least} ({counts[least]})", *lost]
        )
    total = [sum(row[i] for row in rows) for i in (1, 4, 5, 6, 7)]  # type: ignore[misc]
    rows.append(["all", total[0], "", "", *total[1:]])
    headers = ["domain", "images", "classes", "smallest class", "unreadable", "duplicates", "odd",
               "one color"]  # fmt: skip
    return tabulate(rows, headers, stralign="left")


def _paths(group: Sequence[Found]) -> str:
    return ", ".join(one.path for one in group[:_NAMED])


def _more(found: Sequence[object], what: str) -> list[str]:
    return [f"and {len(found) - _NAMED} more {what}"] if len(found) > _NAMED else []


if __name__ == "__main__":
    sys.exit(main())
