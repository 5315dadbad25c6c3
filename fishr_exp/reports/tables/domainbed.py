"""DomainBed's tables: one for each dataset, by test domain, and the averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.published import (
    AVERAGES,
    AVG,
    DOMAIN_NET,
    Published,
    Reference,
    method_key,
)
from fishr_exp.reports.statistics.estimates import Estimate, mean
from fishr_exp.reports.statistics.selection import Choice, select
from fishr_exp.reports.tables.comparison import Cell, Comparison, ComparisonRow, Trace, over_trials
from fishr_exp.reports.tables.published_rows import PublishedRows, backbone_of
from fishr_exp.reports.tables.regimes import (
    PROTOCOL,
    Regime,
    about,
    by_regime,
    of_averages,
    unrepeated,
)
from fishr_exp.runs.history import History

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
    histories: Iterable[History], selection: str, sources: Sequence[str] | None = None
) -> list[Comparison]:
    """Build one table per dataset, and the table of averages; several where protocols differ.

    Args:
        histories: All runs; of repeats only the first counts, see `unrepeated`.
        selection: A key of `selection.SELECTIONS`.
        sources: Whose published rows to add, see `check_sources`; empty: DomainBed's and Fishr's;
            None: none.

    Raises:
        ConfigError: If two runs are the same run of a sweep with different settings.
    """
    published = PublishedRows(sources, selection)
    histories = list(histories)
    order = Reference(PROTOCOL, selection)
    datasets = _in_order([run.dataset for run in histories], order.columns(AVERAGES))
    parts = {
        (dataset, regime): _Part(dataset, regime, runs, selection)
        for dataset in datasets
        for regime, runs in by_regime(run for run in histories if run.dataset == dataset).items()
    }
    variants = {d: [part.regime for part in parts.values() if part.dataset == d] for d in datasets}
    averages, tables = of_averages(variants), []
    for part in parts.values():
        label = part.regime.label if len(variants[part.dataset]) > 1 else ""
        table = _table(part.dataset, label, [part], published)
        if not any(part.dataset in members for members in averages.values()):
            reason = f"{part.dataset} is in no average: its runs are of several protocols."
            table = replace(table, notes=(*table.notes, reason))
        tables.append(table)
    for regime, members in averages.items():
        found = [parts[dataset, members[dataset]] for dataset in datasets if dataset in members]
        label = regime.label if len(averages) > 1 else ""
        tables.append(_table(AVERAGES, label, found, published))
    names = dict.fromkeys(table.name for table in tables)
    apart = published.apart(names, backbone_of(run for run in histories))
    return [*tables, *apart]


class _Part:
    """The runs of one dataset and regime, and what is selected among them."""

    def __init__(
        self, dataset: str, regime: Regime, runs: Sequence[History], selection: str
    ) -> None:
        self.dataset, self.regime = dataset, regime
        self.runs, self.repeats = unrepeated(runs)
        self.domains = _domain_names(dataset, self.runs, Reference(PROTOCOL, selection))
        self.selected: dict[str, Selected] = {}
        for method in dict.fromkeys(run.method for run in self.runs):
            here = [run for run in self.runs if run.method == method]
            self.selected[method] = _select(here, len(self.domains), selection)


def _table(name: str, label: str, parts: Sequence[_Part], published: PublishedRows) -> Comparison:
    """Build the table of one part, or the averages of several."""
    averages, selection = name == AVERAGES, published.selection
    domain_net = [part.regime.steps for part in parts if part.dataset == DOMAIN_NET]
    steps = domain_net[0] if domain_net else None
    runs = [run for part in parts for run in part.runs]
    backbone = backbone_of(runs)
    references = published.references(steps, backbone)
    columns = tuple(part.dataset for part in parts) if averages else parts[0].domains
    order = Reference(PROTOCOL, selection).methods(AVERAGES)
    rows = [
        _averages_row(
            references, method, {part.dataset: part.selected.get(method) for part in parts}
        )
        if averages
        else _dataset_row(references, parts[0], method)
        for method in _in_order([m for part in parts for m in part.selected], order, method_key)
    ]
    more = published.rows(name, columns, steps, backbone)
    notes = [_MEASURED, _RULES[selection]]
    notes += about({part.dataset: part.runs for part in parts})
    notes += _about(runs, [run for part in parts for run in part.repeats])
    notes += published.notes(more, steps)
    if averages:
        notes += _about_incomplete_trials(
            {(part.dataset, method): of for part in parts for method, of in part.selected.items()}
        )
    return Comparison(
        protocol=PROTOCOL,
        selection=selection,
        name=name,
        title="; ".join(filter(None, (name, label, SELECTED_BY[selection]))),
        columns=(*columns, AVG),
        rows=(*rows, *more),
        repeated="trials",
        separate_columns=False,
        notes=tuple(notes),
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


def _dataset_row(references: Sequence[Reference], part: _Part, method: str) -> ComparisonRow:
    cells, selected = {}, part.selected[method]
    for target, name in enumerate(part.domains):
        choices = selected[target]
        own = over_trials([100 * choice.accuracy for choice in choices.values()])
        traces = tuple(_trace(trial, choice) for trial, choice in choices.items())
        cells[name] = Cell(own, _figure(references, part.dataset, method, name), traces)
    repeats = max((len(choices) for choices in selected.values()), default=0)
    average = _mean_of([cell.own for cell in cells.values()], repeats)
    same = (*part.domains, AVG) == references[0].columns(part.dataset)
    published = _figure(references, part.dataset, method, AVG) if same else None
    cells[AVG] = Cell(average, published)
    return ComparisonRow(method, cells, repeats)


def _averages_row(
    references: Sequence[Reference], method: str, selected: Mapping[str, Selected | None]
) -> ComparisonRow:
    cells = {}
    for dataset, found in selected.items():
        own = over_trials(_trial_means(found or {}))
        cells[dataset] = Cell(own, _figure(references, AVERAGES, method, dataset))
    repeats = max((cell.own.n for cell in cells.values() if cell.own), default=0)
    # A published average is over as many datasets: DomainBed's over seven.
    same = [of for of in references if set(selected) == {*of.columns(AVERAGES)} - {AVG}]
    average = _mean_of([cell.own for cell in cells.values()], repeats)
    cells[AVG] = Cell(average, _figure(same, AVERAGES, method, AVG))
    return ComparisonRow(method, cells, repeats)


def _figure(
    references: Sequence[Reference], name: str, method: str, column: str
) -> Published | None:
    found = (reference.figure(name, method, column) for reference in references)
    return next((figure for figure in found if figure is not None), None)


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
    """Sort known names in the published order, followed by the others by name.

    A method with an averaging scheme, `ERM + SWAD`, and an average of runs, `ERM (uniform average
    of 20)`, are next to the method.
    """
    known = {key(name): number for number, name in enumerate(order)}

    def place(name: str) -> tuple[int, str, str]:
        base = name.partition(" + ")[0].partition(" (")[0]
        return known.get(key(base), len(known)), base.casefold(), name.casefold()

    return sorted(set(found), key=place)
