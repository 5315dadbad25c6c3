"""A hook of MkDocs: pages of the manual that are made of other files, and the lists of pages.

- `reference/commands.md`: the help of each command.
- `reference/configuration.md`: every option of every group, from the files under `conf/`.
- `reference/python.md`: the docstrings of what is public.
- `contributing.md`, `security.md`, `changelog.md`: the files beside `docs/`, with their links.
- Methods and decisions are listed by their headings, so a new one needs no edit here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomllib
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS, CONF = ROOT / "docs", ROOT / "conf"
BESIDE = {name: f"{name.lower()}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG")}
PUBLIC = ("fishr_exp.api", "fishr_exp.gradient_variance", "fishr_exp.contracts")
OF_CONTRACTS = "fishr_exp.core.contracts"
CODE = ("fishr_exp", "scripts", "tests", "conf")
FIRST_GROUPS = ("trainer", "dataset", "model", "optimizer")


def on_config(config: Any) -> Any:
    """Fill in the lists of methods and decisions."""
    for entry in config.nav:
        if "Methods" in entry:
            entry["Methods"] = _listed("methods")
        for part in entry.get("Design", ()):
            if "Decisions" in part:
                part["Decisions"] = _listed("adr")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here."""
    made = {
        "reference/commands.md": _commands(),
        "reference/configuration.md": _configuration(),
        "reference/python.md": _python(),
        **{place: (ROOT / f"{name}.md").read_text() for name, place in BESIDE.items()},
    }
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to the files beside `docs/` lead to their pages."""
    place = page.file.src_uri
    up = "../" * place.count("/")
    is_beside = place in BESIDE.values()
    outside = "" if is_beside else f"../{up}"
    for name, own in {**BESIDE, "README": "index.md"}.items():
        markdown = markdown.replace(f"]({outside}{name}.md", f"]({up}{own}")
    if is_beside:
        markdown = markdown.replace("](docs/", "](")
    return _without_links_to_code(markdown)


def _without_links_to_code(markdown: str) -> str:
    """Keep the text of links to files that are no pages, such as `scripts/bench_step.py`."""
    return re.sub(rf"\[([^\]]*)\]\((?:\.\./)+(?:{'|'.join(CODE)})/[^)]*\)", r"\1", markdown)


def _listed(folder: str) -> list[dict[str, str] | str]:
    """Return a section of the navigation: the overview first, then each page by its heading."""
    pages = sorted((DOCS / folder).glob("*.md"))
    others = [page for page in pages if page.name != "README.md"]
    return [f"{folder}/README.md", *({_heading(page): f"{folder}/{page.name}"} for page in others)]


def _heading(page: Path) -> str:
    found = re.search(r"^# (.+)$", page.read_text(), re.MULTILINE)
    return found[1].replace("`", "") if found else page.stem


def _commands() -> str:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    parts = ["# Commands", "What each command says with `--help`."]
    for name, entry in scripts.items():
        module = entry.partition(":")[0]
        help_of = [sys.executable, "-m", module, "--help"]
        text = subprocess.run(help_of, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        text = text.replace(f"{module.rpartition('.')[2]}.py", name)
        parts += [f"## {name}", f"```text\n{text.rstrip()}\n```"]
    return "\n\n".join(parts)


def _configuration() -> str:
    root = (CONF / "config.yaml").read_text()
    parts = [
        "# Configuration",
        "Every file under `conf/`. An option is chosen by `GROUP=NAME`, a value is set by"
        " `GROUP.KEY=VALUE`. `fishr-exp --cfg job` shows what the words of a command line come to.",
        f"## The root\n\n```yaml\n{root.rstrip()}\n```",
    ]
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    groups.sort(key=lambda name: FIRST_GROUPS.index(name) if name in FIRST_GROUPS else 99)
    for group in groups:
        parts.append(f"## {group}")
        for path, text in _options(CONF / group):
            parts.append(f"### {path}\n\n```yaml\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def _options(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.yaml")):
        option = path.relative_to(CONF).with_suffix("").as_posix()
        yield option.replace("/", "=" if option.count("/") == 1 else "/"), path.read_text()


def _python() -> str:
    parts = ["# Python", "What may be imported; everything else may change."]
    for name in PUBLIC:
        source = OF_CONTRACTS if name.endswith("contracts") else name
        parts.append(f"## {name}")
        parts += [f"::: {source}.{each}" for each in _names(name)]
    return "\n\n".join(parts)


def _names(module: str) -> list[str]:
    text = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    text = text if text.exists() else ROOT.joinpath(*module.split("."), "__init__.py")
    found = re.search(r"__all__ = \[(.*?)\]", text.read_text(), re.DOTALL)
    assert found, f"{module} has no __all__"
    return re.findall(r'"(\w+)"', found[1])
