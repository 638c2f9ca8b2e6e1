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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from bench import provenance
from bench.errors import UserError, one_line, without_paths
from bench.identity import agreed_account, continue_or_refuse, refuse_stale
from bench.imaging import Maker, copier, timer, warm_up
from bench.methods.base import FolderMethod, FolderRunner, Method, MethodSpec
from bench.options import RunOptions
from bench.records import Records, write_atomic
from bench.runners import no_output, run_folder
from bench.schema import EXTERNAL, ImageRow, Run
from bench.seeds import image_seed
from bench.shards import ALONE, Shard, exchange, from_first, shows_up

if TYPE_CHECKING:
    from bench.testsets import TestImage, TestSet


@dataclass
class StageReport:
    """What a stage did for one row: how many results were there, were made, and why others could not be.

    `failed` is a fault somewhere; `undefined` is a metric that has no value for such an image. Both by image name.
    """

    kept: int = 0
    made: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)


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
    method, account, outputs, reason = None, None, {}, ""
    try:
        method = spec.load(options)
        account = _account(method)
        outputs = method.outputs(testset) if isinstance(method, FolderMethod) else {}
    except Exception as error:
        method, account, reason = None, None, f"could not be loaded: {one_line(error)}"
    account = agreed_account(exchange(shard, account), spec.name)
    run, there, absent = from_first(shard, lambda: _begin(records, testset, spec, account, seed, redo, say))

    share = shard.share(testset.images)
    pending = [image for image in share if image.name not in there]
    report = StageReport(kept=len(share) - len(pending))
    if pending:
        key = None
        seeded = method.seeded() if isinstance(method, FolderRunner) else isinstance(method, Method)
        work = records.work_folder(testset.name, spec.name)
        title = f"restore {testset.name} · {spec.name}"
        if not shard.first:
            say(shard.line(f"{title}: {len(pending)} images"))
        with (
            closing(_makers(method, reason, outputs, pending, options, seed, work)) as makers,
            tqdm(makers, desc=title, total=len(pending), unit="image", delay=1, file=sys.stderr) as bar,
        ):
            for image, make in bar:
                if key is None:  # not before: a process of its own has no environment until it has begun
                    key, run = _with_environment(run, options, method, shard)
                    records.write_run(run)
                used = image_seed(seed, image.name) if seeded else None
                row = _restore_one(records, testset.name, spec.name, image, make, used, key)
                if row.error is None:
                    report.made += 1
                else:
                    report.failed[image.name] = row.error
                if row.error is None or image.name not in absent:
                    records.add_image(testset.name, spec.name, row)
        if not shard.first:
            say(shard.line(f"{title}: {report.made} restored, {len(report.failed)} failed"))
    done = exchange(shard, (report, records.images_bytes(testset.name, spec.name, shard.rank)))
    whole = combined([report for report, _ in done])
    if shard.first:
        sizes = [size for _, size in done]
        if shard.world > 1 and not shows_up(lambda: _have_arrived(records, testset, spec.name, sizes, whole.failed)):
            raise UserError(f"rows or images that other processes wrote do not show up in {records.out}")
        _finish(records, testset, run)
    return whole


def check_recorded(records: Records, testset: "TestSet", spec: MethodSpec, options: RunOptions, *, seed: int) -> None:
    """Raises StaleRecords where `restore_set` would, without restoring anything; looks only where there are records."""
    if records.read_run(testset.name, spec.name) is None:
        return
    try:
        account = _account(spec.load(replace(options, testset=testset.name)))
    except Exception:  # `restore_set` says why, in the row
        return
    refuse_stale(records, testset, Run(spec.name, testset.name, testset.manifest_sha256, seed, account, {}))


def _account(method: Method | FolderMethod | FolderRunner) -> dict[str, Any]:
    """The method's own account of itself, as it will be read back."""
    return json.loads(json.dumps(method.provenance(), allow_nan=False))


def combined(reports: Sequence[StageReport]) -> StageReport:
    """What all processes did together."""
    failed = sorted(item for report in reports for item in report.failed.items())
    undefined = sorted(item for report in reports for item in report.undefined.items())
    kept, made = sum(report.kept for report in reports), sum(report.made for report in reports)
    return StageReport(kept, made, dict(failed), dict(undefined))


def _begin(
    records: Records,
    testset: "TestSet",
    spec: MethodSpec,
    account: dict[str, Any] | None,
    seed: int,
    redo: bool,
    say: Callable[[str], None],
) -> tuple[Run, set[str], set[str]]:
    """The run that is begun or continued, the names of the images that are there, and of those recorded and not there.

    Of the first process alone.
    """
    what = f"{spec.name} on {testset.name}"
    if redo:
        if records.read_run(testset.name, spec.name):
            say(f"{what}: old records moved to {records.set_aside(testset.name, spec.name)}")
        records.clear_work(testset.name, spec.name)
    order = [image.name for image in testset.images]
    records.finish_images(testset.name, spec.name, order)  # what an interrupted run of several processes left
    if account is None:
        old = records.read_run(testset.name, spec.name)
        run = old or Run(spec.name, testset.name, testset.manifest_sha256, seed, {}, {})
    else:
        run = Run(spec.name, testset.name, testset.manifest_sha256, seed, account, {})
        run = continue_or_refuse(records, testset, run, say)
    rows = records.read_images(testset.name, spec.name)
    there = {image.name for image in testset.images if is_restored(records, testset.name, spec.name, rows, image)}
    absent = {name for name in order if name in rows and rows[name].error is None and name not in there}
    if absent:
        say(f"{what}: {len(absent)} recorded images are not on disk as recorded, restored again")
    if len(there) < len(order):
        records.finish_run(run)
    return run, there, absent


def _finish(records: Records, testset: "TestSet", run: Run) -> None:
    """Merges and orders what all processes wrote; environments without a row are dropped."""
    records.finish_images(testset.name, run.method, [image.name for image in testset.images])
    used = {row.environment for row in records.read_images(testset.name, run.method).values()}
    written = records.read_run(testset.name, run.method) or run
    environments = {key: content for key, content in written.environments.items() if key in used}
    records.finish_run(replace(run, environments=environments))


def _have_arrived(records: Records, testset: "TestSet", method: str, sizes: list[int], failed: Collection[str]) -> bool:
    """Whether all that the processes say they wrote, `sizes` bytes of rows by rank, is seen from here."""
    if any(records.images_bytes(testset.name, method, rank) != size for rank, size in enumerate(sizes)):
        return False
    rows, run = records.read_images(testset.name, method), records.read_run(testset.name, method)
    known = run.environments if run else {}
    return all(
        row.environment in known and (row.name in failed or records.image_path(testset.name, method, row.name).exists())
        for row in (rows[image.name] for image in testset.images)
    )


def is_restored(records: Records, testset: str, method: str, rows: dict[str, ImageRow], image: "TestImage") -> bool:
    """Whether the image's PNG is on disk with exactly the recorded bytes."""
    row = rows.get(image.name)
    path = records.image_path(testset, method, image.name)
    if row is None or row.sr_sha256 is None or not path.exists():
        return False
    return provenance.sha256_file(path) == row.sr_sha256


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
    records: Records, testset: str, method: str, image: "TestImage", make: Maker, seed: int | None, environment: str
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
    path = records.image_path(testset, method, image.name)
    write_atomic(path, data)
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
