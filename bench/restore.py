"""Stage 1: methods × test sets → images on disk and one row per image.

Decoding, timing, checking and rounding are `bench.imaging`'s, for every method alike. Where a method fails on an
image, its row says so and the run goes on. A recorded result whose image is gone (a fresh clone) stays until there is
another: a machine on which the method fails does not undo what was measured elsewhere.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from bench import provenance
from bench.errors import UserError, one_line, without_paths
from bench.identity import agreed_account, continue_or_refuse, refuse_stale
from bench.imaging import Maker, copier, timer, warm_up
from bench.methods.base import FolderMethod, FolderRunner, Method, MethodSpec
from bench.options import RunOptions
from bench.records import MethodRecords, Records, write_atomic
from bench.runners import no_output, run_folder
from bench.schema import EXTERNAL, ImageRow, Run
from bench.seeds import image_seed
from bench.shards import ALONE, Shard, exchange, from_first, shows_up
from bench.stage_report import StageReport, combined

if TYPE_CHECKING:
    from bench.testsets import TestImage, TestSet


def restore_set(
    records: Records,
    testset: "TestSet",
    spec: MethodSpec,
    options: RunOptions,
    *,
    seed: int,
    redo: bool = False,
    shard: Shard = ALONE,
    say: Callable[[str], None] = lambda line: None,
) -> StageReport:
    """Restores every image of `testset` that has no image by exactly this method, seed and input yet.

    Args:
        redo: move existing records of this method aside and begin again.
        shard: this process among those of the run, which all call this; each restores its share, and all get the
            report over all shares.
        say: receives one line for whatever a reader should know (absent images restored again, records set aside).

    Raises:
        StaleRecords: images of other weights, settings or inputs are there, and `redo` was not asked for.
        UserError: the method is not the same in every process, or does not write to the same folder.
    """
    options = replace(options, testset=testset.name)
    found = records.of(testset.name, spec.name)
    method, account, outputs, reason = None, None, {}, ""
    try:
        method = spec.load(options)
        account = _account(method)
        outputs = method.outputs(testset) if isinstance(method, FolderMethod) else {}
    except Exception as error:
        method, account, reason = None, None, f"could not be loaded: {one_line(error)}"
    account = agreed_account(exchange(shard, account), spec.name)
    run, there, absent = from_first(shard, lambda: _begin(found, testset, account, seed, redo, say))

    share = shard.share(testset.images)
    pending = [image for image in share if image.name not in there]
    report = StageReport(kept=len(share) - len(pending))
    if pending:
        key = None
        seeded = method.seeded() if isinstance(method, FolderRunner) else isinstance(method, Method)
        title = f"restore {testset.name} · {spec.name}"
        if not shard.first:
            say(shard.line(f"{title}: {len(pending)} images"))
        with (
            closing(_makers(method, reason, outputs, pending, options, seed, found.work_folder)) as makers,
            tqdm(makers, desc=title, total=len(pending), unit="image", delay=1, file=sys.stderr) as bar,
        ):
            for image, make in bar:
                if key is None:  # not before: a process of its own has no environment until it has begun
                    key, run = _with_environment(run, options, method, shard)
                    found.write_run(run)
                used = image_seed(seed, image.name) if seeded else None
                row = _restore_one(found, image, make, used, key)
                if row.error is None:
                    report.made += 1
                else:
                    report.failed[image.name] = row.error
                if row.error is None or image.name not in absent:
                    found.add_image(row)
        if not shard.first:
            say(shard.line(f"{title}: {report.made} restored, {len(report.failed)} failed"))
    done = exchange(shard, (report, found.images_bytes(shard.rank)))
    whole = combined([report for report, _ in done])
    if shard.first:
        sizes = [size for _, size in done]
        if shard.world > 1 and not shows_up(lambda: _have_arrived(found, testset, sizes, whole.failed)):
            raise UserError(f"rows or images that other processes wrote do not show up in {records.out}")
        found.finish([image.name for image in testset.images])
    return whole


def check_recorded(records: Records, testset: "TestSet", spec: MethodSpec, options: RunOptions, *, seed: int) -> None:
    """Raises StaleRecords where `restore_set` would, without restoring anything; looks only where there are records."""
    found = records.of(testset.name, spec.name)
    if found.run() is None:
        return
    try:
        account = _account(spec.load(replace(options, testset=testset.name)))
    except Exception:  # `restore_set` says why, in the row
        return
    refuse_stale(found, testset, Run(spec.name, testset.name, testset.manifest_sha256, seed, account, {}))


def _account(method: Method | FolderMethod | FolderRunner) -> dict[str, Any]:
    """The method's own account of itself, as it will be read back."""
    return json.loads(json.dumps(method.provenance(), allow_nan=False))


def _begin(
    records: MethodRecords,
    testset: "TestSet",
    account: dict[str, Any] | None,
    seed: int,
    redo: bool,
    say: Callable[[str], None],
) -> tuple[Run, set[str], set[str]]:
    """The run that is begun or continued, the names of the images that are there, and of those recorded and not there.

    Only the first process calls it.
    """
    what = f"{records.method} on {records.testset}"
    if redo:
        if records.run():
            say(f"{what}: old records moved to {records.set_aside()}")
        records.clear_work()
    order = [image.name for image in testset.images]
    records.finish(order)  # what an interrupted run of several processes left
    run = Run(records.method, records.testset, testset.manifest_sha256, seed, account or {}, {})
    run = (records.run() or run) if account is None else continue_or_refuse(records, testset, run, say)
    rows = records.images()
    there = {name for name in order if name in rows and records.has(rows[name])}
    absent = {name for name in order if name in rows and rows[name].error is None and name not in there}
    if absent:
        say(f"{what}: {len(absent)} recorded images are not on disk as recorded, restored again")
    records.write_run(run)
    return run, there, absent


def _have_arrived(records: MethodRecords, testset: "TestSet", sizes: list[int], failed: Collection[str]) -> bool:
    """Whether all that the processes say they wrote, `sizes` bytes of rows by rank, is seen from here."""
    if any(records.images_bytes(rank) != size for rank, size in enumerate(sizes)):
        return False
    rows, run = records.images(), records.run()
    known = run.environments if run else {}
    return all(
        row.environment in known and (row.name in failed or records.image_path(row.name).exists())
        for row in (rows[image.name] for image in testset.images)
    )


def _makers(
    method: Method | FolderMethod | FolderRunner | None,
    reason: str,
    outputs: dict[str, Path],
    images: Sequence["TestImage"],
    options: RunOptions,
    seed: int,
    work: Path,
) -> Generator[tuple["TestImage", Maker]]:
    """Every image with what makes its PNG; of a `FolderRunner` in the order in which its process is done with them.

    Without a method `reason` says why there is none.
    """
    if isinstance(method, FolderRunner):
        yield from run_folder(method, images, seed, work)
        return
    if method is None:
        make = no_output(reason)
    elif isinstance(method, FolderMethod):
        make = copier(outputs)
    else:
        import torch

        make = timer(method, torch.device(options.device))
        warm_up(make, images[0], seed)
    for image in images:
        yield image, make


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


def _with_environment(
    run: Run, options: RunOptions, method: Method | FolderMethod | FolderRunner | None, shard: Shard
) -> tuple[str, Run]:
    """The key of the present environment, and `run` with it; with that of the method's own process, where it has one.

    What such a process ran in may not be known when nothing could be started; then the reason stands there.
    """
    content = provenance.environment(options.device, options.dtype)
    if shard.world > 1:  # equal GPUs are one environment, whichever of them a process was given
        content["device"] = options.device.partition(":")[0]
    if isinstance(method, FolderRunner):
        try:
            external = json.loads(json.dumps(method.environment(), allow_nan=False))
        except Exception as error:
            external = {"unknown": without_paths(one_line(error))}
        content[EXTERNAL] = external
    key = provenance.environment_key(content)
    return key, replace(run, environments={**run.environments, key: content})
