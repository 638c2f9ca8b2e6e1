"""Gathers what a site shows from the folders of runs: tables, values per image, paired differences, and image files.

Everything is addressed by its place in a list (test set 0, method 3, image 17), never by a name: names of images are
whatever their files were called, and no name becomes a path, a key or a piece of markup.

A value counts by the rule of the tables (`bench.records.schema.valid_scores`). An image is shown only if its file is
the recorded one, byte for byte.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from bench.paper.tables import pairs_of, paper_figures
from bench.records.records import Records
from bench.records.schema import Plan, PlanMetric, PlanSet, Restoration
from bench.report.measured import Measured
from bench.report.summarize import Table, mean_ci95, summarize
from bench.testsets.manifest import MissingData, TestSet, load_testset
from tsd.errors import UserError


@dataclass(frozen=True)
class Run:
    """One folder of results. `label` is its name on the page, different for each run of the site."""

    records: Records
    label: str
    plans: tuple[Plan, ...]

    @property
    def folder(self) -> str:
        """The name of the run's folder in the site, different for each run too."""
        return self.label.replace("/", "--")


@dataclass
class Shown:
    """A method on a test set: what is known of each image of the set, in the order of `Set.names`.

    Attributes:
        files: the file of each image, if it is on this machine and the recorded one; `faults` counts the others.
        values: by metric (as in `Set.metrics`), the value of each image; None where there is none that counts.
        seconds: wall seconds of `restore` for each image.
    """

    run: Run
    name: str
    display: str
    steps: int | None
    restoration: Restoration | None = None
    files: list[Path | None] = field(default_factory=list[Path | None])
    sizes: list[tuple[int, int] | None] = field(default_factory=list[tuple[int, int] | None])
    faults: dict[str, int] = field(default_factory=dict[str, int])
    values: list[list[float | None]] = field(default_factory=list[list[float | None]])
    seconds: list[float | None] = field(default_factory=list[float | None])


@dataclass
class Set:
    """A test set with all methods of all runs on it.

    Attributes:
        testset: the verified images of input and ground truth; None if they are not on this machine.
        note: why input and ground truth are not shown; empty if they are.
    """

    name: str
    display: str
    names: list[str]
    metrics: list[PlanMetric]
    methods: list[Shown]
    testset: TestSet | None = None
    note: str = ""
    inputs: list[Path | None] = field(default_factory=list[Path | None])
    truths: list[Path | None] = field(default_factory=list[Path | None])

    def pair(self, metric: int, method: int, other: int) -> tuple[float, float | None, float | None, int] | None:
        """The mean of the differences `method` - `other`, image by image, its 95 % interval, and their number.

        None unless both have values for the same images, at least one.
        """
        mine, theirs = self.methods[method].values[metric], self.methods[other].values[metric]
        both = [(value, against) for value, against in zip(mine, theirs, strict=True) if None not in (value, against)]
        if not both or any((a is None) != (b is None) for a, b in zip(mine, theirs, strict=True)):
            return None
        mean, low, high = mean_ci95([a - b for a, b in both])  # type: ignore[operator]
        return mean, low, high, len(both)


@dataclass(frozen=True)
class SiteTable:
    """A table of one run, as data, with the paper's rows."""

    run: Run
    table: Table
    paper: list[dict[str, str]]


@dataclass(frozen=True)
class Collection:
    """All that a site shows."""

    runs: tuple[Run, ...]
    tables: tuple[SiteTable, ...]
    sets: tuple[Set, ...]


def collect(
    folders: Sequence[Path],
    data_root: Path | None = None,
    images: bool = True,
    labels: Mapping[Path, str] = MappingProxyType({}),
) -> Collection:
    """Reads the runs in `folders`.

    Args:
        images: False leaves out all image files, which need not be read then.
        labels: what a run is called, for folders whose own name says nothing.

    Raises:
        UserError: a folder without records, or twice the same folder.
    """
    runs = _runs(folders, labels)
    tables = [_table(run, plan) for run in runs for plan in run.plans]
    names = dict.fromkeys(testset.name for run in runs for plan in run.plans for testset in plan.testsets)
    sets = [_collect_set(name, runs, data_root, images) for name in names]
    return Collection(tuple(runs), tuple(tables), tuple(sets))


def _table(run: Run, plan: Plan) -> SiteTable:
    """A table of a run.

    Raises:
        UserError: its records lack what tables are made of, which other programs may have written.
    """
    try:
        table = summarize(run.records, plan, pairs=pairs_of(plan.table, plan.profile))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{run.label}: its records do not make the table {plan.table} ({error!r})") from error
    return SiteTable(run, table, paper_figures(plan.paper) if plan.paper else [])


def _runs(folders: Sequence[Path], labels: Mapping[Path, str]) -> list[Run]:
    found: list[Run] = []
    resolved = [Path(folder).resolve() for folder in folders]
    for folder, place in zip(folders, resolved, strict=True):
        records = Records(folder)
        plans = records.plans()
        if not plans:
            raise UserError(f"no records in {folder}; expected the --out folder of a `bench run`")
        if resolved.count(place) > 1:
            raise UserError(f"{folder} is named twice")
        name = labels.get(folder, place.name)
        run, number = Run(records, name, tuple(plans)), 1
        while run.folder in [other.folder for other in found]:
            number += 1
            run = replace(run, label=f"{name} ({number})")
        found.append(run)
    return found


def _collect_set(name: str, runs: Sequence[Run], data_root: Path | None, images: bool) -> Set:
    plans = [
        (run, plan, testset) for run in runs for plan in run.plans for testset in plan.testsets if testset.name == name
    ]
    metrics: dict[tuple[str, str], PlanMetric] = {}
    for _, plan, _ in plans:
        for metric in plan.metrics:
            if metric.level == "image":
                metrics.setdefault((metric.name, metric.protocol), metric)
    names = sorted(dict.fromkeys(image for _, _, testset in plans for image in testset.names))
    found = Set(name, plans[0][2].display, names, list(metrics.values()), [])
    several = len({run.label for run, _, _ in plans}) > 1
    seen: set[tuple[str, str]] = set()
    for run, plan, testset in plans:
        for method in plan.methods:
            if (run.label, method.name) in seen:
                continue
            seen.add((run.label, method.name))
            whole = PlanSet(name, testset.display, names, testset.total)
            measured = Measured(run.records, whole, method, found.metrics)
            if measured.images:
                display = f"{method.display} · {run.label}" if several else method.display
                shown = Shown(run, method.name, display, method.steps)
                _fill(shown, found, measured, images)
                found.methods.append(shown)
    measured_metrics = [
        index
        for index in range(len(found.metrics))
        if any(value is not None for shown in found.methods for value in shown.values[index])
    ]
    found.metrics = [found.metrics[index] for index in measured_metrics]
    for shown in found.methods:
        shown.values = [shown.values[index] for index in measured_metrics]
    _add_references(found, data_root, images)
    return found


def _fill(shown: Shown, found: Set, measured: Measured, images: bool) -> None:
    handle = shown.run.records.of(found.name, shown.name)
    shown.restoration = handle.run()
    rows = [measured.images.get(name) for name in found.names]
    shown.seconds = [row.seconds if row is not None else None for row in rows]
    shown.sizes = [(row.width, row.height) if row and row.width and row.height else None for row in rows]
    for metric in found.metrics:
        values = measured.values(metric)
        shown.values.append([values.get(name) for name in found.names])
    for row in rows:
        path = None
        if row is not None and row.error is not None:
            _count(shown.faults, "not restored")
        elif row is not None and images:
            path = handle.image_path(row.name)
            if not path.exists():
                path = _count(shown.faults, "not on this machine")
            elif not handle.has(row):
                path = _count(shown.faults, "not the recorded file (another hash)")
        shown.files.append(path)


def _count(faults: dict[str, int], fault: str) -> None:
    faults[fault] = faults.get(fault, 0) + 1


def _add_references(found: Set, data_root: Path | None, images: bool) -> None:
    """Finds inputs and ground truths, whose files must be those that the methods were given."""
    found.inputs = found.truths = [None] * len(found.names)
    if not images:
        return
    try:
        found.testset = load_testset(found.name, data_root)
    except MissingData:
        found.note = f"Input and ground truth are not shown: {found.display} is not on this machine (--data-root DIR)."
        return
    except UserError as error:
        found.note = f"Input and ground truth are not shown: {error}"
        return
    used: dict[str, set[tuple[str, str | None]]] = {}
    for shown in found.methods:
        for name, row in shown.run.records.of(found.name, shown.name).images().items():
            used.setdefault(name, set()).add((row.lr_sha256, row.hr_sha256))
    by_name = {image.name: image for image in found.testset.images}
    inputs: list[Path | None] = []
    truths: list[Path | None] = []
    for name in found.names:
        image = by_name.get(name)
        same = image is not None and used.get(name, set()) <= {(image.lr_sha256, image.hr_sha256)}
        inputs.append(image.lr if image is not None and same else None)
        truths.append(image.hr if image is not None and same else None)
    found.inputs, found.truths = inputs, truths
    others = sum(path is None for path in inputs)
    if others:
        found.note = f"Input and ground truth of {others} images are not shown: the methods were given other files."
