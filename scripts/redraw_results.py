"""Redraw the figures and tables of `docs/results` from the records beside them.

    python scripts/redraw_results.py [--out DIR] [NAME ...]

The records are those of `docs/results/records`, without checkpoints, and nothing is trained; but
`evaluate_digits` is about a trained network, so its run is made again, in some seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import matching_study
import pacs_table
from pages import write_section
from PIL import Image

from fishr_exp.api import compose, run
from fishr_exp.cli import evaluate, table

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
RECORDS = RESULTS / "records"
COLORS = 128
PACS = ("art_painting", "cartoon", "photo", "sketch")


def keep(file: Path, copy: Path) -> None:
    """Copy a file; a figure with as few colors as it needs, which makes it a third as large."""
    if file.suffix != ".png":
        shutil.copyfile(file, copy)
        return
    with Image.open(file) as figure:
        figure.convert("RGB").quantize(COLORS).save(copy, optimize=True)


def drawn(folder: str, names: dict[str, str], *words: str) -> Callable[[Path, Path], None]:
    """Return what makes the table of some records, and copies some of its files.

    Args:
        folder: Of the records.
        names: Name of a file of the table -> its name among the results.
        words: More words for `fishr-table`.
    """

    def draw(out: Path, place: Path) -> None:
        _quietly(table.main, [str(RECORDS / folder), "--out", str(place), *words])
        for name, copy in names.items():
            keep(place / name, out / copy)

    return draw


def tabled(
    folder: str, page: str, file: str, names: dict[str, str], *words: str
) -> Callable[[Path, Path], None]:
    """Return what draws as `drawn` does, and writes a table of it into a page's last section."""

    def draw(out: Path, place: Path) -> None:
        drawn(folder, names, *words)(out, place)
        write(out, page, f"## Table\n\n{(place / file).read_text()}")

    return draw


def colored_mnist(number: int, *words: str) -> Callable[[Path, Path], None]:
    """Return what writes a table of the paper that is about Colored MNIST."""
    name = f"colored_mnist_table{number}"
    protocol = ("--protocol", "colored_mnist")
    return tabled(name, f"{name}.md", "colored_mnist.md", {}, *protocol, *words)


def matching(out: Path, place: Path) -> None:
    """Draw the figures of the study of matching, and write its tables."""
    records = RECORDS / "pacs_lite0"
    compared = matching_study.against_erm(matching_study.read(records))
    write(out, "matching.md", f"## Numbers\n\n{matching_study.describe(compared)}")
    write(out, "matching.md", f"## Noise\n\n{matching_study.describe_noise(records)}")
    _quietly(matching_study.main, [str(records), "--out", str(place)])
    for figure in place.glob("*.png"):
        keep(figure, out / figure.name)


def pacs_lite0(out: Path, place: Path) -> None:
    """Write the tables of PACS with ImageNet weights, and draw accuracy over gamma."""
    figures = {
        f"figure-{number}-pacs-{domain}.png": f"pacs_lite0_{domain}.png"
        for number, domain in enumerate(PACS, 1)
    }
    drawn("pacs_lite0", figures)(out, place)
    tables = pacs_table.tables(RECORDS / "pacs_lite0", RECORDS / "pacs_lite0_restarted")
    write(out, "pacs_lite0.md", f"## Tables\n\n{tables}")


def write(out: Path, page: str, section: str) -> None:
    """Write a section into a page, or a copy of it."""
    if not (out / page).exists():
        shutil.copyfile(RESULTS / page, out / page)
    write_section(out / page, section)


def evaluate_digits(out: Path, place: Path) -> None:
    """Draw the confusion of ERM on colored digits, and below it its calibration."""
    made = run(compose("trainer=erm", "tracker=none", f"output_dir={place}"))
    _quietly(evaluate.main, [str(made.path), "--out", str(place / "of")])
    parts = [Image.open(place / "of" / f"{name}.png") for name in ("confusion", "reliability")]
    whole = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    whole.save(place / "whole.png")
    keep(place / "whole.png", out / "evaluate_digits.png")


DRAWN: dict[str, Callable[[Path, Path], None]] = {
    "quickstart": drawn(
        "colored_digits_fishr",
        {"figure.png": "quickstart.png", "curves.png": "quickstart_curves.png"},
    ),
    "colored_mnist_table2": colored_mnist(2),
    "colored_mnist_table5": colored_mnist(5),
    "colored_mnist_table6": colored_mnist(6, "--rows", "Fishr"),
    "gamma_colored_mnist": tabled(
        "gamma_colored_mnist",
        "gamma_colored_mnist.md",
        "table.md",
        {"figure.png": "gamma_colored_mnist.png"},
    ),
    "pacs_resnet18": drawn("pacs_resnet18", {"curves.png": "pacs_resnet18.png"}),
    "pacs_lite0": pacs_lite0,
    "matching": matching,
    "evaluate_digits": evaluate_digits,
}


for size in (96, 224):  # where `make gpu` has left its records
    if (RECORDS / (gpu := f"pacs_lite0_gpu_{size}")).is_dir():
        DRAWN[gpu] = drawn(gpu, {"curves.png": f"{gpu}.png"})


def _quietly(main: Callable[[Sequence[str]], object], words: Sequence[str]) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main(words)
    if status:
        raise SystemExit(said.getvalue())


def redraw(out: Path, names: Sequence[str]) -> None:
    """Draw the named results into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            DRAWN[name](out, Path(place))


def main(words: Sequence[str] | None = None) -> int:
    """Redraw what is named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DRAWN)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: docs/results)")
    arguments = parser.parse_args(words)
    if unknown := set(arguments.names) - DRAWN.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(DRAWN)}")
    redraw(arguments.out, arguments.names or list(DRAWN))
    return 0


if __name__ == "__main__":
    sys.exit(main())
