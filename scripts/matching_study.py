"""Does matching gradient variances work, where, and does accuracy in the test domain follow?

    python scripts/matching_study.py DIR [--out DIR]

DIR holds the runs of a sweep over gamma, and `matching.jsonl` of `matching_measure.py`: squared
distances and norms of the variance v of per-sample gradients in the training domains, without bias
by noise. The *distance* is the root of the mean of |v_a - v_b|² over pairs of domains, the *size*
that of |v_a|² over domains. A penalty can shrink the distance by shrinking all gradients, which
matches nothing; the *relative distance* divides the distance by the size.

- `matching_over_steps`: distance, size and relative distance over the classifier, which is what
  Fishr matches here, over the steps, for each gamma.
- `matching_where`: relative distances of each run at its last step, as multiples of those of ERM
  with the same seed and test domain: over the classifier, and over all other parameters.
- `matching_accuracy`: the same of the classifier, beside the difference in test accuracy, without
  the runs whose network collapsed.

Gamma 0 is ERM. Errors are standard errors over runs. The table has Spearman's rank correlation of
relative distance and accuracy over the gammas of one seed and test domain, averaged over these:
over all runs, and without those whose network collapsed, which lie far from all others.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matching_measure import FILE, NOISE
from pacs_table import FIRST_STEP, PAIR
from tabulate import tabulate

from fishr_exp.api import load_runs
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
from fishr_exp.reports.statistics.estimates import estimate, mean

Colors = dict[float, Any]
QUANTITIES = {"distance": "distance", "size": "size", "relative": "relative distance"}
PLACES = {"classifier": "classifier", "others": "other parameters"}
CORRELATED = 4  # gammas of a group, at least, for its rank correlation
_COMPARED = ["relative", "relative_others", "accuracy", "validation"]
COLLAPSED = 10.0  # points of validation accuracy below ERM
LEGEND = """\
After the last step, mean ± standard error over the runs of all seeds and test domains. Accuracy is
in the test domain, in %, and its error is the spread of the domains; Δ ERM is in points, paired by
seed and test domain.
"""
NOISE_LEGEND = """\
Relative distance over the classifier, without a correction for noise, between two samples of one
domain and between samples of two domains; mean over ERM's {runs} runs, after the last step.
"""


def read(folder: Path) -> pd.DataFrame:
    """Return a row for each checkpoint that was measured.

    Columns: `name` of the run, `gamma`, `seed`, `test_domains`, `step`, `accuracy` in the test
    domain after the last step and `validation` accuracy, in %, and `distance`, `size` and
    `relative` over the classifier; with `_others` over all other parameters, which are measured
    at the last step only, and not of all runs.

    Raises:
        SystemExit: If nothing was measured, or there are several runs of a gamma, seed and domain.
    """
    _require(folder / FILE)
    rows = []
    for line in map(json.loads, (folder / FILE).read_text().splitlines()):
        row = {"name": line["run"], "step": line["step"]}
        for place in PLACES:
            suffix = "" if place == "classifier" else f"_{place}"
            known = summary(line[place]) if place in line else dict.fromkeys(QUANTITIES, math.nan)
            row |= {f"{key}{suffix}": value for key, value in known.items()}
        rows.append(row)
    runs = load_runs(folder)
    runs = runs.assign(
        accuracy=100 * runs["test_accuracy"], validation=100 * runs["validation_accuracy"]
    )
    columns = ["name", "gamma", *PAIR, "accuracy", "validation"]
    measured = pd.DataFrame(rows).merge(runs[columns], on="name")
    if measured.duplicated([*PAIR, "gamma", "step"]).any():
        raise SystemExit(f"{folder}: runs differ in more than gamma, seed and test domain")
    return measured


def _require(file: Path) -> None:
    if not file.exists():
        raise SystemExit(f"{file.parent}: has no {file.name}; scripts/matching_measure.py makes it")


def summary(squares: Mapping[str, float]) -> dict[str, float]:
    """Return distance, size and relative distance from the squares of pairs and of domains."""
    pairs = [value for key, value in squares.items() if "/" in key]
    domains = [v for key, v in squares.items() if "/" not in key and key != "samples"]
    distance, size = (math.sqrt(max(mean(values), 0.0)) for values in (pairs, domains))
    return {"distance": distance, "size": size, "relative": distance / size if size else math.nan}


def against_erm(measured: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each run at its last step, compared with ERM of its seed and test domain.

    Columns beside those of `read`: `ratio` and `ratio_others` of relative distances, `gain` in
    accuracy, in points, and `collapsed`. Runs without their ERM are left out.
    """
    last = measured[measured["step"] == measured["step"].max()]
    erm = last.loc[last["gamma"] == 0, [*PAIR, *_COMPARED]]
    both = last.merge(erm, on=PAIR, suffixes=("", "_erm"))
    return both.assign(
        ratio=both["relative"] / both["relative_erm"],
        ratio_others=both["relative_others"] / both["relative_others_erm"],
        gain=both["accuracy"] - both["accuracy_erm"],
        collapsed=both["validation"] < both["validation_erm"] - COLLAPSED,
    )


def at_all_steps(measured: pd.DataFrame) -> pd.DataFrame:
    """Return what can be averaged over runs: the same steps, seeds and test domains of each gamma.

    What a run took over from ERM of its seed and test domain, until the penalty acts, is ERM's.
    Left out are choices of seed and test domain of which only late steps were measured, steps at
    which not all other runs of ERM were measured, other runs that lack a step, then choices of seed
    and test domain with fewer gammas than others have, and gammas that one of those left lacks.
    """
    erm = measured[measured["gamma"] == 0]
    erm = erm[erm.groupby("name")["step"].transform("min") <= FIRST_STEP]
    runs = erm["name"].nunique()
    steps = {step for step, of in erm.groupby("step") if len(of) == runs}
    found = []
    for _, run in measured.groupby("name"):
        first = run["step"].min()
        paired = erm[(erm[PAIR] == run.iloc[0][PAIR]).all(axis=1)]
        shared = paired[paired["step"] < first]
        own = {key: run.iloc[0][key] for key in ("name", "gamma")}
        whole = pd.concat([shared.assign(**own), run])
        whole = whole[whole["step"].isin(steps)]
        if len(paired) and set(whole["step"]) == steps and first <= FIRST_STEP:
            found.append(whole)
    if not found:
        return measured
    together = pd.concat(found)
    gammas = together.groupby(PAIR)["gamma"].transform("nunique")
    together = together[gammas == gammas.max()]
    found_in = together.groupby("gamma")["name"].transform("nunique")
    return together[found_in == len(together.groupby(PAIR))]


def correlations(compared: pd.DataFrame, column: str) -> list[float]:
    """Return Spearman's correlation of a column with accuracy, for each seed and test domain."""
    found = []
    for _, group in compared.groupby(PAIR):
        ranks = group[[column, "accuracy"]].dropna().rank()
        if len(ranks) >= CORRELATED and (ranks.nunique() > 1).all():
            found.append(float(np.corrcoef(ranks[column], ranks["accuracy"])[0, 1]))
    return found


def describe(compared: pd.DataFrame) -> str:
    """Return the table of the last step, and the correlations, as Markdown."""
    rows = []
    for gamma, group in compared.groupby("gamma"):
        gains = [] if gamma == 0 else list(group["gain"])
        rows.append([
            "0 (ERM)" if gamma == 0 else f"{gamma:g}", len(group),
            *(_plus_minus(group[key], "{:.3g}", "{:.2g}") for key in ("distance", "size")),
            *(_plus_minus(group[k].dropna(), "{:.2f}") for k in ("relative", "relative_others")),
            _plus_minus(group["accuracy"], "{:.1f}"), _plus_minus(gains, "{:+.1f}"),
        ])  # fmt: skip
    measured = compared["relative_others"].notna()
    of = "" if measured.all() else f" ({measured.sum()} runs)"
    others = f"relative distance, {PLACES['others']}{of}"
    headers = ["gamma", "runs", *QUANTITIES.values(), others, "test accuracy", "Δ ERM"]
    table = tabulate(
        rows, headers=headers, tablefmt="pipe", disable_numparse=True,
        colalign=["left", *["right"] * (len(headers) - 1)],
    )  # fmt: skip
    lines = [LEGEND.replace("\n", " ").strip(), "", table, ""]
    count = int(compared["collapsed"].sum())
    without = (
        f", without the {count} run{'s' * (count != 1)} whose network collapsed (validation "
        f"accuracy more than {COLLAPSED:g} points below ERM's)"
    )
    kinds = [("", compared), (without, compared[~compared["collapsed"]])][: 1 + bool(count)]
    for column, name in (("relative", "classifier"), ("relative_others", PLACES["others"])):
        for which, rows_of in kinds:
            if found := correlations(rows_of, column):
                lines.append(
                    f"- Rank correlation of relative distance over the {name} and test accuracy"
                    f"{which}: mean {np.mean(found):+.2f}, from {min(found):+.2f} to "
                    f"{max(found):+.2f}, over {len(found)} choice{'s' * (len(found) != 1)} of "
                    "seed and test domain."
                )
    return "\n".join(lines)


def describe_noise(folder: Path) -> str:
    """Return the table of what `matching_measure.py noise` found, as Markdown.

    Raises:
        SystemExit: If nothing was measured.
    """
    _require(folder / NOISE)
    found = pd.DataFrame(map(json.loads, (folder / NOISE).read_text().splitlines()))
    means = found.groupby("samples")[["within", "between"]].mean()
    table = tabulate(
        [[count, *(f"{value:.2f}" for value in row)] for count, row in means.iterrows()],
        headers=["samples of each domain", "of the same domain", "of two domains"],
        tablefmt="pipe", disable_numparse=True, colalign=["right"] * 3,
    )  # fmt: skip
    legend = NOISE_LEGEND.replace("\n", " ").format(runs=found["run"].nunique())
    return f"{legend.strip()}\n\n{table}"


def _plus_minus(values: Sequence[float] | pd.Series, form: str, of_error: str = "") -> str:
    found = estimate([float(value) for value in values])
    if found is None:
        return "–"
    error = found.standard_error
    spread = "" if error is None else f" ± {(of_error or form.replace('+', '')).format(error)}"
    return form.format(found.mean) + spread


def draw_over_steps(measured: pd.DataFrame, colors: Colors, stem: Path) -> list[Path]:
    """Draw distance, size and relative distance over the steps, for the classifier."""
    measured = at_all_steps(measured)
    gammas = sorted(measured["gamma"].unique())
    with styled():
        figure, panels = create_panels(3, 3, share_y=False, height=ROW_HEIGHT + 0.5)
        for axes, (quantity, title) in zip(panels, QUANTITIES.items(), strict=True):
            axes.set_title(f"{title}, classifier")
            draw_grid(axes)
            if quantity != "relative":
                axes.set_yscale("log")
            for gamma in gammas:
                by_step = measured[measured["gamma"] == gamma].groupby("step")[quantity]
                found = [(step, estimate(list(values))) for step, values in by_step]
                draw_means(
                    axes, [step for step, _ in found], [e for _, e in found if e],
                    band=0.12, color=colors[gamma], label=_name(gamma), linewidth=1.2,
                )  # fmt: skip
        panels[-1].set_ylim(bottom=0)  # where variances are equal
        label_steps(panels, 3)
        add_legend(figure, *panels[0].get_legend_handles_labels(), columns=len(gammas))
        return save(figure, stem)


def draw_runs(
    compared: pd.DataFrame, x: str, y: str, labels: tuple[str, str], colors: Colors, stem: Path
) -> list[Path]:
    """Draw a point for each run of Fishr: its color is gamma, its marker the test domain."""
    fishr = compared[compared["gamma"] > 0]
    gammas = sorted(fishr["gamma"].unique())
    domains = sorted(fishr["test_domains"].unique())
    with styled():
        figure, (axes,) = create_panels(1, 1, height=3.3)
        for gamma in gammas:
            for domain, marker in zip(domains, MARKERS, strict=False):
                of = fishr[(fishr["gamma"] == gamma) & (fishr["test_domains"] == domain)]
                axes.plot(
                    of[x], of[y], linestyle="", marker=marker, color=colors[gamma], markersize=4,
                    markeredgewidth=0, alpha=0.85,
                )  # fmt: skip
        axes.axvline(1, color="black", linewidth=0.6, zorder=1)
        if y == "ratio_others":
            values = fishr[[x, y]].to_numpy()
            ends = [np.nanmin(values, initial=1.0), np.nanmax(values, initial=1.0)]
            axes.plot(ends, ends, color="gray", linewidth=0.6, linestyle="--")
        axes.axhline(1 if y == "ratio_others" else 0, color="black", linewidth=0.6, zorder=1)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        draw_grid(axes, "both")
        handles = [
            *(matplotlib.patches.Patch(color=colors[gamma]) for gamma in gammas),
            *(_point("gray", marker) for marker, _ in zip(MARKERS, domains, strict=False)),
        ]
        names = [*map(_name, gammas), *(literal(domain) for domain in domains)]
        add_legend(figure, handles, names, columns=3)
        return save(figure, stem)


def _point(color: Any, marker: str) -> matplotlib.lines.Line2D:
    return matplotlib.lines.Line2D(
        [], [], linestyle="", color=color, marker=marker, markersize=4, markeredgewidth=0
    )  # fmt: skip


def colors_of(gammas: Sequence[float]) -> Colors:
    """Return black for ERM, and a scale for the other gammas; the same in all figures."""
    others = sorted({*gammas} - {0.0})
    scale = sequential_colors(0, len(others))
    return {0.0: ERM_COLOR, **dict(zip(others, scale, strict=True))}


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
    measured = read(arguments.folder)
    compared = against_erm(measured)
    classifier, others = (f"relative distance, {name}\n(ERM = 1)" for name in PLACES.values())
    colors = colors_of(list(measured["gamma"]))
    files = [
        *draw_over_steps(measured, colors, out / "matching_over_steps"),
        *draw_runs(
            compared, "ratio", "ratio_others", (classifier, others), colors,
            out / "matching_where",
        ),
        *draw_runs(
            compared[~compared["collapsed"]], "ratio", "gain",
            (classifier, "test accuracy minus\nthat of ERM, in points"), colors,
            out / "matching_accuracy",
        ),
    ]  # fmt: skip
    print(describe(compared))
    print("\nWrote:", *(f"  {file}" for file in files), sep="\n")
    return 0


if __name__ == "__main__":
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    sys.exit(main())
