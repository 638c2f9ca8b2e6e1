"""Stage 3: turns records into a `Table` of cells, as data. Nothing is formatted or rounded here.

Every average is over exactly the images of the table's plan. If one image has no value, the cell has a reason instead
of a mean over fewer images. Intervals are Student's t, 95 %, over per-image values. Methods are compared by the paired
difference, image by image: most differences of means are smaller than the spread between images, while a paired
interval that excludes zero says that one method really is better on images like these. Marks follow the same rule
(`_ranks`): a method is the only best one if that interval excludes zero for every other method. Below `FEWEST` images
nothing is marked, and an interval that would leave the range of the metric is none: Student's t then says little.

No torch, no pandas: `Table` is plain data for every renderer.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

from bench.metrics import bounds_of
from bench.provenance import machine_name
from bench.records.records import Records
from bench.records.schema import (
    Plan,
    PlanMetric,
    PlanSet,
    ScoreRow,
    Verification,
    VerifiedMetric,
    valid_set_score,
)
from bench.report.measured import Measured, failures

SECONDS = "seconds"
FEWEST = 6
"""Images from which on a difference is called better or worse, and methods are ranked."""


@dataclass(frozen=True)
class HeaderCell:
    """A column: its name in records, its name in tables, its direction and its digits after the point."""

    name: str
    display: str
    higher_is_better: bool
    decimals: int


@dataclass(frozen=True)
class Cell:
    """A value with its evidence, or the reason why there is none.

    Attributes:
        value: mean of per-image values, or the value of the set; None where nothing could be measured.
        n: number of images behind the value.
        low, high: 95 % interval; None for one image and for values of a whole set.
        reasons: one line per cause, empty where there is a value.
        rank: 1 for the best and 2 for the second best of the column, None for all others; tied cells share it.
        tied: whether the rank is shared, because the paired intervals between its cells include zero.
    """

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    reasons: tuple[str, ...] = ()
    rank: int | None = None
    tied: bool = False

    @property
    def enough(self) -> bool:
        """Whether enough images are behind the value to mark it."""
        return self.n >= FEWEST


@dataclass(frozen=True)
class TableRow:
    """A method: one cell per column, and the paired difference to the reference row for each image-level column.

    Attributes:
        remarks: short facts that a reader of the row needs, from the method's provenance.
        reasons: why the method has not restored every image, one line per cause; if not empty, no cell has a value.
    """

    method: str
    display: str
    steps: int | None
    cells: Mapping[str, Cell]
    differences: Mapping[str, Cell] = field(default_factory=dict[str, Cell])
    remarks: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two rows that a table compares: the paired differences `display` minus `against`, by column."""

    method: str
    display: str
    against: str
    differences: Mapping[str, Cell]


@dataclass(frozen=True)
class Section:
    """One test set. `reference` is the display name of the row that differences refer to; None if there is none.

    `pairs` are the differences between pairs of rows that the table is about, if both rows were measured.
    """

    testset: str
    display: str
    n: int
    total: int
    rows: tuple[TableRow, ...]
    reference: str | None
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Table:
    """Everything a renderer needs.

    `protocols`: (column, protocol line); `versions` and `machines` as recorded; `verified`: what `bench verify` found,
    one sentence for each golden log and verdict.
    """

    name: str
    title: str
    profile: str
    seed: int
    columns: tuple[HeaderCell, ...]
    sections: tuple[Section, ...]
    protocols: tuple[tuple[str, str], ...]
    versions: tuple[str, ...]
    machines: tuple[str, ...]
    verified: tuple[str, ...] = ()


def mean_ci95(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean of `values` and its 95 % interval by Student's t; the interval is None for a single value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def summarize(records: Records, plan: Plan, *, timing: bool = True, pairs: Sequence[tuple[str, str]] = ()) -> Table:
    """The table of `plan` from the records that exist.

    Args:
        timing: whether the table has the column of seconds. Seconds differ from run to run; everything else is
            reproducible.
        pairs: (method, against): rows to compare in addition to the comparison with the plan's reference.
    """
    measured = [
        Measured(records, testset, method, plan.metrics) for testset in plan.testsets for method in plan.methods
    ]
    columns = [HeaderCell(m.name, m.display, m.higher_is_better, m.decimals) for m in plan.metrics]
    if timing:
        columns.append(HeaderCell(SECONDS, "s/image", False, 3))
    sections = [
        _section(testset, [item for item in measured if item.testset is testset], plan, timing, pairs)
        for testset in plan.testsets
    ]
    return Table(
        name=plan.table,
        title=plan.title,
        profile=plan.profile,
        seed=plan.seed,
        columns=tuple(columns),
        sections=tuple(sections),
        protocols=tuple((metric.display, metric.protocol) for metric in plan.metrics),
        versions=_versions(measured),
        machines=_machines(measured) if timing else (),
        verified=_verified(records.read_verification(), plan),
    )


def _section(
    testset: PlanSet, measured: list[Measured], plan: Plan, timing: bool, pairs: Sequence[tuple[str, str]]
) -> Section:
    reference = next((item for item in measured if item.method.name == plan.reference), None)
    if reference is not None and reference.reasons_unrestored():
        reference = None
    rows: list[TableRow] = []
    for item in measured:
        cells = {metric.name: _cell(item, metric) for metric in plan.metrics}
        if timing:
            cells[SECONDS] = _seconds(item)
        differences: dict[str, Cell] = {}
        if reference is not None and item is not reference:
            differences = _differences(item, reference, plan.metrics)
        method, reasons = item.method, item.reasons_unrestored()
        rows.append(TableRow(method.name, method.display, method.steps, cells, differences, item.remarks(), reasons))
    for metric in plan.metrics:
        for index, (rank, tied) in _ranks(rows, measured, metric).items():
            ranked = replace(rows[index].cells[metric.name], rank=rank, tied=tied)
            rows[index] = replace(rows[index], cells={**rows[index].cells, metric.name: ranked})
    return Section(
        testset.name,
        testset.display,
        len(testset.names),
        testset.total,
        tuple(rows),
        reference.method.display if reference else None,
        tuple(_pairs(measured, plan, pairs)),
    )


def _pairs(measured: list[Measured], plan: Plan, pairs: Sequence[tuple[str, str]]) -> Iterator[Pair]:
    by_name = {item.method.name: item for item in measured}
    for name, other in pairs:
        if name in by_name and other in by_name:
            item, against = by_name[name], by_name[other]
            differences = _differences(item, against, plan.metrics)
            if differences:
                yield Pair(name, item.method.display, against.method.display, differences)


def _cell(item: Measured, metric: PlanMetric) -> Cell:
    names = item.testset.names
    reasons = item.reasons_unrestored()
    if reasons:
        return Cell(None, 0, reasons=reasons)
    rows = item.scores[metric.name]
    if metric.level == "set":
        row = valid_set_score(rows, item.images, names, metric.protocol)
        if row is not None:
            return Cell(row.value, row.n)
    else:
        values = item.values(metric)
        if len(values) == len(names):
            return within(bounds_of(metric.name), list(values.values()))
    return Cell(None, 0, reasons=_unscored(item, metric, rows))


def _unscored(item: Measured, metric: PlanMetric, rows: Mapping[str, ScoreRow]) -> tuple[str, ...]:
    if metric.needs_reference and any(row.hr_sha256 is None for row in item.images.values()):
        return (f"{metric.display} needs a ground truth, and {item.testset.display} has none",)
    if metric.missing:
        return tuple(metric.missing)
    failed = [row for row in rows.values() if row.error is not None]
    if failed:
        return (f"{metric.display} of {item.method.display} {failures(failed, len(item.testset.names))}",)
    return (f"{metric.display} of {item.method.display} is not scored yet; `bench run` does the rest",)


def _seconds(item: Measured) -> Cell:
    reasons = item.reasons_unrestored()
    if reasons:
        return Cell(None, 0, reasons=reasons)
    untimed = item.reason_untimed()
    if untimed:
        return Cell(None, 0, reasons=(f"{item.method.display}: {untimed}",))
    seconds = [row.seconds for row in item.images.values() if row.seconds is not None]
    return within((0.0, math.inf), seconds)


def _differences(item: Measured, reference: Measured, metrics: Sequence[PlanMetric]) -> dict[str, Cell]:
    """The paired differences by column, for columns in which both rows have every value."""
    found = {metric.name: _difference(item, reference, metric) for metric in metrics}
    return {name: cell for name, cell in found.items() if cell is not None}


def _difference(item: Measured, reference: Measured, metric: PlanMetric) -> Cell | None:
    """Mean of the per-image differences to the reference row, with its interval; None if a value is missing."""
    if metric.level == "set":
        return None
    values, others = item.values(metric), reference.values(metric)
    if not len(values) == len(others) == len(item.testset.names):
        return None
    low, high = bounds_of(metric.name)
    return within((low - high, high - low), [values[name] - others[name] for name in item.testset.names])


def within(bounds: tuple[float, float], values: Sequence[float]) -> Cell:
    """The mean of `values` with its interval, or without one where it would reach beyond `bounds`."""
    mean, low, high = mean_ci95(values)
    if low is None or high is None or low < bounds[0] or high > bounds[1]:
        return Cell(mean, len(values))
    return Cell(mean, len(values), low, high)


def _ranks(rows: Sequence[TableRow], measured: Sequence[Measured], metric: PlanMetric) -> dict[int, tuple[int, bool]]:
    """The best and second best rows of a column: (rank, tied) by the index of the row.

    The rows with a value are ordered by their unrounded means. The first row and every row whose paired 95 % interval
    against the first includes zero have rank 1. If only the first row has rank 1, the same rule gives rank 2 among the
    others; otherwise no row has rank 2. A rank that several rows share is tied.

    Without a paired interval nothing is ranked: a value of a whole set, a single row. Seconds are not ranked either,
    because the records of two rows may come from two machines; nor is anything on fewer than `FEWEST` images.

    Args:
        rows: the rows of one test set, with all their cells.
        measured: the records behind each of `rows`, in the same order.
    """
    values = {
        index: list(item.values(metric).values())
        for index, (row, item) in enumerate(zip(rows, measured, strict=True))
        if metric.level == "image" and row.cells[metric.name].enough
    }
    return ranked(values, metric.higher_is_better)


def ranked(values: Mapping[int, Sequence[float]], higher_is_better: bool) -> dict[int, tuple[int, bool]]:
    """(rank, tied) of the best and second best rows, by the key of the row; see `_ranks`.

    Args:
        values: the values of each row, all for the same images in the same order.
    """
    if len(values) < 2:
        return {}
    order = sorted(values, key=lambda index: math.fsum(values[index]), reverse=higher_is_better)

    def tied_with_first(order: list[int]) -> list[int]:
        return [index for index in order if index == order[0] or _tied(values[index], values[order[0]])]

    best = tied_with_first(order)
    if len(best) > 1:
        return dict.fromkeys(best, (1, True))
    second = tied_with_first(order[1:])
    return {order[0]: (1, False)} | dict.fromkeys(second, (2, len(second) > 1))


def _tied(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the 95 % interval of the paired differences includes zero."""
    _, low, high = mean_ci95([value - other for value, other in zip(values, others, strict=True)])
    return low is None or high is None or low <= 0 <= high


def _versions(measured: list[Measured]) -> tuple[str, ...]:
    """Every library version behind the numbers, as "name version", without duplicates, sorted by name."""
    found = {
        pair
        for item in measured
        for content in [*item.environments.values(), *item.scoring_versions()]
        for pair in content["versions"].items()
    }
    return tuple(f"{name} {version}" for name, version in sorted(found))


def _verified(verification: Verification | None, plan: Plan) -> tuple[str, ...]:
    """What the attached verification says of the columns, one sentence for each golden log and verdict."""
    if verification is None:
        return ()
    protocols = {metric.name: metric.protocol for metric in plan.metrics}
    place = machine_name(verification.environment)
    groups: dict[tuple[str, str, bool], list[VerifiedMetric]] = {}
    for found in verification.metrics:
        if protocols.get(found.metric) == found.protocol:
            of_all = f"{found.n} images" if found.n == found.total else f"the first {found.n} of {found.total} images"
            groups.setdefault((found.about, of_all, found.agrees), []).append(found)
    return tuple(
        f"{'Verified' if agrees else 'NOT verified'} on {verification.date} on {place} against {about}, {images}: "
        + ", ".join(f"{found.display} (largest difference {found.largest:.1e})" for found in group)
        for (about, images, agrees), group in groups.items()
    )


def _machines(measured: list[Measured]) -> tuple[str, ...]:
    """One line per machine and setting on which seconds were measured."""
    lines: list[str] = []
    for item in measured:
        timed = {row.environment for row in item.images.values() if row.seconds is not None}
        for key, content in item.environments.items():
            if key in timed:
                threads = f"{content['threads']} thread{'' if content['threads'] == 1 else 's'}"
                place = content["accelerator"] or f"{content['processor']}, {threads}"
                lines.append(f"{place}, {content['dtype']}")
    return tuple(dict.fromkeys(lines))
