"""DomainBed's tables: one for each dataset, by test domain, and the averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.published import AVERAGES, AVG, Reference, method_key
from fishr_exp.reports.statistics.estimates import Estimate, mean
from fishr_exp.reports.statistics.selection import Choice, select
from fishr_exp.reports.tables.comparison import Cell, Comparison, ComparisonRow, Trace, over_trials
from fishr_exp.runs.history import History

PROTOCOL = "domainbed"
IRM_SETUP = "colored_mnist"  # the dataset of the other protocol, and its name
SELECTED_BY = {
    "training": "selected by training-domain validation",
    "oracle": "selected by test-domain validation (oracle)",
    "leave_one_out": "selected by leave-one-domain-out cross-validation",
}
_RULES = {
    "training": "The checkpoint and hparams_seed with the best mean accuracy over the training"
    " domains' validation parts.",
    "oracle": "The hparams_seed with the best last step in the test domain's validation part:"
    " selected by the test domain, so not a fair estimate.",
    "leave_one_out": "The step and hparams_seed with the best mean accuracy in second domains"
    " that were left out as well.",
}
_MEASURED = (
    "Accuracy in % on the training part (80 %) of the test domain, mean ± population standard"
    " deviation / √trials over trials; one trial has no error."
)

Selected = Mapping[int, Mapping[int, Choice]]  # test domain -> trial -> choice


def build_domainbed_tables(
    histories: Iterable[History], selection: str, with_published: bool = False
) -> list[Comparison]:
    """Build one table per dataset, and the table of averages.

    Args:
        histories: All runs; of repeats only the first counts, see `unrepeated`.
        selection: A key of `selection.SELECTIONS`.
        with_published: Whether to add the rows of published methods.

    Raises:
        ConfigError: If two runs are the same run of a sweep with different settings.
    """
    runs, repeats = unrepeated(histories)
    reference = Reference(PROTOCOL, selection)
    datasets = _in_order([run.dataset for run in runs], reference.columns(AVERAGES))
    methods = _in_order([run.method for run in runs], reference.methods(AVERAGES), method_key)
    selected: dict[tuple[str, str], Selected] = {}
    domains: dict[str, tuple[str, ...]] = {}
    for dataset in datasets:
        here = [run for run in runs if run.dataset == dataset]
        domains[dataset] = _domain_names(dataset, here, reference)
        for method in methods:
            if matching := [run for run in here if run.method == method]:
                selected[dataset, method] = _select(matching, len(domains[dataset]), selection)
    notes = (_MEASURED, _RULES[selection], *_about(runs, repeats))

    def table(
        name: str, columns: Sequence[str], row: Callable[[str], ComparisonRow | None]
    ) -> Comparison:
        rows = [found for method in methods if (found := row(method)) is not None]
        return Comparison(
            protocol=PROTOCOL,
            selection=selection,
            name=name,
            title=f"{name}; {SELECTED_BY[selection]}",
            columns=(*columns, AVG),
            rows=(*rows, *(_published_rows(reference, name, columns) if with_published else ())),
            repeated="trials",
            separate_columns=False,
            notes=notes,
        )

    tables = []
    for dataset in datasets:

        def by_domain(method: str, dataset: str = dataset) -> ComparisonRow | None:
            found = selected.get((dataset, method))
            if found is None:
                return None
            return _dataset_row(reference, dataset, method, domains[dataset], found)

        tables.append(table(dataset, domains[dataset], by_domain))

    def averages(method: str) -> ComparisonRow:
        by_dataset = {dataset: selected.get((dataset, method)) for dataset in datasets}
        return _averages_row(reference, method, by_dataset)

    found = table(AVERAGES, datasets, averages)
    return [*tables, replace(found, notes=(*notes, *_about_incomplete_trials(selected)))]


def unrepeated(histories: Iterable[History]) -> tuple[list[History], list[History]]:
    """Return the runs without repeats, and the repeats.

    Raises:
        ConfigError: If a repeat has different settings, so that it is unclear which one to count.
    """
    first: dict[tuple[object, ...], History] = {}
    repeats = []
    for run in histories:
        there = first.setdefault(run.key, run)
        if there is run:
            continue
        keys = [k for k in {**there.settings, **run.settings} if _value(there, k) != _value(run, k)]
        if keys:
            raise _conflict(there, run, keys[0])
        repeats.append(run)
    return list(first.values()), repeats


def _conflict(there: History, run: History, key: str) -> ConfigError:
    """Return the error for two runs at one place of the protocol that differ in `key`."""
    before, here = _value(there, key), _value(run, key)
    if there.in_protocol and run.in_protocol:
        return ConfigError(
            "--protocol",
            PROTOCOL,
            f"{run.path} is {run.method} on {run.dataset}, trial {run.trial_seed}, hparams_seed"
            f" {run.hparams_seed}, and so is {there.path}, with another {key} ({before} there,"
            f" {here} here)",
            "pass a folder with the runs of one sweep, or count one value: --where KEY=VALUE",
        )
    return ConfigError(
        "--protocol",
        PROTOCOL,
        f"these runs are a sweep over {key} ({before} in {there.path}, {here} in {run.path}),"
        " outside DomainBed's protocol, where a method has one run for each trial and hparams_seed",
        "leave --protocol out: the table then has a row for each setting",
    )


def why_empty(histories: Sequence[History], selection: str) -> ConfigError:
    """Return the error for runs of which no accuracy is in a table: what they lack, and the fix."""
    plain = "leave --protocol out for a table of all runs"
    if all(run.dataset == IRM_SETUP for run in histories):
        return ConfigError(
            "--protocol",
            PROTOCOL,
            f"these are runs of the IRM setup, on dataset={IRM_SETUP} with two test domains",
            f"pass --protocol {IRM_SETUP}",
        )
    if not any(len(run.test_domains) == 1 for run in histories):
        return ConfigError(
            "--protocol",
            PROTOCOL,
            "no run leaves out a single domain, of which its tables are",
            f"start runs with one test domain each, as by experiment=domainbed_pacs, or {plain}",
        )
    if selection == "leave_one_out" and not any(len(run.test_domains) == 2 for run in histories):
        return ConfigError(
            "--selection",
            selection,
            "no run leaves out a second domain as well, by whose accuracy it selects",
            "add runs with each pair of test domains, as 'test_domains=[a,b],[a,c],[b,c]', or pass"
            " --selection training",
        )
    return ConfigError(
        "--selection",
        selection,
        "the runs that it needs are incomplete, or did not record the accuracy on the training"
        " part of their test domain at the selected step",
        f"complete the sweep, with evaluate_train=true, or {plain}",
    )


def _select(runs: Sequence[History], domains: int, selection: str) -> Selected:
    """Select for each test domain and trial."""
    found: dict[int, dict[int, Choice]] = {}
    for target in range(domains):
        here = [run for run in runs if target in run.test_domains]
        found[target] = {}
        for trial in sorted({run.trial_seed for run in here}):
            choice = select([run for run in here if run.trial_seed == trial], target, selection)
            if choice is not None:
                found[target][trial] = choice
    return found


def _dataset_row(
    reference: Reference, dataset: str, method: str, domains: Sequence[str], selected: Selected
) -> ComparisonRow:
    cells = {}
    for target, name in enumerate(domains):
        choices = selected[target]
        own = over_trials([100 * choice.accuracy for choice in choices.values()])
        traces = tuple(_trace(trial, choice) for trial, choice in choices.items())
        cells[name] = Cell(own, reference.figure(dataset, method, name), traces)
    repeats = max((len(choices) for choices in selected.values()), default=0)
    average = _mean_of([cell.own for cell in cells.values()], repeats)
    same = (*domains, AVG) == reference.columns(dataset)
    cells[AVG] = Cell(average, reference.figure(dataset, method, AVG) if same else None)
    return ComparisonRow(method, cells, repeats)


def _averages_row(
    reference: Reference, method: str, selected: Mapping[str, Selected | None]
) -> ComparisonRow:
    cells = {}
    for dataset, found in selected.items():
        own = over_trials(_trial_means(found or {}))
        cells[dataset] = Cell(own, reference.figure(AVERAGES, method, dataset))
    repeats = max((cell.own.n for cell in cells.values() if cell.own), default=0)
    # The published average is over all seven datasets.
    same = set(selected) == set(reference.columns(AVERAGES)) - {AVG}
    published = reference.figure(AVERAGES, method, AVG) if same else None
    average = _mean_of([cell.own for cell in cells.values()], repeats)
    return ComparisonRow(method, {**cells, AVG: Cell(average, published)}, repeats)


def _trial_means(selected: Selected) -> list[float]:
    """Average over the test domains, in percent, for each trial with all of them."""
    trials = sorted({trial for choices in selected.values() for trial in choices})
    return [
        100 * mean([choices[trial].accuracy for choices in selected.values()])
        for trial in trials
        if all(trial in choices for choices in selected.values())
    ]


def _about_incomplete_trials(selected: Mapping[tuple[str, str], Selected]) -> Iterable[str]:
    """Give the averages of DomainBed's script where it counts trials that ours leaves out."""
    theirs = []
    for (dataset, method), of in selected.items():
        trials = sorted({trial for choices in of.values() for trial in choices})
        means = [
            100 * mean([choices[trial].accuracy for choices in of.values() if trial in choices])
            for trial in trials
        ]
        estimate = over_trials(means)
        if estimate and len(_trial_means(of)) < len(trials):
            error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.1f}"
            plural = "s" * (estimate.n > 1)
            theirs.append(
                f"{method} on {dataset} {estimate.mean:.1f}{error} ({estimate.n} trial{plural})"
            )
    if theirs:
        yield (
            "Only trials with all test domains are averaged. DomainBed's script averages each trial"
            f" over the test domains that it has, which gives: {'; '.join(theirs)}."
        )


def _mean_of(estimates: Sequence[Estimate | None], repeats: int) -> Estimate | None:
    """Average over cells, without an error as in DomainBed; None where one is missing."""
    means = [estimate.mean for estimate in estimates if estimate is not None]
    return Estimate(mean(means), None, repeats) if len(means) == len(estimates) else None


def _trace(trial: int, choice: Choice) -> Trace:
    return Trace(
        trial=trial,
        accuracy=100 * choice.accuracy,
        run=choice.run.path,
        pairs=tuple(run.path for run in choice.pairs),
        hparams_seed=choice.run.hparams_seed,
        candidates=choice.candidates,
        step=choice.step,
        value=100 * choice.value,
    )


def _published_rows(
    reference: Reference, name: str, columns: Sequence[str]
) -> Iterable[ComparisonRow]:
    """Make the rows of all methods that have a figure in one of our columns."""
    methods = dict.fromkeys([*reference.methods(name), *reference.methods(AVERAGES)])
    whole = (*columns, AVG) == reference.columns(name)
    for method in methods:
        figures = {column: reference.figure(name, method, column) for column in (*columns, AVG)}
        if not whole:
            figures[AVG] = None  # an average over other columns
        if any(figures.values()):
            cells = {column: Cell(None, figure) for column, figure in figures.items()}
            yield ComparisonRow(method, cells, 0, published_only=True)


def _domain_names(dataset: str, runs: Sequence[History], reference: Reference) -> tuple[str, ...]:
    """Return the domains' names in the published table, or else in our records.

    Raises:
        ConfigError: If two runs have different numbers of domains.
    """
    for run in runs:
        if len(run.domains) != len(runs[0].domains):
            raise ConfigError(
                "DIR",
                run.path,
                f"{dataset} has {len(run.domains)} domains here, and {len(runs[0].domains)} in"
                f" {runs[0].path}",
                "pass a folder with the runs of one sweep",
            )
    published = reference.columns(dataset)[:-1]
    return published if len(published) == len(runs[0].domains) else runs[0].domains


def _about(runs: Sequence[History], repeats: Sequence[History]) -> Iterable[str]:
    for dataset in dict.fromkeys(run.dataset for run in runs):
        here = [run for run in runs if run.dataset == dataset and run.protocol]
        protocols = sorted({run.protocol for run in here})
        if len(protocols) > 1:
            yield f"{dataset} mixes protocols, which cannot be compared: {', '.join(protocols)}."
        elif protocols:
            yield f"{dataset}: protocol {protocols[0]}."
        if departures := sorted({key for run in here for key in run.departures}):
            yield f"{dataset}: runs depart from that preset in {', '.join(departures)}."
    if any(not run.in_protocol for run in runs):
        yield (
            "Some runs are outside DomainBed's protocol (protocol.name is not set): their seed"
            " counts as the trial, and a verdict on them may compare runs that differ in more than"
            " the method."
        )
    if chosen := sorted({run.method for run in runs if run.only_choice}):
        yield (
            f"{', '.join(chosen)}: a run's result is a mean of weights that the method chose,"
            " whatever the selection; only hyperparameters are selected here."
        )
    if any(not run.done for run in runs):
        yield "Some imported runs lack the file that marks them as done; they are counted anyway."
    if repeats:
        folders = ", ".join(str(run.path) for run in repeats)
        yield f"Not counted, since they repeat a run: {folders}."


def _in_order(
    found: Iterable[str], order: Sequence[str], key: Callable[[str], str] = str
) -> list[str]:
    """Sort known names in the published order, followed by the others by name."""
    known = {key(name): number for number, name in enumerate(order)}
    return sorted(set(found), key=lambda name: (known.get(key(name), len(known)), name))


def _value(run: History, key: str) -> Any:
    return run.settings.get(key, "absent")
