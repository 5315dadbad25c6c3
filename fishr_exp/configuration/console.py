"""How a run's log lines look on the console."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm

_YELLOW, _PLAIN = "\033[33m", "\033[0m"

_name = ""  # of the run whose lines these are, where several run at once


def name_lines(name: str) -> None:
    """Put a run's name before each line of this process; for runs side by side."""
    global _name
    _name = name


class ConsoleFormatter(logging.Formatter):
    """The message alone; a warning begins with `warning:`, in yellow on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = super().format(record)
        if record.levelno == logging.WARNING:
            line = f"warning: {line}"
            if sys.stderr.isatty():
                line = f"{_YELLOW}{line}{_PLAIN}"
        return f"{_name}: {line}" if _name else line


class ConsoleHandler(logging.StreamHandler[Any]):
    """Writes lines above the bars of a terminal, where there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record's line."""
        with tqdm.external_write_mode(file=self.stream):
            if _name and self.stream.isatty():
                self.stream.write("\r\033[K")  # over the line of the command, which writes it again
            super().emit(record)


_report_error = logging.Handler.handleError
_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Say something on the console, past the logs; what was said in this process, not again."""
    if message not in _warned:
        _warned.add(message)
        sys.stderr.write(f"warning: {message}\n")


def _handle_error(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Report an error of a log: in one line, if it cannot be written."""
    error = sys.exc_info()[1]
    if isinstance(error, BrokenPipeError):  # its reader has seen enough
        return
    if isinstance(error, OSError):
        warn_once(f"the log cannot be written ({error.strerror or error})")
    else:
        _report_error(handler, record)


logging.Handler.handleError = _handle_error  # type: ignore[method-assign, assignment]
