"""Rows of several runs in one table for each test set: who measured them, on what, and whether they may be compared.

The first run that measured a test set states the conditions: the images with the hashes of their files, the protocol
and the weights of each metric, and the seed of methods that draw. A row that was measured otherwise stands apart, and
says in what. So does a row of a method whose weights or settings are not those of the first row of that method, and a
copy of records that another run has already brought. Machines and versions do not set a row apart, but for the version
of a metric's library, which its protocol states: they are in the row, and move values by less than `bench compare`
allows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.provenance import machine_name
from bench.records.differences import differences
from bench.records.records import MethodRecords
from bench.records.schema import (
    WHOLE_SET,
    ImageRow,
    Rescored,
    ScoreRow,
    valid_scores,
    valid_set_score,
    values_sha256,
)
from bench.report.csvs import csv_text
from bench.report.document import DASH, evidence_of
from bench.report.summarize import SECONDS, Cell, HeaderCell, Section, TableRow, ranked
from bench.site.collection import Collection, Set, Shown, SiteTable
from tsd.errors import some

MOST = 4
"""Differences of settings that are listed; more are counted."""


@dataclass(frozen=True)
class Verified:
    """What re-scoring said of a row: `text` for the cell, `evidence` behind it, `differs` where a value moved."""

    text: str = ""
    evidence: str = ""
    differs: bool = False


@dataclass(frozen=True)
class BoardRow:
    """A method of a run. `apart` says in what it was measured otherwise; empty if in nothing."""

    run: str
    display: str
    method: int
    steps: int | None
    cells: Mapping[str, Cell]
    by: str
    machine: str
    published: str
    harness: str
    verified: Verified
    apart: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Board:
    """One test set. `metrics` are the places of the image-level columns in the test set, for the charts."""

    heading: str
    testset: int
    columns: tuple[HeaderCell, ...]
    rows: tuple[BoardRow, ...]
    metrics: Mapping[str, int]

    @property
    def together(self) -> tuple[BoardRow, ...]:
        return tuple(row for row in self.rows if not row.apart)

    @property
    def apart(self) -> tuple[BoardRow, ...]:
        return tuple(row for row in self.rows if row.apart)

    def evidence(self, row: BoardRow, column: HeaderCell) -> str:
        return evidence_of(row.cells[column.name], column) if column.name in row.cells else ""


@dataclass(frozen=True)
class _Measurement:
    """All that decides whether a row may stand beside another one."""

    shown: Shown
    handle: MethodRecords
    images: Mapping[str, ImageRow]
    scores: Mapping[str, Mapping[str, ScoreRow]]
    protocols: Mapping[str, str]
    displays: Mapping[str, str]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.images)

    @property
    def seed(self) -> int | None:
        """The seed of the run; None if no image had one."""
        drawn = any(row.seed is not None for row in self.images.values())
        return self.shown.restoration.seed if drawn and self.shown.restoration else None

    @property
    def dtypes(self) -> str:
        contents = self.shown.restoration.environments.values() if self.shown.restoration else ()
        return ", ".join(dict.fromkeys(str(content.get("dtype")) for content in contents))


def boards_of(collection: Collection) -> list[Board]:
    """A leaderboard for each test set, if there is more than one run or a published one; otherwise none."""
    if len(collection.runs) < 2 and not any(run.records.publications() for run in collection.runs):
        return []
    boards = [_board(collection, place, found) for place, found in enumerate(collection.sets)]
    return [board for board in boards if board.rows]


def _board(collection: Collection, place: int, found: Set) -> Board:
    columns: dict[str, HeaderCell] = {}
    rows: list[BoardRow] = []
    measurements: list[_Measurement] = []
    n: tuple[int, int] | None = None
    for index, shown in enumerate(found.methods):
        source = _source(collection, shown, found.name)
        if source is None:
            continue
        site, section, row = source
        n = n or (section.n, section.total)
        for header in site.table.columns:
            if header.name != SECONDS and row.cells[header.name].value is not None:
                columns.setdefault(header.name, header)
        measurement = _measurement(shown, found.name, site)
        together = [known for known, before in zip(measurements, rows, strict=True) if not before.apart]
        apart = tuple(_apart(measurement, measurements, together))
        rows.append(_row(row, measurement, index, apart, _note(measurement, measurements)))
        measurements.append(measurement)
    for header in columns.values():
        rows = _marked(rows, header, found)
    heading = f"{found.display} (N = {n[0]}{'' if n[0] == n[1] else f' of {n[1]}'})" if n else found.display
    places = {metric.name: at for at, metric in reversed(list(enumerate(found.metrics)))}
    return Board(heading, place, tuple(columns.values()), tuple(rows), {c: places[c] for c in columns if c in places})


def _source(collection: Collection, shown: Shown, testset: str) -> tuple[SiteTable, Section, TableRow] | None:
    """The row of a method in the first table of its run that has a value of it."""
    for site in collection.tables:
        for section in site.table.sections if site.run is shown.run else ():
            for row in section.rows if section.testset == testset else ():
                if row.method == shown.name and any(cell.value is not None for cell in row.cells.values()):
                    return site, section, row
    return None


def _measurement(shown: Shown, testset: str, site: SiteTable) -> _Measurement:
    handle = shown.run.records.of(testset, shown.name)
    plan = next(plan for plan in shown.run.plans if plan.table == site.table.name)
    names = next(listed.names for listed in plan.testsets if listed.name == testset)
    images = handle.images()
    return _Measurement(
        shown=shown,
        handle=handle,
        images={name: images[name] for name in names if name in images},
        scores={metric.name: handle.scores(metric.name) for metric in plan.metrics},
        protocols={metric.name: metric.protocol for metric in plan.metrics},
        displays={metric.name: metric.display for metric in plan.metrics},
    )


def _row(row: TableRow, measurement: _Measurement, index: int, apart: tuple[str, ...], note: str) -> BoardRow:
    shown = measurement.shown
    contents = list(shown.restoration.environments.values()) if shown.restoration else []
    published = shown.run.records.publications()
    machines = dict.fromkeys(f"{_machine(content)}, {content.get('dtype')}" for content in contents)
    versions = dict.fromkeys(
        f"{content.get('bench')} ({str(content['git_commit'])[:9]})"
        if content.get("git_commit")
        else str(content.get("bench"))
        for content in contents
    )
    return BoardRow(
        run=shown.run.label,
        display=row.display,
        method=index,
        steps=row.steps,
        cells={name: replace(cell, rank=None, tied=False) for name, cell in row.cells.items()},
        by=published[-1].by if published else "not stated",
        machine="; ".join(machines) or "not recorded",
        published=published[-1].date if published else DASH,
        harness=", ".join(versions) or "not recorded",
        verified=_verified(measurement),
        apart=apart,
        note=note,
    )


def _apart(mine: _Measurement, earlier: Sequence[_Measurement], together: Sequence[_Measurement]) -> Iterator[str]:
    """In what a row was measured otherwise than the rows before it, of which some stand `together`."""
    if not together:
        return
    first = together[0]
    same = next((other for other in earlier if other.shown.name == mine.shown.name), None)
    if same is not None and _is_copy(mine, same):
        yield f"the records of {same.shown.run.label} once more: a copy, not a second measurement"
        return
    if mine.names != first.names:
        counts = len(mine.names), len(first.names)
        yield (
            f"{counts[0]} images, not the {counts[1]} of {first.shown.run.label}"
            if counts[0] != counts[1]
            else f"other images than {first.shown.run.label}"
        )
    others = [
        name
        for name in mine.names & first.names
        if (mine.images[name].lr_sha256, mine.images[name].hr_sha256)
        != (first.images[name].lr_sha256, first.images[name].hr_sha256)
    ]
    if others:
        yield f"another input or ground truth of {some(sorted(others))}"
    yield from _other_metrics(mine, together)
    seeded = next((other for other in together if other.seed is not None), None)
    if seeded is not None and mine.seed is not None and mine.seed != seeded.seed:
        yield f"seed {mine.seed}, not {seeded.seed} as in {seeded.shown.run.label}"
    if same is not None:
        yield from _other_settings(mine, same)


def _other_metrics(mine: _Measurement, earlier: Sequence[_Measurement]) -> Iterator[str]:
    """Metrics that the first row with them measured otherwise."""
    for name, protocol in mine.protocols.items():
        weights = _weights(mine, name)
        other = next((one for one in earlier if _weights(one, name) is not None), None)
        if weights is None or other is None:
            continue
        if other.protocols[name] != protocol:
            theirs = f"{other.shown.run.label}: {other.protocols[name]}"
            yield f"{mine.displays[name]} by another protocol: {protocol}; {theirs}"
        elif weights != _weights(other, name):
            yield f"{mine.displays[name]} with other weights of the metric than {other.shown.run.label}"


def _weights(measurement: _Measurement, metric: str) -> dict[str, str] | None:
    """The weight files of a metric, by name with their hashes; None if it has no value."""
    rows = measurement.scores.get(metric, {}).values()
    protocol = measurement.protocols.get(metric)
    found = [row.weights for row in rows if row.value is not None and row.protocol == protocol]
    return found[-1] if found else None


def _other_settings(mine: _Measurement, same: _Measurement) -> Iterator[str]:
    """Weights and settings of a method that an earlier row of the same name has otherwise."""
    if mine.shown.restoration is None or same.shown.restoration is None:
        return
    before, now = ({**one.identity(), "seed": None} for one in (same.shown.restoration, mine.shown.restoration))
    found = differences(before, now, words=(same.shown.run.label, mine.shown.run.label))
    if mine.dtypes != same.dtypes:
        found.append(f"computed in {mine.dtypes}, not {same.dtypes}")
    yield from found[:MOST]
    if len(found) > MOST:
        yield f"and {len(found) - MOST} settings more"


def _is_copy(mine: _Measurement, same: _Measurement) -> bool:
    """Whether two records are one: the same images in the same seconds, which no second measurement takes."""
    timed = [row.seconds for row in mine.images.values() if row.seconds is not None]
    return bool(timed) and mine.images == same.images


def _note(mine: _Measurement, earlier: Sequence[_Measurement]) -> str:
    """How far a method that was measured before came out the same; empty if it was not."""
    same = next((other for other in earlier if other.shown.name == mine.shown.name), None)
    if same is None or _is_copy(mine, same):
        return ""
    both = mine.names & same.names
    equal = sum(mine.images[name].sr_sha256 == same.images[name].sr_sha256 for name in both)
    return f"also in {same.shown.run.label}: {equal} of {len(both)} images have the same bytes" if both else ""


def _verified(measurement: _Measurement) -> Verified:
    """What the newest re-scoring says of the values as they are recorded now."""
    images = measurement.images
    found: dict[str, Rescored] = {}
    stale: list[str] = []
    values: list[str] = []
    rescorings = measurement.handle.rescorings()
    for name, protocol in measurement.protocols.items():
        rows = measurement.scores[name]
        valid: Mapping[str, ScoreRow] = valid_scores(rows, images, protocol)
        if WHOLE_SET in rows:
            restored = [image for image, row in images.items() if row.error is None]
            whole = valid_set_score(rows, images, restored, protocol)
            valid = {WHOLE_SET: whole} if whole is not None else {}
        if not valid:
            continue
        values.append(name)
        row = rescorings.get(name)
        if row is None:
            continue
        if (row.protocol, row.values_sha256) == (protocol, values_sha256(valid)):
            found[name] = row
        else:
            stale.append(name)
    wrong = [name for name, row in found.items() if not row.agrees]
    whole = [name for name, row in found.items() if row.agrees and row.n == row.total]
    displays = measurement.displays
    if wrong:
        return Verified(f"✗ {', '.join(displays[name] for name in wrong)}", _words(found, displays), True)
    if whole:
        count = "all" if len(whole) == len(values) else f"{len(whole)} of {len(values)}"
        return Verified(f"✓ {count} metric{'' if len(values) == 1 else 's'}", _words(found, displays))
    if found:
        return Verified("in part", _words(found, displays))
    return Verified("", "the values changed since they were re-scored" if stale else "")


def _words(found: Mapping[str, Rescored], displays: Mapping[str, str]) -> str:
    """Who scored again, when, on what, and how far the values moved."""
    parts = [
        f"{displays[name]}: {row.n} of {row.total}, at most {row.largest:.1e} apart (allowed {row.allowed:g})"
        for name, row in found.items()
    ]
    places = dict.fromkeys(
        f"{row.date}, by {row.by or 'nobody named'}, on {_machine(row.environment)}, "
        f"bench {row.environment.get('bench')}, "
        + ", ".join(f"{name} {row.versions[name]}" for name in ("pyiqa", "torch") if name in row.versions)
        for row in found.values()
    )
    return f"Scored again {'; '.join(places)}. {'; '.join(parts)}"


def _machine(environment: Mapping[str, Any]) -> str:
    return machine_name(environment) or "a machine that is not recorded"


def _marked(rows: Sequence[BoardRow], header: HeaderCell, found: Set) -> list[BoardRow]:
    """The rows with the ranks of one column, among those that stand together."""
    at = next((index for index, metric in enumerate(found.metrics) if metric.name == header.name), None)
    if at is None:
        return list(rows)
    values: dict[int, list[float]] = {}
    for index, row in enumerate(rows):
        cell = row.cells.get(header.name)
        if row.apart or cell is None or not cell.enough:
            continue
        known = [value for value in found.methods[row.method].values[at] if value is not None]
        if len(known) == cell.n:
            values[index] = known
    if len({len(of) for of in values.values()}) != 1:
        return list(rows)
    marked = list(rows)
    for index, (rank, tied) in ranked(values, header.higher_is_better).items():
        row = marked[index]
        cells = {**row.cells, header.name: replace(row.cells[header.name], rank=rank, tied=tied)}
        marked[index] = replace(row, cells=cells)
    return marked


FACTS = ("by", "machine", "published", "harness")


def to_csv(boards: Sequence[Board]) -> str:
    """All leaderboards as CSV: a line for each row, values with full precision and their intervals."""
    metrics = dict.fromkeys(column.name for board in boards for column in board.columns)
    lines: list[dict[str, object]] = []
    for board in boards:
        for row in board.rows:
            line: dict[str, object] = {"testset": board.heading, "method": row.display, "run": row.run}
            line |= {fact: getattr(row, fact) for fact in FACTS}
            line |= {"rescored": row.verified.text, "measured_otherwise": "; ".join(row.apart)}
            for name in metrics:
                cell = row.cells.get(name, Cell(None, 0))
                line |= {name: cell.value, f"{name}_ci95_low": cell.low, f"{name}_ci95_high": cell.high}
            lines.append(line)
    return csv_text(lines)
