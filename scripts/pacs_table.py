"""The table of `experiment=pacs_lite0`: methods in the four test domains, and what selects them.

    python scripts/pacs_table.py DIR

Three tables, in Markdown. The first is after the last update, on all samples of the test domain.
`selected gamma` is, for each seed and test domain, the gamma (0 is among them) with the highest
accuracy on the validation parts of the training domains; `oracle` the one with the highest test
accuracy, which nobody has in practice. In the second table the training domains select the update
as well, among the evaluations at every 50 updates from the first one with the penalty on; accuracy
is on the validation part of the test domain, the only one that is evaluated at each of them. The
third has the accuracy on the validation parts of the training domains, after the last update.

Δ ERM is the mean of the differences to ERM with the same seed and test domain, in points; its
interval is a bootstrap over these pairs, p a sign-flip test, not corrected for the number of rows.
The oracle's gain is left out: it cannot be negative, since gamma 0 is among its choices. The pairs
are not independent: runs with different test domains share two of three training domains, and four
domains are not a sample of all domains. So the interval is narrower, and p smaller, than for as
many independent pairs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from fishr_exp.api import load_records, load_runs
from fishr_exp.reports.statistics.estimates import Estimate, estimate
from fishr_exp.reports.statistics.paired import compare

PAIR = ["test_domains", "seed"]
ERM, SELECTED, ORACLE = "ERM", "Fishr, selected gamma", "Fishr, oracle's gamma"
FIRST_STEP = 150  # the first evaluation after the penalty acts
Values = dict[tuple[str, int], float]  # (test domain, seed) -> accuracy in %


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs with a column `row`, and their evaluations with it."""
    runs = load_runs(folder)
    if "averaging._target_" not in runs:
        runs = runs.assign(**{"averaging._target_": None})
    keys = runs[["method", "gamma", "averaging._target_"]].itertuples(index=False)
    runs = runs.assign(row=[_row(*key) for key in keys])
    records = load_records(folder).merge(runs[["name", "row"]], on="name")
    return runs, records


def _row(method: str, gamma: float | None, averaging: str | None) -> str:
    name = method
    if method == "Fishr":
        name = ERM if gamma == 0 else f"Fishr, gamma {gamma:g}"
    return f"{name}, averaged weights" if isinstance(averaging, str) else name


def last_update(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what each run came to: `row`, `test` on all samples and `validation`, in %."""
    return runs.assign(
        test=100 * runs["test_accuracy"], validation=100 * runs["validation_accuracy"]
    )[["row", "gamma", *PAIR, "test", "validation"]]


def best_update(records: pd.DataFrame) -> pd.DataFrame:
    """Return each run at the evaluation with the highest validation accuracy, as `last_update`."""
    late = records[records["step"] >= FIRST_STEP]
    best = late.loc[late.groupby("name")["validation_accuracy"].idxmax()]
    test = [row[f"accuracy/{row['test_domains']}/validation"] for _, row in best.iterrows()]
    return best.assign(
        test=[100 * value for value in test], validation=100 * best["validation_accuracy"]
    )[["row", "gamma", *PAIR, "test", "validation"]]


def rows(found: pd.DataFrame, column: str = "test") -> dict[str, Values]:
    """Return the values of each row of a table; of Fishr also with the gammas that are selected."""
    values = {str(name): _values(group, column) for name, group in found.groupby("row")}
    plain = found[(found["row"] == ERM) | found["row"].str.startswith("Fishr, gamma")]
    plain = plain[~plain["row"].str.endswith("weights")]
    gammas = plain["gamma"].nunique()
    whole = [group.sort_values("gamma") for _, group in plain.groupby(PAIR) if len(group) == gammas]
    for name, by in ((SELECTED, "validation"), (ORACLE, "test")):
        chosen = [group.loc[group[by].idxmax()] for group in whole]
        if chosen and gammas > 1:
            values[name] = _values(pd.DataFrame(chosen), column)
    return {name: values[name] for name in sorted(values, key=_place)}


def _values(group: pd.DataFrame, column: str) -> Values:
    return {
        (row["test_domains"], int(row["seed"])): float(row[column]) for _, row in group.iterrows()
    }


def _place(name: str) -> tuple[int, float, str]:
    if name.endswith("weights"):
        return 4, 0.0, name
    gamma = name.removeprefix("Fishr, gamma ")
    if gamma != name:
        return 1, float(gamma), name
    return {ERM: 0, SELECTED: 2, ORACLE: 2}.get(name, 3), float(name == ORACLE), name


def table(values: dict[str, Values], biased: Sequence[str] = (ORACLE,)) -> str:
    """Return a table in Markdown: a column for each test domain, their mean, and Δ ERM.

    Args:
        values: The values of each row.
        biased: Rows that are chosen by the values themselves, whose gain says nothing.
    """
    domains = sorted({domain for of in values.values() for domain, _ in of})
    erm = values.get(ERM, {})
    lines = [
        [name, *_cells(of, domains, {} if name in biased else erm)] for name, of in values.items()
    ]
    headers = ["", *domains, "mean", "pairs", "Δ ERM", "95 % interval", "p"]
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(lines, headers, "pipe", disable_numparse=True, colalign=align)


def _cells(of: Values, domains: Sequence[str], erm: Values) -> Iterator[str]:
    for domain in domains:
        yield _shown(estimate([value for (name, _), value in of.items() if name == domain]))
    seeds = sorted({seed for _, seed in of})
    means = [
        sum(of[domain, seed] for domain in domains) / len(domains)
        for seed in seeds
        if all((domain, seed) in of for domain in domains)
    ]
    yield _shown(estimate(means))
    gains = [value - erm[pair] for pair, value in of.items() if pair in erm and of is not erm]
    yield str(len(gains)) if gains else "–"
    yield f"{sum(gains) / len(gains):+.1f}" if gains else "–"
    tested = compare(gains)
    yield f"[{tested.low:+.1f}, {tested.high:+.1f}]" if tested else "–"
    yield f"{tested.p:.2g}" if tested else "–"


def _shown(found: Estimate | None) -> str:
    if found is None:
        return ""
    error = found.standard_error
    return f"{found.mean:.1f}" + ("" if error is None else f" ± {error:.1f}")


def tables(folder: Path) -> str:
    """Return all tables, in Markdown, each with a heading."""
    runs, records = read(folder)
    last = last_update(runs)
    parts = {
        "Test domains, after the last update": table(rows(last)),
        "Test domains, update selected by the training domains": table(rows(best_update(records))),
        "Validation parts of the training domains": table(
            rows(last, "validation"), biased=(SELECTED, ORACLE)
        ),
    }
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in parts.items())


def main(words: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="the runs")
    print(tables(parser.parse_args(words).folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
