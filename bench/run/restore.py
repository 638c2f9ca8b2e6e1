"""Stage 1: methods × test sets → images on disk and one row per image.

`bench.run.makers` knows how a method makes an image. If a method fails on an image, the row records the error and the
run continues. A recorded result whose image is gone (a fresh clone) stays until there is a new one, so that a machine
on which the method fails does not undo what was measured elsewhere.
"""

import hashlib
import json
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench import provenance
from bench.errors import one_line
from bench.methods.base import FolderMethod, FolderRunner, Method, MethodSpec
from bench.options import RunOptions
from bench.provenance import image_seed
from bench.ranks import ALONE, Rank, all_gather, from_first, wait_until_visible
from bench.records.records import MethodRecords, Records
from bench.records.schema import EXTERNAL, ImageRow, Restoration
from bench.run.identity import agreed_provenance, continue_or_refuse, refuse_stale
from bench.run.makers import Maker, Work, failing_work, work_of
from bench.run.report import StageReport, combined
from tsd.console.progress import Progress
from tsd.errors import UserError
from tsd.files import write_atomic

if TYPE_CHECKING:
    from bench.testsets.manifest import TestImage, TestSet


def restore_set(
    records: Records,
    testset: "TestSet",
    spec: MethodSpec,
    options: RunOptions,
    *,
    redo: bool = False,
    rank: Rank = ALONE,
    log: Callable[[str], None] = lambda line: None,
) -> StageReport:
    """Restores every image of `testset` that this method has not restored yet with this seed and input.

    Args:
        redo: move existing records of this method aside and begin again.
        rank: the rank of this process. All processes of the run call this; each restores its share, and all get the
            report over all shares.
        log: receives one line for each event that the user should know (absent images restored again, records moved
            aside).

    Raises:
        StaleRecords: there are images of other weights, settings or inputs, and `redo` is not set.
        UserError: the method is not the same in every process, or the processes do not see the same folder.
    """
    options = replace(options, testset=testset.name)
    method_records = records.of(testset.name, spec.name)
    try:
        method = spec.load(options)
        method_provenance = _provenance_of(method)
        work = work_of(method, testset, options, method_records.work_folder)
    except Exception as error:
        method_provenance, work = None, failing_work(f"could not be loaded: {one_line(error)}")
    method_provenance = agreed_provenance(all_gather(rank, method_provenance), spec.name)
    run, present, absent = from_first(
        rank, lambda: _begin(method_records, testset, method_provenance, options.seed, redo, log)
    )

    share = rank.share(testset.images)
    pending = [image for image in share if image.name not in present]
    report = StageReport(kept=len(share) - len(pending))
    if pending:
        key = None
        title = f"restore {testset.name} · {spec.name}"
        if not rank.first:
            log(rank.line(f"{title}: {len(pending)} images"))
        with (
            closing(work.makers(pending)) as makers,
            Progress(makers, desc=title, total=len(pending), unit="image", delay=1) as bar,
        ):
            for image, make in bar:
                if key is None:  # only now: a method's own process has no environment until it has started
                    key, run = _with_environment(run, work, options, rank)
                    method_records.write_run(run)
                seed = image_seed(options.seed, image.name) if work.seeded else None
                row = _restore_one(method_records, image, make, seed, key)
                if row.error is None:
                    report.made += 1
                else:
                    report.failed[image.name] = row.error
                if row.error is None or image.name not in absent:
                    method_records.add_image(row)
        if not rank.first:
            log(rank.line(f"{title}: {report.made} restored, {len(report.failed)} failed"))
    done = all_gather(rank, (report, method_records.images_bytes(rank.index)))
    report_of_all = combined([report for report, _ in done])
    if rank.first:
        sizes = [size for _, size in done]

        def arrived() -> bool:
            return _have_arrived(method_records, testset, sizes, report_of_all.failed)

        if rank.world > 1 and not wait_until_visible(arrived):
            raise UserError(f"rows or images that other processes wrote do not show up in {records.out}")
        method_records.finish([image.name for image in testset.images])
    return report_of_all


def check_recorded(records: Records, testset: "TestSet", spec: MethodSpec, options: RunOptions) -> None:
    """Raises StaleRecords if `restore_set` would. Restores nothing, and loads only methods that have records."""
    method_records = records.of(testset.name, spec.name)
    if method_records.run() is None:
        return
    try:
        method_provenance = _provenance_of(spec.load(replace(options, testset=testset.name)))
    except Exception:  # `restore_set` records the reason in the row
        return
    now = Restoration(spec.name, testset.name, testset.manifest_sha256, options.seed, method_provenance, {})
    refuse_stale(method_records, testset, now)


def _provenance_of(method: Method | FolderMethod | FolderRunner) -> dict[str, Any]:
    """The method's provenance as it will be read back from JSON."""
    return json.loads(json.dumps(method.provenance(), allow_nan=False))


def _begin(
    records: MethodRecords,
    testset: "TestSet",
    method_provenance: dict[str, Any] | None,
    seed: int,
    redo: bool,
    log: Callable[[str], None],
) -> tuple[Restoration, set[str], set[str]]:
    """Returns the new or continued run, and the names of the recorded images that are on disk and that are not.

    Only the first process calls it.
    """
    title = f"{records.method} on {records.testset}"
    if redo:
        if records.run():
            log(f"{title}: old records moved to {records.set_aside()}")
        records.clear_work()
    order = [image.name for image in testset.images]
    records.finish(order)  # what an interrupted run of several processes left
    run = Restoration(records.method, records.testset, testset.manifest_sha256, seed, method_provenance or {}, {})
    run = (records.run() or run) if method_provenance is None else continue_or_refuse(records, testset, run, log)
    rows = records.images()
    present = {name for name in order if name in rows and records.has(rows[name])}
    absent = {name for name in order if name in rows and rows[name].error is None and name not in present}
    if absent:
        log(f"{title}: {len(absent)} recorded images are not on disk as recorded, restored again")
    records.write_run(run)
    return run, present, absent


def _have_arrived(records: MethodRecords, testset: "TestSet", sizes: list[int], failed: Collection[str]) -> bool:
    """Whether this process sees all that the others wrote: `sizes` bytes of rows by rank, and the images."""
    if any(records.images_bytes(rank) != size for rank, size in enumerate(sizes)):
        return False
    rows, run = records.images(), records.run()
    known = run.environments if run else {}
    return all(
        row.environment in known and (row.name in failed or records.image_path(row.name).exists())
        for row in (rows[image.name] for image in testset.images)
    )


def _restore_one(
    records: MethodRecords, image: "TestImage", make: Maker, seed: int | None, environment: str
) -> ImageRow:
    row = ImageRow(
        name=image.name,
        seed=seed,
        lr_sha256=image.lr_sha256,
        hr_sha256=image.hr_sha256,
        sr_sha256=None,
        width=None,
        height=None,
        seconds=None,
        environment=environment,
        error="",
    )
    try:
        data, (width, height), seconds = make(image, seed)
    except Exception as error:
        return replace(row, error=one_line(error))
    write_atomic(records.image_path(image.name), data)
    digest = hashlib.sha256(data).hexdigest()
    return replace(row, sr_sha256=digest, width=width, height=height, seconds=seconds, error=None)


def _with_environment(run: Restoration, work: Work, options: RunOptions, rank: Rank) -> tuple[str, Restoration]:
    """The key of the current environment, which includes that of the method's own process, and `run` with it added."""
    content = provenance.environment(options.device, options.dtype)
    if rank.world > 1:  # "cuda:0" and "cuda:1" are one environment
        content["device"] = options.device.partition(":")[0]
    external = work.environment()
    if external is not None:
        content[EXTERNAL] = external
    key = provenance.environment_key(content)
    return key, replace(run, environments={**run.environments, key: content})
