"""Puts the table of a sweep on a sheet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from fishr_exp.reports.metric import metric_name
from fishr_exp.reports.sheets.sheet import Line, Sheet
from fishr_exp.reports.statistics.estimates import Estimate
from fishr_exp.reports.statistics.gamma_selection import VALIDATION, SelectedGamma
from fishr_exp.reports.statistics.paired import (
    CONFIDENCE,
    EXACT,
    RESAMPLES,
    coverage_bound,
    seeds_needed,
    smallest_p,
)
from fishr_exp.reports.tables.data import MARK, about_data, on_other_data
from fishr_exp.reports.tables.grouping import ABSENT
from fishr_exp.reports.tables.table import Curve, Row, Table
from fishr_exp.runs.reading import ACCURACY

_MEANS = "train, validation: mean over the training domains, on their two parts."


def table_sheet(table: Table) -> Sheet:
    """Put `table` on a sheet."""
    gammas = show_gammas([row.gamma for row in table.rows if row.gamma is not None])
    with_gamma = bool(gammas)
    with_difference = any(row.difference for row in table.rows)
    with_paired = any(row.paired for row in table.rows)
    columns = [  # key and header
        ("method", "method"),
        *([("gamma", "gamma")] if with_gamma else []),
        *((name, name) for name in table.setting_names),
        ("seeds", "seeds"),
        ("train", "train"),
        ("validation", "validation"),
        *(("test", f"{domain} (test)") for domain in table.test_domains),
        *([("delta", "Δ ERM")] if with_difference else []),
        *([("interval", f"{100 * CONFIDENCE:.0f} % interval"), ("p", "p")] if with_paired else []),
    ]
    keys, headers = ([column[part] for column in columns] for part in (0, 1))
    rows, other = [], on_other_data(table.rows)
    for place, row in enumerate(table.rows):
        n = len(row.seeds)
        marks = "*" * row.selected_by_test_domain + MARK * (place in other)
        gamma = ABSENT if row.gamma is None else gammas[row.gamma]
        rows.append(
            [
                row.label + marks,
                *([gamma] if with_gamma else []),
                *(row.settings[name] for name in table.setting_names),
                str(n),
                show_estimate(row.train, n),
                show_estimate(row.validation, n),
                *(show_estimate(row.test[domain], n) for domain in table.test_domains),
                *([show_estimate(row.difference, n, "+")] if with_difference else []),
                *(_show_paired(row) if with_paired else []),
            ]
        )
    left = 1 + with_gamma + len(table.setting_names)
    lines = [_line(table, row) for row in table.rows]
    differences, intervals = [*_about_differences(table)], [*_about_intervals(table)]
    about = {_MEANS: ["train", "validation"]}
    about |= {note: ["delta"] for note in differences}
    about |= {note: ["interval", "p"] for note in intervals}
    notes = [*_notes(table, [*differences, *intervals]), *_about_selections(table, gammas)]
    return Sheet(
        table.title,
        headers,
        rows,
        left,
        notes,
        lines,
        label=" ".join([table.dataset, *table.test_domains, *_other(table)]),
        keys=keys,
        about=about,
        compared=frozenset(place for place, key in enumerate(keys) if key == "test"),
    )


def show_estimate(
    estimate: Estimate | None, repeats: int, sign: str = "", absent: str = ABSENT
) -> str:
    """Write "mean ± error", and the count if it differs from the row's repeats."""
    if estimate is None:
        return absent
    text = f"{round(estimate.mean, 1) + 0.0:{sign}.1f}"  # + 0.0: no "-0.0"
    if estimate.standard_error is not None:
        text += f" ± {estimate.standard_error:.1f}"
    return text if estimate.n == repeats else f"{text} (n={estimate.n})"


def _show_paired(row: Row) -> tuple[str, str]:
    if row.paired is None or row.p is None:
        return ABSENT, ABSENT
    low, high = (f"{round(value, 1) + 0.0:+.1f}" for value in (row.paired.low, row.paired.high))
    return f"[{low}, {high}]", f"{row.p:.2g}"


def show_gammas(gammas: Sequence[float]) -> dict[float, str]:
    """Write each gamma with as few digits (at least five) as distinguish all of them."""
    distinct = set(gammas)
    texts = {g: repr(g) for g in distinct}
    for digits in range(5, 17):
        short = {g: f"{g:.{digits}g}" for g in distinct}
        if len(set(short.values())) == len(distinct):
            texts = short
            break
    for gamma, text in texts.items():
        plain = "e" in text and gamma.is_integer() and gamma < 1e6  # 100000 beside 10000, not 1e5
        texts[gamma] = f"{gamma:.0f}" if plain else re.sub(r"e\+?(-?)0*", r"e\1", text)
    return texts


def _notes(table: Table, about_differences: Iterable[str]) -> list[str]:
    name = metric_name(table.metric)
    single = "; one seed has no error" if any(len(row.seeds) == 1 for row in table.rows) else ""
    notes = [
        f"{name[0].upper()}{name[1:]} in %, mean ± standard error over seeds{single}.",
        _MEANS,
    ]
    if _other(table):
        notes.append(f"A gamma is selected by its {name}, a checkpoint by what its run monitored.")
    if any(row.difference for row in table.rows):
        notes += about_differences
    elif any(not row.is_baseline and row.gamma != 0 for row in table.rows):
        notes.append("No row of ERM has the same settings and seeds, so there is no Δ ERM.")
    if any(row.selected_by_test_domain for row in table.rows):
        notes.append(
            f"*: checkpoint selected by a test domain, so its {name} is not a fair estimate."
        )
    notes += about_data(table.rows)
    if table.repeats:
        folders = ", ".join(str(run.path) for run in table.repeats)
        notes.append(f"Not counted, since their row already has the seed: {folders}.")
    return notes


def _about_differences(table: Table) -> Iterator[str]:
    if not any(row.difference for row in table.rows):
        return
    gammas = {curve.baseline.gamma for curve in table.curves if curve.baseline}
    which = " (gamma 0, else the row of ERM)" if len(gammas) > 1 else " (gamma 0)"
    yield (
        f"Δ ERM: difference to ERM{which if 0 in gammas else ''} in {table.test_domains[0]},"
        " in points, paired by seed."
    )
    if unpaired := [f"{_name(row)}, {_seeds(row.unpaired)}" for row in table.rows if row.unpaired]:
        yield f"Left out of Δ ERM, since one run of the pair is missing: {'; '.join(unpaired)}."


def _about_intervals(table: Table) -> Iterator[str]:
    compared = [row for row in table.rows if row.paired]
    if not compared:
        return
    counts = [row.difference.n for row in compared if row.difference]
    test = "exact sign-flip test"
    if max(counts) > EXACT:
        test = f"sign-flip test, with {RESAMPLES} random signs for more than {EXACT} seeds"
    yield (
        f"Interval: bootstrap over seeds, of Δ ERM. p: {test}, corrected by Holm for"
        f" the {len(compared)} comparison{'s' * (len(compared) > 1)} here."
    )
    n = min(counts)
    if smallest_p(n) * len(compared) > 1 - CONFIDENCE:
        needed = seeds_needed(len(compared))
        enough = f"; {needed} seeds could bring it to {1 - CONFIDENCE:.2g}" if needed else ""
        yield (
            f"With {n} seeds the interval covers the true difference in at most"
            f" {100 * coverage_bound(n):.3g} % of cases, and p is at least"
            f" {smallest_p(n):.2g}{enough}."
        )


def _about_selections(table: Table, gammas: dict[float, str]) -> Iterator[str]:
    for curve in table.curves:
        for selected in curve.selections:
            yield _about_selection(curve, selected, {0.0: "0", **gammas}, table.test_domains[0])


def _about_selection(
    curve: Curve, selected: SelectedGamma, gammas: dict[float, str], domain: str
) -> str:
    method = (
        "training-domain validation"
        if selected.selection == VALIDATION
        else f"the oracle in {domain}"
    )
    each = ", ".join(gammas[gamma] for gamma in selected.by_seed)
    unfair = (
        ""
        if selected.selection == VALIDATION
        else "; it uses the test domain, so this is not a fair estimate"
    )
    return (
        f"{_name(curve)}: {method} selects gamma {gammas[selected.gamma]},"
        f" with {show_estimate(selected.test, selected.test.n)} in {domain}"
        f" ({_seeds(selected.seeds)}; per seed: {each}){unfair}."
    )


def _other(table: Table) -> list[str]:
    """Return the metric if it is not accuracy."""
    return [] if table.metric == ACCURACY else [table.metric]


def _name(of: Row | Curve) -> str:
    """Describe a row or a curve."""
    name = of.label if isinstance(of, Row) else of.method
    words = [name, *(f"{name}={value}" for name, value in of.settings.items())]
    if isinstance(of, Row) and of.gamma:
        words.append(f"gamma {show_gammas([of.gamma])[of.gamma]}")
    return " ".join(words)


def _seeds(seeds: Iterable[int]) -> str:
    named = [str(seed) for seed in seeds]
    return f"seed{'s' * (len(named) > 1)} {', '.join(named)}"


def _line(table: Table, row: Row) -> Line:
    identity = {
        "dataset": table.dataset,
        "test_domains": " ".join(table.test_domains),
        "model": table.model or "",
        **({"metric": table.metric} if _other(table) else {}),
        "label": row.label,
        "method": row.method,
        "gamma": "" if row.gamma is None else repr(row.gamma),
        **row.settings,
        "seeds": " ".join(str(seed) for seed in row.seeds),
        "chosen_by_test_domain": str(row.selected_by_test_domain).lower(),
    }
    estimates = {
        "train": row.train,
        "validation": row.validation,
        **{f"test_{domain}": estimate for domain, estimate in row.test.items()},
        "delta_erm": row.difference,
    }
    measures: dict[str, str] = {}
    for name, e in estimates.items():
        measures[f"{name}_mean"] = "" if e is None else f"{e.mean:.4f}"
        error = None if e is None else e.standard_error
        measures[f"{name}_se"] = "" if error is None else f"{error:.4f}"
        measures[f"{name}_n"] = "0" if e is None else str(e.n)
    if row.difference:
        paired = row.paired
        measures["delta_erm_low"] = f"{paired.low:.4f}" if paired else ""
        measures["delta_erm_high"] = f"{paired.high:.4f}" if paired else ""
        measures["delta_erm_p"] = f"{paired.p:.6g}" if paired else ""
        measures["delta_erm_p_holm"] = "" if row.p is None else f"{row.p:.6g}"
    selections = [p for c in table.curves for p in c.selections if c.rows[p.gamma] is row]
    measures["picked_by"] = " ".join(dict.fromkeys(selected.selection for selected in selections))
    return Line(identity, measures)
