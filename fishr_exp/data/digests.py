"""What the data of a run are: a digest of the names and labels of each domain's samples.

A run holds the digests from its start on. So it is noticed if the data change before it resumes,
or between two runs of a table. Pixels are not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from torch import Tensor

from fishr_exp.core.contracts import Domain


def digest_of(names: Iterable[str], labels: Tensor, validation: Tensor | None = None) -> str:
    """Return eight characters that stand for the samples of a domain, in order.

    Args:
        names: The names of the samples, for instance paths relative to the folder of the data.
        labels: Their labels, int64 [N].
        validation: Of a given validation part, bool [N]; None if there is none.
    """
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    digest.update(labels.contiguous().numpy().tobytes())
    if validation is not None:
        digest.update(validation.contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def digests(by_name: Mapping[str, Domain]) -> dict[str, str]:
    """Return `SAMPLES DIGEST` of each domain; a domain without a digest has its samples only."""
    return {name: f"{len(domain)} {_own(domain)}".strip() for name, domain in by_name.items()}


def _own(domain: Domain) -> str:
    digest = getattr(domain, "digest", "")
    return digest if isinstance(digest, str) else ""


def changes(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Say in which domains the data of two runs differ; empty where they do not."""
    said = []
    for name in dict.fromkeys([*there, *here]):
        if name not in here:
            said.append(f"{name} is absent")
        elif name not in there:
            said.append(f"{name} is new")
        elif there[name] != here[name]:
            before, now = (of[name].partition(" ")[0] for of in (there, here))
            other = f"{now} samples, {before} before" if now != before else "other names or labels"
            said.append(f"{name} has {other}")
    return ", ".join(said)
