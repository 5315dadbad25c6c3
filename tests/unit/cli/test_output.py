"""Commands whose reader goes away, and names that are not UTF-8."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fishr_exp.cli.output import closed_streams, command

ROOT = Path(__file__).resolve().parents[3]
CALLS = {
    "fishr-exp": ("run", "--cfg", "job"),
    "fishr-exp --info": ("run", "--info"),  # written by a log
    "fishr-exp --help": ("run", "--help"),
    "fishr-data": ("data", "list"),
    "fishr-data --help": ("data", "--help"),
    "fishr-table": ("table", "RUNS"),
    "fishr-sync": ("sync", "RUNS"),
    "fishr-sweep-plan": ("plan", "trainer=erm", "model.hidden=8", "output_dir=RUNS"),
    "fishr-diagnostics": ("diagnostics", "--help"),
    "fishr-average": ("average", "--help"),
    "fishr-eval": ("evaluate", "--help"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_reader_that_goes_away_is_no_error(name: str, factory) -> None:
    factory.sweep([100.0], seeds=1)
    module, *words = CALLS[name]
    words = [word.replace("RUNS", str(factory.root)) for word in words]
    code = f"import sys; from fishr_exp.cli.{module} import main; sys.exit(main())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=environment, stdout=writer,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_broken_pipe_is_an_error() -> None:
    """Such as that of a process that a command has started."""

    @command
    def main() -> int:
        raise BrokenPipeError

    assert closed_streams() == []
    with pytest.raises(BrokenPipeError):
        main()


def test_the_status_of_a_command_is_kept() -> None:
    assert command(lambda: 2)() == 2

    @command
    def main() -> int:
        raise SystemExit(3)

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 3


def test_other_errors_of_a_log_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        handler = logging.Handler()
        for error in (BrokenPipeError(), ValueError("no number"), OSError("disk full")):
            try:
                raise error
            except (OSError, ValueError):
                record = logging.LogRecord("a", logging.INFO, "b", 1, "said", (), None)
                handler.handleError(record)
        return 0

    assert command(main)() == 0
    err = capsys.readouterr().err
    assert "ValueError: no number" in err
    assert err.endswith("warning: the log cannot be written (disk full)\n")  # in one line
    assert "BrokenPipeError" not in err


def test_names_that_are_not_utf8_are_escaped() -> None:
    code = (
        "import os, sys; from fishr_exp.cli.output import command\n"
        "@command\n"
        "def main():\n"
        "    for stream in (sys.stdout, sys.stderr):\n"
        "        stream.write(os.fsdecode(b'caf\\xe9'))\n"
        "main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("caf\\udce9", "caf\\udce9")
