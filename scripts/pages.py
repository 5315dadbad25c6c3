"""What the benchmarks write: the line that says where they were measured, pages and sections."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fishr_exp.runs.environment import environment
from fishr_exp.runs.files import write_atomically


def measured(*settings: str, device: str = "cpu") -> str:
    """Return date, commit, machine, settings and versions as a sentence."""
    known = environment(device, torch.get_num_threads())
    machine = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    machine += known["processor"]
    versions = ", ".join(f"{package} {version}" for package, version in known["versions"].items())
    where = ", ".join([machine, *filter(None, settings)])
    commit = known["git_commit"] or "unknown"
    return f"Measured {datetime.date.today()} at commit {commit} on {where}; {versions}."


def explained(documentation: str | None, skip: int = 1) -> str:
    """Return a script's documentation without its first paragraphs: its title, how it is run."""
    return "\n\n".join((documentation or "").split("\n\n")[skip:]).strip()


def write_numbers(file: Path, numbers: Mapping[str, Any]) -> None:
    """Write what was measured as JSON; one that is cut off leaves the file before."""
    write_atomically(file, json.dumps(numbers, indent=1))


def write_page(page: Path, parts: Iterable[str]) -> None:
    """Write a page of these parts; one that is cut off leaves the page before."""
    write_atomically(page, "\n\n".join(part.strip() for part in parts) + "\n")


def write_section(page: Path, section: str) -> None:
    """Put a section into a page, in place of the one whose heading begins like its first line."""
    text = f"\n{page.read_text()}" if page.exists() else ""
    above, _, rest = text.partition(f"\n{section.partition(chr(10))[0]}")
    below = rest.partition("\n## ")
    parts = [above.strip(), section.strip(), "".join(below[1:]).strip()]
    write_page(page, filter(None, parts))
