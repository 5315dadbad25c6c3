"""Does matching gradient variances work, where, and does accuracy in the test domain follow?

    python scripts/matching_study.py DIR [--out DIR]

DIR holds the runs of a sweep over gamma that recorded `diagnostics=all`; runs without are left
out. At every evaluation, these hold for each training domain the variance v of per-sample
gradients on the run's first batch, over the classifier and over all parameters, and so over all
others, too. Their *distance* is the mean of |v_a - v_b| over pairs of domains. It shrinks with the
gradients, so it is compared with their size as well: the *relative distance* divides it by the mean
of |v| over the domains.

- `matching_over_steps`: both distances over the steps, for each gamma.
- `matching_where`: relative distances of each run at its last step, as multiples of those of ERM
  with the same seed and test domain: over the classifier, which is matched, and over all others.
- `matching_accuracy`: the same of the classifier, beside the difference in test accuracy.

Gamma 0 is ERM. Errors are standard errors over runs. The table has Spearman's rank correlation of
relative distance and accuracy over the gammas of one seed and test domain, averaged over these.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from tabulate import tabulate

from fishr_exp.api import load_records, load_runs
from fishr_exp.reports.figures.canvas import (
    ERM_COLOR,
    MARKERS,
    ROW_HEIGHT,
    add_legend,
    create_panels,
    draw_grid,
    draw_means,
    label_steps,
    literal,
    save,
    sequential_colors,
    styled,
)
from fishr_exp.reports.statistics.estimates import estimate
from fishr_exp.reports.statistics.paired import compare

PLACES = {"": "classifier", "_all": "all parameters", "_rest": "all but the classifier"}
RECORDED = ("", "_all")
KINDS = ("distance", "norm")
GROUP = ["test_domains", "seed"]  # runs that differ in gamma only
CORRELATED = 4  # gammas of a group, at least, for its rank correlation


def read(folder: Path) -> pd.DataFrame:
    """Return a row for each evaluation of each run with diagnostics of both places.

    Columns beside those of `load_records`: `distance` and `relative` over the classifier, the same
    with `_all` and `_rest`, and `accuracy` in the test domain after the last step, in %.

    Raises:
        SystemExit: If there is no such run, or runs of one gamma, seed and test domain.
    """
    runs = load_runs(folder)
    averages = [key for key in runs if key.startswith("averaging.")]
    plain = runs[runs[averages].isna().all(axis=1) & runs["gamma"].notna()]
    records = load_records(folder)
    records = records[records["name"].isin(plain["name"])]
    if not any(str(key).startswith("diagnostics/variance_norm_all/") for key in records):
        raise SystemExit(f"{folder}: no run has diagnostics=all")
    for place in PLACES:
        pairs, norms = (_lengths(records, kind, place).mean(axis=1) for kind in KINDS)
        records = records.assign(**{f"distance{place}": pairs, f"relative{place}": pairs / norms})
    records = records[records["distance_all"].notna()]
    after = plain.set_index("name")["test_accuracy"] * 100
    records = records.assign(accuracy=records["name"].map(after))
    last = records[records["step"] == records["step"].max()]
    if last.duplicated([*GROUP, "gamma"]).any():
        raise SystemExit(f"{folder}: runs differ in more than gamma, seed and test domain")
    return records


def _lengths(records: pd.DataFrame, kind: str, place: str) -> pd.DataFrame:
    """Return norms or distances over a place, a column for each domain or pair."""
    starts = [f"diagnostics/variance_{kind}{recorded}/" for recorded in RECORDED]
    classifier, everywhere = (
        records[[k for k in records if k.startswith(start)]].rename(
            columns=lambda k, start=start: k.removeprefix(start)
        )
        for start in starts
    )
    if place == "_rest":  # squares add up over the parameters
        return (everywhere**2 - classifier**2).clip(lower=0) ** 0.5
    return everywhere if place == "_all" else classifier


def against_erm(records: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each run at its last step, compared with ERM of its seed and test domain.

    Columns beside those of `read`: `ratio` and `ratio_rest` of relative distances, and `gain` in
    accuracy, in points. Runs without their ERM are left out.
    """
    last = records[records["step"] == records["step"].max()]
    erm = last.loc[last["gamma"] == 0, [*GROUP, "relative", "relative_rest", "accuracy"]]
    both = last.merge(erm, on=GROUP, suffixes=("", "_erm"))
    return both.assign(
        ratio=both["relative"] / both["relative_erm"],
        ratio_rest=both["relative_rest"] / both["relative_rest_erm"],
        gain=both["accuracy"] - both["accuracy_erm"],
    )


def correlations(compared: pd.DataFrame, column: str) -> list[float]:
    """Return Spearman's correlation of a column with accuracy, for each seed and test domain."""
    found = []
    for _, group in compared.groupby(GROUP):
        ranks = group[[column, "accuracy"]].rank()
        if len(group) >= CORRELATED and (ranks.nunique() > 1).all():
            found.append(float(np.corrcoef(ranks[column], ranks["accuracy"])[0, 1]))
    return found


def describe(compared: pd.DataFrame) -> str:
    """Return the table of the last step, and the correlations, as Markdown."""
    rows = []
    for gamma, group in compared.groupby("gamma"):
        numbers = [_plus_minus(group[f"relative{place}"], "{:.2f}") for place in PLACES]
        gains = [] if gamma == 0 else list(group["gain"])
        rows.append([
            "0 (ERM)" if gamma == 0 else f"{gamma:g}", len(group), *numbers,
            _plus_minus(group["accuracy"], "{:.1f}"),
            _plus_minus(gains, "{:+.1f}") if gains else "–",
        ])  # fmt: skip
    headers = ["gamma", "runs", *(f"relative distance, {name}" for name in PLACES.values()),
               "test accuracy", "Δ ERM"]  # fmt: skip
    table = tabulate(
        rows, headers=headers, tablefmt="pipe", disable_numparse=True,
        colalign=["left", *["right"] * (len(headers) - 1)],
    )  # fmt: skip
    lines = [table, ""]
    for place, name in PLACES.items():
        found = correlations(compared, f"relative{place}")
        if tested := compare(found):
            lines.append(
                f"- Relative distance over {_the(name)} and test accuracy: mean rank correlation "
                f"{np.mean(found):+.2f}, 95 % interval [{tested.low:+.2f}, {tested.high:+.2f}], "
                f"over {len(found)} choices of seed and test domain."
            )
    return "\n".join(lines)


def _the(name: str) -> str:
    return name if name.startswith("all") else f"the {name}"


def _plus_minus(values: Sequence[float] | pd.Series, form: str) -> str:
    found = estimate([float(value) for value in values])
    if found is None:
        return "–"
    error = found.standard_error
    spread = "" if error is None else f" ± {form.replace('+', '').format(error)}"
    return form.format(found.mean) + spread


def draw_over_steps(records: pd.DataFrame, stem: Path) -> list[Path]:
    """Draw distances and relative distances over the steps, a column of panels for each place."""
    gammas = sorted(records["gamma"].unique())
    colors = dict(zip(gammas, _colors(gammas), strict=True))
    with styled():
        figure, panels = create_panels(6, 3, share_y=False, height=2 * ROW_HEIGHT + 0.5)
        shown = itertools.product({"distance": "distance", "relative": "relative distance"}.items(),
                                  PLACES.items())  # fmt: skip
        for axes, ((kind, title), (place, name)) in zip(panels, shown, strict=True):
            quantity = f"{kind}{place}"
            axes.set_title(f"{title}, {name}")
            draw_grid(axes)
            axes.set_yscale("log")
            for gamma in gammas:
                by_step = records[records["gamma"] == gamma].groupby("step")[quantity]
                found = [(step, estimate(list(values))) for step, values in by_step]
                draw_means(
                    axes, [step for step, _ in found], [e for _, e in found if e],
                    band=0.12, color=colors[gamma], label=_name(gamma), linewidth=1.2,
                )  # fmt: skip
        label_steps(panels, 3)
        add_legend(figure, *panels[0].get_legend_handles_labels(), columns=len(gammas))
        return save(figure, stem)


def draw_runs(
    compared: pd.DataFrame, x: str, y: str, labels: tuple[str, str], stem: Path
) -> list[Path]:
    """Draw a point for each run of Fishr: its color is gamma, its marker the test domain."""
    fishr = compared[compared["gamma"] > 0]
    gammas = sorted(fishr["gamma"].unique())
    domains = sorted(fishr["test_domains"].unique())
    with styled():
        figure, (axes,) = create_panels(1, 1, height=2.9)
        for gamma, color in zip(gammas, _colors([0.0, *gammas])[1:], strict=True):
            for domain, marker in zip(domains, MARKERS, strict=False):
                of = fishr[(fishr["gamma"] == gamma) & (fishr["test_domains"] == domain)]
                axes.plot(
                    of[x], of[y], linestyle="", marker=marker, color=color, markersize=4,
                    markeredgewidth=0, alpha=0.85,
                )  # fmt: skip
        axes.set_xscale("log")
        axes.axvline(1, color="black", linewidth=0.6, zorder=1)
        if y == "ratio_rest":
            axes.set_yscale("log")
            low, high = (f(fishr[[x, y]].to_numpy()) for f in (np.min, np.max))
            axes.plot([low, high], [low, high], color="gray", linewidth=0.6, linestyle="--")
        axes.axhline(1 if y == "ratio_rest" else 0, color="black", linewidth=0.6, zorder=1)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        draw_grid(axes, "both")
        handles = [
            *(_point(color, "o") for color in _colors([0.0, *gammas])[1:]),
            *(_point("gray", marker) for marker, _ in zip(MARKERS, domains, strict=False)),
        ]
        names = [*map(_name, gammas), *(literal(domain) for domain in domains)]
        add_legend(figure, handles, names, columns=3)
        return save(figure, stem)


def _point(color: object, marker: str) -> matplotlib.lines.Line2D:
    return matplotlib.lines.Line2D(
        [], [], linestyle="", color=color, marker=marker, markersize=4, markeredgewidth=0
    )  # fmt: skip


def _colors(gammas: Sequence[float]) -> list[object]:
    """Return black for ERM, which is first if it is there, and a scale for the others."""
    erm = [ERM_COLOR] if gammas and gammas[0] == 0 else []
    return [*erm, *sequential_colors(0, len(gammas) - len(erm))]


def _name(gamma: float) -> str:
    return "ERM" if gamma == 0 else f"gamma {gamma:g}"


def main(words: Sequence[str] | None = None) -> int:
    """Read the runs, draw the figures and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="the runs")
    parser.add_argument("--out", type=Path, help="folder of the figures (default: DIR/table)")
    arguments = parser.parse_args(words)
    out = arguments.out or arguments.folder / "table"
    out.mkdir(parents=True, exist_ok=True)
    records = read(arguments.folder)
    compared = against_erm(records)
    relative = "relative distance, {}\n(1: that of ERM)"
    files = [
        *draw_over_steps(records, out / "matching_over_steps"),
        *draw_runs(
            compared, "ratio", "ratio_rest",
            (relative.format(PLACES[""]), relative.format(PLACES["_rest"])), out / "matching_where",
        ),
        *draw_runs(
            compared, "ratio", "gain",
            (relative.format(PLACES[""]), "test accuracy minus\nthat of ERM, in points"),
            out / "matching_accuracy",
        ),
    ]  # fmt: skip
    print(describe(compared))
    print("\nWrote:", *(f"  {file}" for file in files), sep="\n")
    return 0


if __name__ == "__main__":
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    sys.exit(main())
