"""Writes the prediction for every sample, as CSV or Parquet, while they are made."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.sheets.sheet import inert

_KEY = "--predictions"
SUFFIXES = (".csv", ".parquet")
# Columns before the probabilities; `sample` is a path, or the position in the domain, from 0.
COLUMNS = ("run", "domain", "part", "sample", "label", "predicted")


class Predictions:
    """A file of predictions; it is there under its name once all are written.

    Args:
        path: The file; its suffix says what is written.
        names: What runs are called in it, by their folders; by default as their folders.

    Raises:
        ConfigError: If the suffix is another one, the file cannot be written, or PyArrow is needed
            and not installed.
    """

    def __init__(self, path: Path, names: Mapping[Path, str] | None = None) -> None:
        if path.suffix not in SUFFIXES:
            raise ConfigError(_KEY, path, f"must end in {' or '.join(SUFFIXES)}")
        if path.is_dir():
            raise ConfigError(_KEY, path, "is a folder", "pass a file in it")
        self._path, self._names = path, names or {}
        self._unfinished = path.with_name(f".{path.name}.tmp")
        self._writer: Any = None
        self._classes: list[str] = []
        if path.suffix == ".parquet":
            _pyarrow()  # before the first sample is read
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO | None = None
            if path.suffix == ".csv":
                self._file = self._unfinished.open("w", newline="", encoding="utf-8")
            else:
                self._unfinished.touch()
        except OSError as error:
            raise _unwritable(path, error) from error

    def __enter__(self) -> Predictions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None and self._path.suffix == ".parquet":
                self._writer.close()
            if self._file:
                self._file.close()
            if kind is None and self._writer is not None:
                self._unfinished.replace(self._path)
        except OSError as failed:
            raise _unwritable(self._path, failed) from failed
        finally:
            self._unfinished.unlink(missing_ok=True)

    def __call__(
        self,
        run: Path,
        domain: str,
        part: str,
        places: Sequence[str | int],
        labels: Sequence[int],
        predicted: Sequence[int],
        probability: Sequence[Sequence[float]],
        classes: Sequence[str],
    ) -> None:
        """Write the predictions for some samples.

        Raises:
            ConfigError: If the disk is full, or another run before has other classes.
        """
        if not self._classes:
            self._classes = list(classes)
        if self._classes != list(classes):
            reason = f"{run} has other classes than the runs before, which are columns"
            raise ConfigError(_KEY, self._path, reason, "write a file for each")
        named = {
            "run": [self._names.get(run, run.name)] * len(places),
            "domain": [domain] * len(places),
            "part": [part] * len(places),
            "sample": [str(place) for place in places],
            "label": [classes[y] for y in labels],
            "predicted": [classes[y] for y in predicted],
        }
        try:
            write = self._write_csv if self._file else self._write_parquet
            write(named, probability)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _write_csv(
        self, named: dict[str, list[str]], probability: Sequence[Sequence[float]]
    ) -> None:
        if self._writer is None:
            assert self._file
            self._writer = csv.writer(self._file, lineterminator="\n")
            self._writer.writerow([*COLUMNS, *(f"p_{name}" for name in self._classes)])
        for row, values in zip(zip(*named.values(), strict=True), probability, strict=True):
            self._writer.writerow([*map(inert, row), *(f"{value:.6g}" for value in values)])

    def _write_parquet(
        self, named: dict[str, list[str]], probability: Sequence[Sequence[float]]
    ) -> None:
        arrow = _pyarrow()
        columns = {key: arrow.array(values, arrow.string()) for key, values in named.items()}
        for name, values in zip(self._classes, zip(*probability, strict=True), strict=True):
            columns[f"p_{name}"] = arrow.array(values, arrow.float32())
        table = arrow.table(columns)
        if self._writer is None:
            self._writer = arrow.parquet.ParquetWriter(self._unfinished, table.schema)
        self._writer.write_table(table)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        hint = "pip install pyarrow, or pass a file that ends in .csv"
        raise ConfigError(_KEY, "*.parquet", "needs PyArrow, which is not installed", hint) from (
            error
        )
    return pyarrow


def _unwritable(path: Path, error: OSError) -> ConfigError:
    reason = f"cannot be written ({error.strerror or error})"
    return ConfigError(_KEY, path, reason, "pass another file")
