"""What all commands have: a version, and output that may lose its reader or hold any name."""

from __future__ import annotations

import argparse
import functools
import os
import select
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TextIO

import fishr_exp
from fishr_exp.configuration import console  # noqa: F401 - errors of a log are one line
from fishr_exp.core.errors import printable
from fishr_exp.core.secrets import masked, remember

P = ParamSpec("P")


def command(main: Callable[P, int | None]) -> Callable[P, int | None]:
    """Let a command end quietly, with status 0, when the reader of its output has seen enough.

    That is what `head -1` does. Characters that the output cannot hold are escaped, and passwords
    are masked, whoever prints them.
    """

    @functools.wraps(main)
    def wrapped(*arguments: P.args, **keywords: P.kwargs) -> int | None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        for word in sys.argv[1:]:
            remember(word)
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Masked(sys.stdout), _Masked(sys.stderr)  # type: ignore[assignment]
        try:
            try:
                return main(*arguments, **keywords)
            finally:
                sys.stdout.flush()  # here, since Python would report an error at its end
                if not isinstance(sys.exc_info()[1], Exception):  # whose traceback comes next
                    sys.stdout, sys.stderr = streams
        except BrokenPipeError:
            closed = closed_streams()
            if not closed:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for number in closed:
                os.dup2(nowhere, number)
            return 0

    return wrapped


class _Masked:
    """A stream on which passwords are masked."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Parser(argparse.ArgumentParser):
    """Reads the words of a command; a mistake is one line, and `--version` is known."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        version = f"{self.prog} {fishr_exp.__version__}"
        self.add_argument("--version", action="version", version=version)

    def add_allow_targets(self, of: str = "") -> None:
        """Let the user allow packages, modules or classes of their own."""
        self.add_argument(
            "--allow-targets", metavar="NAME", nargs="+", default=[],
            help=f"packages, modules or classes {of}of your own, as allow_targets in a run",
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with status 2."""
        self.exit(2, f"{self.prog}: {printable(message)}; {self.prog} --help shows the usage\n")


def as_folder(text: str) -> Path:
    """Read the name of a folder; an empty one would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a folder; pass . for the current one")
    return Path(text)


def closed_streams() -> list[int]:
    """Return which of standard output (1) and standard error (2) are pipes without a reader."""
    if not hasattr(select, "poll"):  # on Windows
        return [1]
    found = []
    for number in (1, 2):
        poll = select.poll()
        poll.register(number, 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            found.append(number)
    return found
