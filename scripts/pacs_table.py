"""The tables of `experiment=pacs_lite0`: methods in the four test domains, and what they cost.

    python scripts/pacs_table.py DIR [--restarted DIR]

Four tables, in Markdown, each with a line that says what it shows; a fifth one with the runs of ERM
that get a new optimizer where Fishr does:

1. the test domains, after the last step;
2. the test domains, at the step that the training domains select;
3. the validation parts of the training domains, after the last step;
4. minutes of a run;
5. the test domains, after the last step, compared with ERM that gets a new optimizer.

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
from fishr_exp.reports.statistics.paired import compare, holm
from fishr_exp.runs.records import Result
from fishr_exp.runs.run_folder import RunFolder

PAIR = ["test_domains", "seed"]
ERM, SELECTED, ORACLE = "ERM", "Fishr, selected gamma", "Fishr, oracle's gamma"
RESTARTED = "ERM, new optimizer"
FIRST_STEP = 150  # the first evaluation after the penalty acts
LEGEND = """\
Accuracy in %, mean ± standard error over the seeds; *mean* is over the four domains. *Selected
gamma* is, for each seed and test domain, the gamma (0 is among them) with the highest accuracy on
the validation parts of the training domains, at the step that the table shows; *oracle's gamma* the
one with the highest test accuracy, which nobody has in practice. Δ ERM is the mean of the
differences from ERM with the same seed and test domain, in points, over so many pairs, with a
bootstrap interval over the pairs and the p-value of a sign-flip test, corrected by Holm for the
number of rows.
"""
ABOUT = {  # of each table
    "Test domains, after the last step": "On all samples of the test domain.",
    "Test domains, step selected by the training domains": (
        "The training domains select the step as well, among the evaluations every 50 steps from "
        "the first one with the penalty on. On the validation part of the test domain (20 %), the "
        "only one that is evaluated at each of them: not comparable with the first table."
    ),
    "Validation parts of the training domains": "After the last step.",
    "What a run costs": (
        "Minutes, with the steps that it took over from another run: the median over all seeds and "
        "test domains, and the range."
    ),
}
OF_RESTARTED = """\
### Compared with ERM that gets a new optimizer

As in DomainBed, Fishr with a gamma above 0, IRM and V-REx get a new Adam, without history, when
gamma begins to act, at step 100. Fishr with gamma 1e-9 is ERM with that. After the last step; Δ is
the difference from it.
"""
Values = dict[tuple[str, int], float]  # (test domain, seed) -> accuracy in %


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs with a column `row`, and their evaluations with it.

    Raises:
        SystemExit: If there are no runs.
    """
    runs = load_runs(folder)
    if runs.empty:
        raise SystemExit(f"pacs_table: {folder}: has no run that is done")
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


def last_step(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what each run came to: `row`, `test` on all samples and `validation`, in %."""
    return runs.assign(
        test=100 * runs["test_accuracy"], validation=100 * runs["validation_accuracy"]
    )[["row", "gamma", *PAIR, "test", "validation"]]


def best_step(records: pd.DataFrame) -> pd.DataFrame:
    """Return each run at the evaluation with the highest validation accuracy, as `last_step`."""
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
    return {name: values[name] for name in sorted(values, key=_rank)}


def _values(group: pd.DataFrame, column: str) -> Values:
    return {
        (row["test_domains"], int(row["seed"])): float(row[column]) for _, row in group.iterrows()
    }


def _rank(name: str) -> tuple[int, float, str]:
    if name.endswith("weights"):
        return 4, 0.0, name
    gamma = name.removeprefix("Fishr, gamma ")
    if gamma != name:
        return 1, float(gamma), name
    return {ERM: 0, SELECTED: 2, ORACLE: 2}.get(name, 3), float(name == ORACLE), name


def table(values: dict[str, Values], biased: Sequence[str] = (ORACLE,), baseline: str = ERM) -> str:
    """Return a table in Markdown: a column for each test domain, their mean, and differences.

    Args:
        values: The values of each row.
        biased: Rows that are chosen by the values themselves, whose gain says nothing.
        baseline: The row from which the others differ.
    """
    domains = sorted({domain for of in values.values() for domain, _ in of})
    erm = values.get(baseline, {})
    gains = {
        name: [of[pair] - erm[pair] for pair in of if pair in erm]
        for name, of in values.items()
        if name not in (baseline, *biased)
    }
    tested = {name: found for name, of in gains.items() if (found := compare(of))}
    corrected = dict(zip(tested, holm([found.p for found in tested.values()]), strict=True))
    lines = []
    for name, of in values.items():
        own, found = gains.get(name, []), tested.get(name)
        lines.append([
            name, *_means(of, domains), str(len(own)) if own else "–",
            f"{sum(own) / len(own):+.1f}" if own else "–",
            f"[{found.low:+.1f}, {found.high:+.1f}]" if found else "–",
            f"{corrected[name]:.2g}" if found else "–",
        ])  # fmt: skip
    difference = "Δ ERM" if baseline == ERM else "Δ"
    headers = ["", *domains, "mean", "pairs", difference, "95 % interval", "p"]
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(lines, headers, "pipe", disable_numparse=True, colalign=align)


def _means(of: Values, domains: Sequence[str]) -> Iterator[str]:
    for domain in domains:
        yield _shown(estimate([value for (name, _), value in of.items() if name == domain]))
    seeds = sorted({seed for _, seed in of})
    means = [
        sum(of[domain, seed] for domain in domains) / len(domains)
        for seed in seeds
        if all((domain, seed) in of for domain in domains)
    ]
    yield _shown(estimate(means))


def _shown(found: Estimate | None) -> str:
    if found is None:
        return ""
    error = found.standard_error
    return f"{found.mean:.1f}" + ("" if error is None else f" ± {error:.1f}")


def tables(folder: Path, restarted: Path | None = None) -> str:
    """Return a legend and all tables, in Markdown, each with a heading.

    Args:
        folder: The runs.
        restarted: Those of ERM that get a new optimizer where Fishr does, if they are to be shown.
    """
    runs, records = read(folder)
    last = last_step(runs)
    shown = [
        table(rows(last)),
        table(rows(best_step(records))),
        table(rows(last, "validation"), biased=(SELECTED, ORACLE)),
        costs(runs),
    ]
    parts = [
        f"### {title}\n\n{about}\n\n{text}"
        for (title, about), text in zip(ABOUT.items(), shown, strict=True)
    ]
    if restarted:
        heading, _, about = OF_RESTARTED.strip().partition("\n\n")
        compared = against_restarted(rows(last), last_step(read(restarted)[0]))
        parts.append("\n\n".join([heading, about.replace("\n", " "), compared]))
    return "\n\n".join([LEGEND.replace("\n", " ").strip(), *parts])


def against_restarted(values: dict[str, Values], restarted: pd.DataFrame) -> str:
    """Return the table of what gets a new optimizer, and of ERM, beside ERM with a new one."""
    with_new = {
        name: of
        for name, of in values.items()
        if name.startswith((ERM, "Fishr, gamma", "IRM", "V-REx")) and not name.endswith("weights")
    }
    return table({RESTARTED: _values(restarted, "test"), **with_new}, baseline=RESTARTED)


def costs(runs: pd.DataFrame) -> str:
    """Return a table in Markdown of what the runs took, in minutes, and of all together."""
    results = [Result.from_json(RunFolder(Path(path)).result_of_done()) for path in runs["path"]]
    shared = [result.shared.seconds if result.shared else 0.0 for result in results]
    whole = runs.assign(minutes=(runs["seconds"] + shared) / 60)
    lines = []
    for name in sorted(whole["row"].unique(), key=_rank):
        minutes = whole.loc[whole["row"] == name, "minutes"]
        lines.append([name, len(minutes), f"{minutes.median():.1f}",
                      f"{minutes.min():.1f} to {minutes.max():.1f}"])  # fmt: skip
    lines.append(["all, in hours", len(runs), f"{runs['seconds'].sum() / 3600:.1f}", ""])
    align = ["left", *["right"] * 3]
    headers = ["", "runs", "minutes", "range"]
    return tabulate(lines, headers, "pipe", disable_numparse=True, colalign=align)


def main(words: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="the runs")
    parser.add_argument(
        "--restarted", metavar="DIR", type=Path,
        help="runs of ERM that get a new optimizer where Fishr does (trainer.gamma=1e-9)",
    )  # fmt: skip
    arguments = parser.parse_args(words)
    print(tables(arguments.folder, arguments.restarted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
