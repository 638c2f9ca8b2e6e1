"""Turns a request into a `Plan`: rows, columns and test sets, what they lack, and what earlier runs measured.

Only file names are looked at and no network library is imported, so that a missing file is named within a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from bench.errors import without_paths
from bench.methods import MethodSpec, get_method
from bench.metrics import MetricSpec, get_metric, missing_metric
from bench.options import RunOptions
from bench.paper.tables import PaperRow, Profile, TableSpec
from bench.records.schema import Plan, PlanMethod, PlanMetric, PlanSet
from bench.store.missing import Missing, Obstacle
from bench.testsets.manifest import TESTSETS, has_reference, missing_testset
from tsd.errors import UserError


@dataclass(frozen=True)
class Row:
    """A row of the future table; `spec` is None if the harness has no adapter for the method."""

    name: str
    display: str
    steps: int | None
    spec: MethodSpec | None


@dataclass(frozen=True)
class Choice:
    """What a run consists of, and what is missing for it.

    Attributes:
        missing_sets, missing_metrics: what is missing, by name; complete ones are left out.
        missing_methods: what is missing, by (test set, method).
    """

    table: TableSpec
    profile: str
    testsets: tuple[str, ...]
    rows: tuple[Row, ...]
    metrics: tuple[MetricSpec, ...]
    missing_sets: dict[str, list[Missing]] = field(default_factory=dict)
    missing_methods: dict[tuple[str, str], list[Missing | Obstacle]] = field(default_factory=dict)
    missing_metrics: dict[str, list[Missing]] = field(default_factory=dict)

    def missing(self, *, methods: bool = True) -> list[Missing | Obstacle]:
        """Everything missing, without duplicates: test sets, then methods if `methods` is set, then metrics."""
        groups: list[Sequence[Missing | Obstacle]] = [*self.missing_sets.values()]
        groups += [*(self.missing_methods.values() if methods else ()), *self.missing_metrics.values()]
        return list(dict.fromkeys(item for group in groups for item in group))

    def reasons_missing(self, row: Row) -> dict[str, list[str]]:
        """What keeps the row's method from running, by test set: one line per cause, no lines if it can run."""
        if row.spec is None:
            return {name: [f"{row.display}: this harness has no adapter for it yet"] for name in self.testsets}
        return {
            name: [item.line() for item in self.missing_methods.get((name, row.name), [])] for name in self.testsets
        }


def choose(
    table: TableSpec,
    profile_name: str,
    options: RunOptions,
    *,
    testsets: Sequence[str] | None,
    methods: Sequence[str] | None,
    metrics: Sequence[str] | None,
) -> Choice:
    """The run that the arguments ask for; an argument of None means the profile's choice.

    If no test set has a ground truth, the profile's metrics that need one are left out, and nothing counts as missing
    for metrics that need one.

    Raises:
        UserError: an unknown name (with the nearest known one), or two methods of one name.
    """
    profile = table.profiles[profile_name]
    names = tuple(dict.fromkeys(testsets or profile.testsets))
    for name in names:
        if name not in TESTSETS:
            raise UserError(f"unknown test set {name!r}. Known: {', '.join(TESTSETS)}")
    rows = _rows(profile, methods)
    referenced = any(has_reference(name) for name in names)
    specs = tuple(get_metric(name) for name in dict.fromkeys(metrics or profile.metrics))
    specs = tuple(spec for spec in specs if metrics or referenced or not spec.needs_reference)
    return Choice(
        table=table,
        profile=profile_name,
        testsets=names,
        rows=rows,
        metrics=specs,
        missing_sets={name: found for name in names if (found := missing_testset(name, options.data_root))},
        missing_methods={
            (name, row.name): found
            for name in names
            for row in rows
            if row.spec and (found := list(row.spec.missing(replace(options, testset=name))))
        },
        missing_metrics={
            spec.name: found
            for spec in specs
            if (referenced or not spec.needs_reference) and (found := missing_metric(spec))
        },
    )


def _rows(profile: Profile, methods: Sequence[str] | None) -> tuple[Row, ...]:
    if methods is None:
        return tuple(_row_of_paper(row) for row in profile.rows)
    known = {row.method: row for row in profile.rows}
    rows: dict[str, tuple[str, Row]] = {}
    for name in methods:
        row = _row_of_paper(known[name]) if name in known else _row_of_method(name)
        first, _ = rows.setdefault(row.name, (name, row))
        if first != name:
            raise UserError(
                f"{first!r} and {name!r} would both be called {row.name!r}: put another name before one, NAME=FORM:..."
            )
    return tuple(row for _, row in rows.values())


def _row_of_paper(paper: PaperRow) -> Row:
    try:
        spec = get_method(paper.method)
    except UserError:  # a row of the paper that this harness cannot measure
        return Row(paper.method, paper.display, paper.steps, None)
    return Row(spec.name, spec.display, spec.steps, spec)


def _row_of_method(name: str) -> Row:
    spec = get_method(name)
    return Row(spec.name, spec.display, spec.steps, spec)


def make_plan(choice: Choice, sets: Sequence[PlanSet], *, seed: int, reference: str, old: Plan | None) -> Plan:
    """The plan of the table: this run's rows and columns, and those of earlier runs into the same folder.

    Entries of the profile come first, in its order, then the others in the order in which they were added.

    Raises:
        UserError: the folder's table was made with another seed or profile.
    """
    if old is not None and (old.seed, old.profile) != (seed, choice.profile):
        raise UserError(
            f"the {old.table} in this folder was made with --profile {old.profile} --seed {old.seed}, now "
            f"--profile {choice.profile} --seed {seed}: choose another --out for another table"
        )
    before = {method.name: method.missing for method in (old.methods if old else [])}

    def missing(row: Row) -> dict[str, list[str]]:
        reasons = choice.reasons_missing(row)
        return {testset: [without_paths(line) for line in lines] for testset, lines in reasons.items()}

    methods = [
        PlanMethod(row.name, row.display, row.steps, {**before.get(row.name, {}), **missing(row)})
        for row in choice.rows
    ]
    metrics = [
        PlanMetric(
            name=spec.name,
            display=spec.display,
            level=spec.level,
            needs_reference=spec.needs_reference,
            higher_is_better=spec.higher_is_better,
            decimals=spec.decimals,
            protocol=spec.protocol,
            missing=[without_paths(item.line()) for item in choice.missing_metrics.get(spec.name, [])],
        )
        for spec in choice.metrics
    ]
    profile = choice.table.profiles[choice.profile]
    order = [row.method for row in profile.rows]
    return Plan(
        table=choice.table.name,
        title=choice.table.title,
        profile=choice.profile,
        seed=seed,
        paper=choice.table.paper,
        reference=reference,
        testsets=_merged(old.testsets if old else [], list(sets), list(profile.testsets)),
        methods=_merged(old.methods if old else [], methods, order),
        metrics=_merged(old.metrics if old else [], metrics, list(profile.metrics)),
    )


EntryT = TypeVar("EntryT", PlanSet, PlanMethod, PlanMetric)


def _merged(old: list[EntryT], new: list[EntryT], order: list[str]) -> list[EntryT]:
    """Old and new entries by name, the new replacing the old; those in `order` first."""
    entries = {entry.name: entry for entry in [*old, *new]}
    known = [entries[name] for name in order if name in entries]
    return known + [entry for name, entry in entries.items() if name not in order]
