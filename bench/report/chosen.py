"""Methods and images chosen from a run, for people to look at: every file is the recorded one, all of one size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.records.records import MethodRecords, Records
from bench.records.schema import ImageRow, PlanMethod, PlanMetric, PlanSet
from bench.report.measured import Measured
from bench.testsets.manifest import TestImage, load_testset
from tsd.console.progress import Progress
from tsd.errors import UserError, some
from tsd.images import picture_size

MOST_FAULTS = 20


@dataclass(frozen=True)
class Chosen:
    """Methods of a run on one test set, whose `names` are all its images, with the metrics of single images."""

    records: Records
    testset: PlanSet
    methods: list[PlanMethod]
    metrics: list[PlanMetric]

    def handles(self) -> list[MethodRecords]:
        return [self.records.of(self.testset.name, method.name) for method in self.methods]

    def values(self, names: Sequence[str]) -> list[list[list[float | None]]]:
        """[metric][method][image]: values that count, None where there is none."""
        part = PlanSet(self.testset.name, self.testset.display, list(names), self.testset.total)
        measured = [Measured(self.records, part, method, self.metrics) for method in self.methods]
        return [
            [[found.get(name) for name in names] for found in (of_method.values(metric) for of_method in measured)]
            for metric in self.metrics
        ]


def choose_methods(run: Path, methods: Sequence[str] = (), testset: str | None = None) -> Chosen:
    """Finds methods in the plans of a run.

    Args:
        methods: names as in the records; empty for all whose images are on this machine.
        testset: its name; None if the run has only one.

    Raises:
        UserError: no records, a name twice, or a method or test set that the run does not have.
    """
    records = Records(run)
    plans = records.plans()
    if not plans:
        raise UserError(f"no records in {run}; expected the --out folder of a `bench run`")
    repeated = sorted({name for name in methods if methods.count(name) > 1})
    if repeated:
        raise UserError(f"--methods names {some(repeated)} twice")
    sets = {part.name: part for plan in plans for part in plan.testsets}
    if testset is None and len(sets) > 1:
        raise UserError(f"the run has several test sets: --testset {' or '.join(sets)}")
    name = testset or next(iter(sets))
    if name not in sets:
        raise UserError(f"--testset {name}: the run has {', '.join(sets)}")
    known: dict[str, PlanMethod] = {}
    metrics: dict[str, PlanMetric] = {}
    names: set[str] = set()
    for plan in plans:
        for part in plan.testsets:
            if part.name == name:
                names |= set(part.names)
                known |= {method.name: method for method in plan.methods if method.name not in known}
                metrics |= {m.name: m for m in plan.metrics if m.level == "image" and m.name not in metrics}
    absent = [method for method in methods if method not in known]
    if absent:
        raise UserError(f"--methods: the run has no {some(absent)} on {name}; it has {', '.join(known)}")
    handles = {method: records.of(name, method) for method in known}
    restored = [method for method, handle in handles.items() if handle.images()]
    here = [method for method in restored if any(handles[method].image_path(image).exists() for image in names)]
    wanted = methods or here or restored
    whole = PlanSet(name, sets[name].display, sorted(names), sets[name].total)
    return Chosen(records, whole, [known[method] for method in wanted], list(metrics.values()))


def checked_rows(chosen: Chosen, names: Sequence[str]) -> dict[str, list[ImageRow]]:
    """The rows of all methods for each image, whose files are the recorded ones and of one size.

    Raises:
        UserError: lists every fault, not only the first.
    """
    handles = chosen.handles()
    recorded = [handle.images() for handle in handles]
    if not any(handle.image_path(name).exists() for handle in handles for name in names):
        raise UserError(
            f"{chosen.records.out} holds no images, only records: `bench run` with the same arguments makes them again"
        )
    faults: list[str] = []
    checked: dict[str, list[ImageRow]] = {}
    for name in Progress(names, "check the images", unit="image", delay=1, leave=False):
        rows: list[ImageRow] = []
        for method, handle, by_name in zip(chosen.methods, handles, recorded, strict=True):
            row = by_name.get(name)
            if row is None or row.error is not None:
                faults.append(f"{name}: not restored by {method.name}")
            elif not handle.image_path(name).exists():
                faults.append(f"{name}: the image of {method.name} is not on this machine")
            elif not handle.has(row):
                faults.append(f"{name}: the image of {method.name} is not the recorded file (another hash)")
            else:
                rows.append(row)
        sizes = sorted({f"{row.width}x{row.height}" for row in rows})
        if len(sizes) > 1:
            faults.append(f"{name}: the methods made images of different sizes ({', '.join(sizes)})")
        if len({(row.lr_sha256, row.hr_sha256) for row in rows}) > 1:
            faults.append(f"{name}: the methods were given different inputs")
        checked[name] = rows
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        lines = "\n  ".join(faults[:MOST_FAULTS])
        raise UserError(
            f"{count} in the images of {chosen.records.out}; `bench run` makes missing images again:\n  {lines}"
        )
    return checked


def references_of(
    chosen: Chosen, rows: Mapping[str, Sequence[ImageRow]], data_root: Path | None
) -> dict[str, TestImage]:
    """Input and ground truth of each image, which must be those that the methods were given.

    Raises:
        MissingData: the test set is not on this machine.
        UserError: other files than those of the run, or a ground truth of another size than the outputs.
    """
    testset = load_testset(chosen.testset.name, data_root)
    found = {image.name: image for image in testset.images if image.name in rows}
    given = {name: (of_image[0].lr_sha256, of_image[0].hr_sha256) for name, of_image in rows.items()}
    here = {name: (image.lr_sha256, image.hr_sha256) for name, image in found.items()}
    other = [name for name in rows if given[name] != here.get(name)]
    if other:
        raise UserError(f"the methods were given other files than those of {testset.display} here: {some(other)}")
    for name, of_image in rows.items():
        hr, size = found[name].hr, (of_image[0].width, of_image[0].height)
        if hr is not None and picture_size(hr) != size:
            raise UserError(f"{name}: the ground truth is of another size than the outputs ({size[0]}x{size[1]})")
    return found
