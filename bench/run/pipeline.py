"""The stages of a run in order, over one output folder. Every stage reads what the previous one wrote.

`measure` is `bench run` for Python code.

Missing files are found before anything heavy is imported. A method that cannot run leaves out its row, never the table.
A missing test set or metric leaves out cells with `allow_missing`, and otherwise ends the run.
"""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bench.device import resolve_device
from bench.options import RunOptions
from bench.paper.tables import get_profile
from bench.ranks import ALONE, Rank, check_shared, from_first
from bench.records.records import Records
from bench.records.schema import Plan, PlanSet
from bench.run.agreement import check_same_images, merge_missing
from bench.run.plan import Choice, choose, make_plan
from bench.run.request import Request
from bench.store.missing import brief, describe
from tsd.console.progress import Progress
from tsd.errors import UserError, nearest, some
from tsd.files import require_room, require_writable

if TYPE_CHECKING:
    import pandas

    from bench.run.report import StageReport
    from bench.testsets.manifest import TestSet


@dataclass(frozen=True)
class Measurement:
    """What a run measured.

    Attributes:
        records: the per-image records that every number comes from.
        plan: the table's test sets, rows and columns.
        timing: whether the table has the column of seconds per image.
        markdown: the table for people.
        paths: the files of the table and its pictures.
        failed: one line for each method or metric that failed on some image.
    """

    records: Records
    plan: Plan
    timing: bool
    markdown: str
    paths: tuple[Path, ...]
    failed: tuple[str, ...]

    @property
    def frame(self) -> "pandas.DataFrame":
        """The table from the records: a row for each test set and method, with unrounded means.

        Its columns are testset, method, display, steps, and one for each metric, NaN where it was not measured.
        """
        import pandas

        from bench.report.summarize import summarize

        table = summarize(self.records, self.plan, timing=self.timing)
        rows = [
            {"testset": section.testset, "method": row.method, "display": row.display, "steps": row.steps}
            | {column.name: row.cells[column.name].value for column in table.columns}
            for section in table.sections
            for row in section.rows
        ]
        return pandas.DataFrame(rows).astype({column.name: float for column in table.columns} | {"steps": "Int64"})


def measure(request: Request, rank: Rank = ALONE) -> Measurement:
    """Restores, scores and renders what `request` asks for. What is already recorded is not done again.

    Progress and what is left out are printed to stderr. The same call continues an interrupted one.

    Args:
        rank: the rank of this process. All processes of a shared run call this and get the same result.

    Raises:
        UserError: an unknown name, something missing that is required, or records of other settings.
    """
    stages = Stages.of(request, rank)
    with stages.hold():
        stages.begin()
        stages.announce()
        stages.restore()
        stages.score()
    markdown, paths = from_first(rank, stages.render)
    return Measurement(stages.records, stages.plan, request.timing, markdown, paths, tuple(stages.failed))


class Stages:
    """One run: its rows, columns and test sets, and the folder of its records."""

    def __init__(
        self,
        request: Request,
        choice: Choice,
        testsets: list["TestSet"],
        plan: Plan,
        records: Records,
        options: RunOptions,
        redo: list[str],
        rank: Rank,
    ) -> None:
        self.request = request
        self.choice = choice
        self.testsets = testsets
        self.plan = plan
        self.records = records
        self.options = options
        self.redo = redo
        self.rank = rank
        self.failed: list[str] = []
        self.restored: dict[tuple[str, str], StageReport] = {}

    @classmethod
    def of(cls, request: Request, rank: Rank = ALONE, *, scoring: bool = True) -> "Stages":
        """Checks everything that can be checked early; loads and verifies the test sets.

        Every process of a shared run calls it and gets the same stages.

        Args:
            scoring: False if only images are wanted; then missing metrics do not matter.

        Raises:
            UserError: an unknown name, something required is missing, or a test set differs from its manifest.
        """
        table, profile = get_profile(request.table, request.profile, newer=request.newer)
        options = RunOptions(
            device=resolve_device(request.device, rank),
            dtype=request.dtype,
            data_root=request.data_root,
            weights_root=request.weights_root,
            repo_dir=request.repo_dir,
            cache_root=request.cache_root,
            time_limit_seconds=request.time_limit_seconds,
            seed=request.seed,
        )
        options.require_dtype()
        require_writable(request.folder())
        choice = choose(
            table,
            request.profile,
            options,
            testsets=request.testsets,
            methods=request.methods,
            metrics=request.metrics,
        )
        choice = merge_missing(choice, rank)
        if not scoring:
            choice = replace(choice, missing_metrics={})
        allow = profile.allow_missing if request.allow_missing is None else request.allow_missing
        strict = request.allow_missing is False  # an explicit False requires the methods too
        choice = _without_absent_sets(choice, allow, strict=strict, sets_named=request.testsets is not None)
        if rank.first:
            for name in choice.missing_sets.keys() - set(choice.testsets):
                _log(f"left out: {describe(choice.missing_sets[name])}")
        _check_paths_exist(choice, request.methods or ())
        redo = [_redo_name(choice, name) for name in request.redo]

        from bench.testsets.manifest import load_testset

        testsets = [load_testset(name, request.data_root, request.limit) for name in choice.testsets]
        check_same_images(testsets, rank)
        _check_images_exist(request.images or (), testsets)
        from_first(rank, lambda: _check_outputs_fit(request.methods or (), testsets, options))
        records = Records(request.folder(), rank.index)
        from_first(rank, lambda: _check_any_method_runs(choice, records))
        from_first(rank, lambda: _check_room(choice, testsets, records))
        sets = [
            PlanSet(testset.name, testset.display, [image.name for image in testset.images], testset.total)
            for testset in testsets
        ]
        plan = from_first(
            rank,
            lambda: make_plan(
                choice, sets, seed=request.seed, reference=profile.reference, old=records.read_plan(table.name)
            ),
        )
        if request.reference:
            plan = plan.referring_to(request.reference)
        return cls(request, choice, testsets, plan, records, options, redo, rank)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Locks the output folder for this run and checks that all its processes see the same folder.

        Raises:
            UserError: another run holds the lock, or the processes do not see the same folder.
        """
        with self.records.lock():
            check_shared(self.rank, self.records.out / "images")
            yield

    def begin(self) -> None:
        """Records what the table consists of, so that it can be rendered whatever happens next."""
        if self.rank.first:
            self.records.write_plan(self.plan)

    def announce(self) -> None:
        """Prints a line for each method that cannot run here: the reason, and the test sets if not all of them."""
        for row in self.choice.rows if self.rank.first else ():
            reasons = {testset: lines for testset, lines in self.choice.reasons_missing(row).items() if lines}
            if reasons:
                where = "" if len(reasons) == len(self.testsets) else f" on {', '.join(reasons)}"
                items = [item for name in reasons for item in self.choice.missing_methods.get((name, row.name), [])]
                lines = dict.fromkeys(line for group in reasons.values() for line in group)
                _log(f"left out{where}: {'; '.join(brief(items) or lines)}")

    def restore(self) -> None:
        """Stage 1 for every row that can run here: one method after another, in the order of the table."""
        from bench.run.restore import check_recorded, restore_set

        order = [method.name for method in self.plan.methods]
        jobs = [
            (testset, row.spec)
            for row in sorted(self.choice.rows, key=lambda row: order.index(row.name))
            for testset in self.testsets
            if row.spec is not None and (testset.name, row.name) not in self.choice.missing_methods
        ]
        for testset, spec in jobs:  # now, not after the hours that earlier rows take
            if spec.name not in self.redo:
                from_first(
                    self.rank,
                    lambda testset=testset, spec=spec: check_recorded(self.records, testset, spec, self.options),
                )
        for testset, spec in _stage("restore", jobs, lambda job: f"{job[1].name} on {job[0].name}"):
            report = restore_set(
                self.records,
                testset,
                spec,
                self.options,
                redo=spec.name in self.redo,
                rank=self.rank,
                log=_log,
            )
            self.restored[testset.name, spec.name] = report
            self._note(f"{spec.name} on {testset.name}", report)

    def score(self) -> None:
        """Stage 2 for every column that can be computed here."""
        from bench.run.score import score_set

        jobs = [
            (testset, spec)
            for testset in self.testsets
            for spec in self.choice.metrics
            if spec.name not in self.choice.missing_metrics
            and (not spec.needs_reference or all(image.hr is not None for image in testset.images))
        ]
        for testset, spec in _stage("score", jobs, lambda job: f"{job[1].name} on {job[0].name}"):
            methods = from_first(
                self.rank,
                lambda testset=testset: [row.name for row in self.choice.rows if self._on_disk(testset, row.name)],
            )
            reports = score_set(self.records, testset, methods, spec, self.options.device, rank=self.rank, log=_log)
            for method, report in reports.items():
                self._note(f"{spec.name} of {method} on {testset.name}", report)

    def render(self) -> tuple[str, tuple[Path, ...]]:
        """Stages 3 and 4: writes the table and its picture; returns the Markdown and the files written."""
        from bench.report.render import ENDINGS, stale, write_table

        markdown = write_table(self.records, self.plan, timing=self.request.timing)
        written = [self.records.out / f"{self.plan.table}.{ending}" for ending in ENDINGS]
        from bench.report.figures import draw_figure

        for testset in Progress(self._pictured(), desc="figure", delay=1, leave=False):
            first = testset.name == self.plan.testsets[0].name
            name = self.plan.table if first else f"{self.plan.table}-{testset.name}"
            path = self.records.out / f"{name}.png"
            if draw_figure(self.records, self.plan, testset, path, self.request.images):
                written.append(path)
        _log(f"written: {', '.join(str(path) for path in written)}")
        for plan in self.records.plans():  # other tables of this folder have rows of the same records
            if plan.table == self.plan.table:
                continue
            command = f"bench table --table {plan.table} --out {shlex.quote(str(self.records.out))}"
            try:
                if stale(self.records, plan):
                    _log(f"{plan.table} there is not what its records give now: `{command}` renders it anew")
            except UserError as error:  # another table's trouble does not end this run
                _log(f"{plan.table} there cannot be checked against its records: {error}")
        return markdown, tuple(written)

    def _pictured(self) -> list["TestSet"]:
        """The test sets with a picture: where images are named, those that have some of them."""
        from bench.testsets.manifest import is_shipped

        if self.request.images:
            return [s for s in self.testsets if any(image.name in self.request.images for image in s.images)]
        if self.request.figure is not None:
            return self.testsets if self.request.figure else []
        shipped = [testset for testset in self.testsets if is_shipped(testset.name)]
        withheld = [testset.display for testset in self.testsets if testset not in shipped]
        if withheld:
            _log(
                f"no picture of {', '.join(withheld)}, whose images may not be handed on: --figure or --images draws it"
            )
        return shipped

    def report(self) -> list[str]:
        """One line per row: how many images were restored, were there already, and failed."""
        return [
            f"{method} on {testset}: {report.made} restored, {report.kept} there already, {len(report.failed)} failed"
            for (testset, method), report in self.restored.items()
        ]

    def _note(self, what: str, report: "StageReport") -> None:
        if report.failed:
            name, reason = next(iter(report.failed.items()))
            self.failed.append(f"{what}: {len(report.failed)} images, first {name}: {reason}")

    def _on_disk(self, testset: "TestSet", method: str) -> bool:
        """Whether all recorded images of the method are on disk as recorded."""
        report = self.restored.get((testset.name, method))
        if report is not None and not report.failed:
            return True
        method_records = self.records.of(testset.name, method)
        rows = method_records.images()
        made = [rows[image.name] for image in testset.images if image.name in rows and rows[image.name].error is None]
        return bool(made) and all(method_records.has(row) for row in made)


def _without_absent_sets(choice: Choice, allow_missing: bool, *, strict: bool, sets_named: bool) -> Choice:
    """`choice` without the absent test sets, if leaving them out is allowed.

    Args:
        strict: whether methods are required as well.
        sets_named: whether the request names the test sets.

    Raises:
        UserError: something required is missing; lists every file with its source, size, licence and place.
    """
    missing = choice.missing(methods=strict)
    if missing and not allow_missing:
        others = "\n".join(brief(item for item in choice.missing() if item not in missing))
        dashes = (
            f"These keep a method from running, which costs its row alone (`bench list METHOD` says more):\n{others}\n"
            if others
            else ""
        )
        raise UserError(
            f"{choice.table.name} in the profile {choice.profile} needs what is not on this machine:\n"
            f"{describe(missing)}\n{dashes}"
            "Nothing is downloaded unasked: `bench fetch NAME` gets what says so. --allow-missing measures what can be "
            "measured here."
        )
    absent = list(choice.missing_sets)
    if absent and (sets_named or len(absent) == len(choice.testsets)):
        listed = describe(item for items in choice.missing_sets.values() for item in items)
        raise UserError(f"test sets that are not on this machine:\n{listed}")
    return replace(choice, testsets=tuple(name for name in choice.testsets if name not in absent))


def _check_paths_exist(choice: Choice, methods: Sequence[str]) -> None:
    """Checks that the paths among `methods` exist: a wrong path is a mistake of the user, not a missing download.

    Cards are not checked here, since they have been read by now.

    Raises:
        UserError: a path does not exist; the message names it.
    """
    from bench.methods import get_method

    for name in methods:
        form = name.partition(":")[0].rpartition("=")[2]
        if ":" in name and form != "card":
            found = get_method(name).name
            missing = [choice.missing_methods.get((testset, found), []) for testset in choice.testsets]
            if all(missing):  # a folder may be there for some test sets and not for others
                raise UserError(f"--methods {name}: not there: {describe(missing[0])}")


def _check_images_exist(names: Sequence[str], testsets: Sequence["TestSet"]) -> None:
    """Raises UserError for an image that none of the test sets has."""
    known = [image.name for testset in testsets for image in testset.images]
    for name in names:
        if name not in known:
            near = nearest(name, known)
            hint = f" Did you mean {near!r}?" if near else ""
            raise UserError(f"--images {name}: no image is called so.{hint} There are {some(known, 8)}")


def _check_outputs_fit(methods: Sequence[str], testsets: Sequence["TestSet"], options: RunOptions) -> None:
    """Checks the user's own finished images by name and size, before other rows take their hours.

    Raises:
        UserError: they do not fit a test set.
    """
    from bench.methods import FolderMethod, get_method

    for name in methods:
        if name.partition(":")[0].rpartition("=")[2] == "folder":
            for testset in testsets:
                method = get_method(name).load(replace(options, testset=testset.name))
                assert isinstance(method, FolderMethod)
                method.outputs(testset)


def _check_any_method_runs(choice: Choice, records: Records) -> None:
    """Checks that some method can run or has run before; otherwise the table would hold dashes only.

    Raises:
        UserError: none can; the message lists what keeps each method from running.
    """
    reasons = {row.name: choice.reasons_missing(row) for row in choice.rows}
    if any(
        not lines or records.of(testset, method).run()
        for method, groups in reasons.items()
        for testset, lines in groups.items()
    ):
        return
    listed = dict.fromkeys(line for groups in reasons.values() for lines in groups.values() for line in lines)
    raise UserError("nothing to measure, none of the methods can run here:\n" + "\n".join(listed))


def _check_room(choice: Choice, testsets: Sequence["TestSet"], records: Records) -> None:
    """Checks that the disk can hold the images of the methods that have none yet, which are about as large as the
    ground truth's; half of that cannot be enough.

    Raises:
        UserError: it cannot.
    """
    needed = 0
    for testset in testsets:
        largest = sum(image.hr.stat().st_size for image in testset.images if image.hr is not None)
        able = [row for row in choice.rows if not choice.reasons_missing(row)[testset.name]]
        needed += largest // 2 * sum(records.of(testset.name, row.name).run() is None for row in able)
    require_room(records.out, needed, "choose another --out, or fewer --methods")


def _redo_name(choice: Choice, name: str) -> str:
    """The name of the row that `--redo NAME` means; NAME is written as in --methods or as in the table."""
    from bench.methods import get_method

    rows = {row.name for row in choice.rows}
    found = name if name in rows else get_method(name).name
    if found not in rows:
        raise UserError(f"--redo {name}: not among the rows of this run ({', '.join(sorted(rows))})")
    return found


JobT = TypeVar("JobT")


def _stage(name: str, jobs: list[JobT], label: Callable[[JobT], str]) -> Iterator[JobT]:
    """Yields the jobs and shows a progress bar that names the current one."""
    with Progress(jobs, desc=name, unit="job") as bar:
        for job in bar:
            bar.set_postfix_str(label(job))
            yield job


def _log(line: str) -> None:
    Progress.write(line, file=sys.stderr)
