"""The documentation tells the truth: its links and paths exist, and its examples run."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from fishr_exp import __version__, contracts
from fishr_exp.runs.identity import place_of, settings
from fishr_exp.tracking.mirror import Mirror
from fishr_exp.training.evaluation import Counts
from tests.e2e.conftest import Outcome, caller

from .test_rooms import FLOORS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
name_of = partial(Path.relative_to, ROOT)

# Sentences that readers stumbled over, and words that are no idiom; see CONTRIBUTING.md.
STUMBLING = (
    "does not part it from",
    "Whoever follows",
    "takes the colour away",
    "takes the color away",
    "p cannot be small with so few",
    "both are said in",
    "threads that wait for each other",
    "ERM to the last bit, is added",
    "shared out among",
    "a few steps of one run a method",
    "that another process is at",
    "that another is at",
    "is under *additional runs*",
    "build nothing else than",
    "are split alike",
    "who may import whom",
    "words on the command line make it smaller",
    "until somebody answers",
    "bears four processes",
    "means nothing without its code",
    "the known difficulty of model selection",
    "the machine adds by itself",
    "foretold",
    "spoilt",
    "anew",
    "heeded",
    "is no folder",
)


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = without_code(page.read_text())
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_paths_exist(page: Path) -> None:
    """Of the repository; a capital letter or a sign of a pattern marks a placeholder."""
    found = r"(?<![\w/.])((?:fishr_exp|conf|docs|tests|scripts|hydra_plugins)/[\w./*{},-]*)"
    for path in re.findall(found, page.read_text()):
        path = path.rstrip(".,")
        if "{" in path or any(part.isupper() for part in re.split(r"[/.]", path)):
            continue
        assert any(ROOT.glob(path.rstrip("/"))), f"{page}: {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_places_in_the_code_can_be_imported(page: Path) -> None:
    for name in set(re.findall(r"`(fishr_exp(?:\.\w+)+)`", page.read_text())):
        parts = place_of(name).split(".")  # the changelog names places of earlier versions
        modules = [ROOT.joinpath(*parts[:n]) for n in (len(parts), len(parts) - 1)]
        assert any(m.is_dir() or m.with_suffix(".py").exists() for m in modules), f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_plain_language(page: Path) -> None:
    text = " ".join(page.read_text().split())
    assert not [words for words in STUMBLING if re.search(rf"(?<!\w){re.escape(words)}", text)]


def test_the_map_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for room, floor in FLOORS.items():
        assert f"| {floor} | `fishr_exp/{room}/` |" in text, room


def test_every_decision_is_listed() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    for path in (ROOT / "docs" / "adr").glob("0*.md"):
        assert f"({path.name})" in index, path


def test_the_names_for_own_parts_are_there() -> None:
    assert issubclass(contracts.Trainer, torch.nn.Module)
    assert issubclass(contracts.Averaging, torch.nn.Module)
    assert isinstance(Mirror, type)


def test_the_citation_is_that_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert {"message", "title", "authors"} <= set(citation)


# --- the examples of CONTRIBUTING.md -------------------------------------------------------


def examples() -> dict[str, list[str]]:
    """The code blocks that say which file they are, by its path, in order."""
    files: dict[str, list[str]] = {}
    for block in re.findall(r"```(?:python|yaml)\n(.*?)```", CONTRIBUTING, re.DOTALL):
        if path := re.search(r"^# ((?:mylab|parts)/\S+)$", block, re.MULTILINE):
            files.setdefault(path[1], []).append(block)
    return files


def commands() -> list[str]:
    return re.findall(r"^(?:PYTHONPATH=\. )?fishr-exp --config-dir parts .*$", CONTRIBUTING, re.M)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds the examples' files, as the current one."""
    for name, versions in examples().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(versions[0])
    for domain in ("cartoon", "photo", "sketch"):
        for kind in ("cat", "dog"):
            (tmp_path / "images" / domain / kind).mkdir(parents=True)
            for i in range(6):
                gray = Image.new("L", (16, 16), 20 * i)
                gray.convert("RGB").save(tmp_path / "images" / domain / kind / f"{i}.png")
    for module in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for module in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[module]


def run(command: str, folder: Path) -> Outcome:
    words = shlex.split(command.replace("--config-dir parts", "--config-dir=parts"))
    words = [word.replace("=DIR", f"={folder / 'images'}") for word in words]
    few = ["epochs=1", "steps_per_epoch=2", "batch_size=4", "tracker=none", "device=cpu"]
    if "pets" in command:
        few.append("dataset.image_size=32")
    return caller(folder / "runs")(*words[words.index("fishr-exp") + 1 :], *few, tiny=())


def test_every_kind_of_part_has_an_example() -> None:
    groups = {path.split("/")[1] for path in examples() if path.startswith("parts/")}
    assert groups == {"trainer", "dataset", "model", "averaging"}
    used = {path for path in examples() if any(f"={Path(path).stem}" in c for c in commands())}
    assert {path for path in examples() if path.startswith("parts/")} <= used


@pytest.mark.parametrize("command", commands())
def test_an_example_runs(command: str, own: Path) -> None:
    done = run(command, own)
    assert done.status == 0, done.err
    assert done.result()["status"] == "done"


def test_the_example_of_a_table_runs(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fishr-exp trainer=erm", own).status == 0
    monkeypatch.setattr(sys, "argv", ["steps_table.py", str(own / "runs")])
    runpy.run_path("mylab/steps_table.py")
    assert re.search(r"^ERM +0 +2$", capsys.readouterr().out, re.MULTILINE)


def test_the_example_of_a_metric_measures() -> None:
    entry = re.search(r'^ +("median_recall": lambda.*?\n +\)),\n', CONTRIBUTING, re.M | re.S)
    assert entry
    (metric,) = eval(f"{{{entry[1]}}}").values()
    confusion = torch.tensor([[3, 1, 0], [1, 1, 0], [0, 0, 0]])  # the third class is absent
    assert metric(Counts(confusion, 0.0)) == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_the_example_of_a_later_key_keeps_the_runs_of_before() -> None:
    before, later = map(yaml.safe_load, examples()["parts/model/small.yaml"])
    assert settings({"model": before}) == settings({"model": later})
    assert settings({"model": before}) != settings({"model": {**later, "bias": False}})
