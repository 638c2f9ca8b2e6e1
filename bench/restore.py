"""Stage 1: methods × test sets → images on disk and one row per image.

Decoding, timing, checking and rounding are `bench.imaging`'s, for every method alike. Where a method fails on an
image, its row says so and the run goes on.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from bench import provenance
from bench.errors import one_line
from bench.imaging import Maker, copier, timer, warm_up
from bench.methods.base import FolderMethod, FolderRunner, Method, MethodOptions, MethodSpec
from bench.records import Records, write_atomic
from bench.runners import run_folder
from bench.schema import EXTERNAL, ImageRow, Run, StaleRecords
from bench.seeds import image_seed

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
    options: MethodOptions,
    *,
    seed: int,
    redo: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> StageReport:
    """Restores every image of `testset` that has no image by exactly this method, seed and input yet.

    Args:
        redo: move existing records of this method aside and begin again.
        say: receives one line for whatever a reader should know (absent images restored again, records set aside).

    Raises:
        StaleRecords: images of other weights, settings or inputs are there, and `redo` was not asked for.
    """
    options = replace(options, testset=testset.name)
    if redo and records.read_run(testset.name, spec.name):
        say(f"{spec.name} on {testset.name}: old records moved to {records.set_aside(testset.name, spec.name)}")
    try:
        method = spec.load(options)
        account = json.loads(json.dumps(method.provenance(), allow_nan=False))  # as it will be read back
        outputs = method.outputs(testset) if isinstance(method, FolderMethod) else {}
    except Exception as error:
        return _refuse(records, testset, spec, seed, options, f"could not be loaded: {one_line(error)}")
    run = Run(spec.name, testset.name, testset.manifest_sha256, seed, account, {})
    run = _continue_or_refuse(records, testset, run, say)

    rows = records.read_images(testset.name, spec.name)
    pending = [image for image in testset.images if not is_restored(records, testset.name, spec.name, rows, image)]
    report = StageReport(kept=len(testset.images) - len(pending))
    absent = sum(1 for image in pending if image.name in rows and rows[image.name].error is None)
    if absent:
        say(f"{spec.name} on {testset.name}: {absent} recorded images are not on disk as recorded, restored again")
    if pending:
        key = None
        seeded = method.seeded() if isinstance(method, FolderRunner) else not isinstance(method, FolderMethod)
        work = records.work_folder(testset.name, spec.name)
        title = f"restore {testset.name} · {spec.name}"
        with (
            closing(_makers(method, outputs, pending, options, seed, work)) as makers,
            tqdm(makers, desc=title, total=len(pending), unit="image", delay=1, file=sys.stderr) as bar,
        ):
            for image, make in bar:
                if key is None:  # not before: a process of its own has no environment until it has begun
                    key, run = _with_environment(run, options, method)
                    records.write_run(run)
                used = image_seed(seed, image.name) if seeded else None
                row = _restore_one(records, testset.name, spec.name, image, make, used, key)
                records.add_image(testset.name, spec.name, row)
                if row.error is None:
                    report.made += 1
                else:
                    report.failed[image.name] = row.error
    records.finish_images(testset.name, spec.name, [image.name for image in testset.images])
    used = {row.environment for row in records.read_images(testset.name, spec.name).values()}
    environments = {key: content for key, content in run.environments.items() if key in used}
    records.write_run(replace(run, environments=environments))
    return report


def is_restored(records: Records, testset: str, method: str, rows: dict[str, ImageRow], image: "TestImage") -> bool:
    """Whether the image's PNG is on disk with exactly the recorded bytes."""
    row = rows.get(image.name)
    path = records.image_path(testset, method, image.name)
    if row is None or row.sr_sha256 is None or not path.exists():
        return False
    return provenance.sha256_file(path) == row.sr_sha256


def _makers(
    method: Method | FolderMethod | FolderRunner,
    outputs: dict[str, Path],
    images: Sequence["TestImage"],
    options: MethodOptions,
    seed: int,
    work: Path,
) -> Generator[tuple["TestImage", Maker]]:
    """Every image with what makes its PNG; of a `FolderRunner` in the order in which its process is done with them."""
    if isinstance(method, FolderRunner):
        yield from run_folder(method, images, seed, work)
        return
    if isinstance(method, FolderMethod):
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
    row = _failure(image, seed, environment, "")
    try:
        data, (width, height), seconds = make(image, seed)
    except Exception as error:
        return replace(row, error=one_line(error))
    path = records.image_path(testset, method, image.name)
    write_atomic(path, data)
    digest = hashlib.sha256(data).hexdigest()
    return replace(row, sr_sha256=digest, width=width, height=height, seconds=seconds, error=None)


def _failure(image: "TestImage", seed: int | None, environment: str, reason: str) -> ImageRow:
    return ImageRow(
        name=image.name,
        seed=seed,
        lr_sha256=image.lr_sha256,
        hr_sha256=image.hr_sha256,
        sr_sha256=None,
        width=None,
        height=None,
        seconds=None,
        environment=environment,
        error=reason,
    )


def _refuse(
    records: Records, testset: "TestSet", spec: MethodSpec, seed: int, options: MethodOptions, reason: str
) -> StageReport:
    """A method that cannot be loaded: every image without a result gets a row that says why."""
    rows = records.read_images(testset.name, spec.name)
    pending = [image for image in testset.images if not is_restored(records, testset.name, spec.name, rows, image)]
    if pending:
        run = records.read_run(testset.name, spec.name)
        run = run or Run(spec.name, testset.name, testset.manifest_sha256, seed, {}, {})
        key, run = _with_environment(run, options)
        records.write_run(run)
        for image in pending:
            records.add_image(testset.name, spec.name, _failure(image, None, key, reason))
    return StageReport(kept=len(testset.images) - len(pending), failed={image.name: reason for image in pending})


def _continue_or_refuse(records: Records, testset: "TestSet", run: Run, say: Callable[[str], None]) -> Run:
    """`run` with the environments of the one it continues. Records of something else are never mixed in.

    Records whose images are all absent (a fresh clone) have nothing to be mixed with: they are moved aside.
    """
    old = records.read_run(run.testset, run.method)
    if old is None:
        return run
    rows = records.read_images(run.testset, run.method)
    changes = _differences(old.identity(), run.identity())
    for image in testset.images:
        row = rows.get(image.name)
        if row and (row.lr_sha256, row.hr_sha256) != (image.lr_sha256, image.hr_sha256):
            changes.append(f"the test image {image.name} is another file")
    results = [row for row in rows.values() if row.error is None]
    if not changes:
        return replace(run, environments=old.environments)
    if any(records.image_path(run.testset, run.method, row.name).exists() for row in results):
        listed = "".join(f"\n  {change}" for change in changes[:8])
        more = f"\n  and {len(changes) - 8} more" if len(changes) > 8 else ""
        raise StaleRecords(
            f"{run.method} on {run.testset}: the {len(results)} images recorded in {records.out} were made otherwise "
            f"than they would be now:{listed}{more}\nResults of two kinds are never mixed. Add `--redo {run.method}` "
            "to measure it again (the old records are moved to superseded/), or choose another --out."
        )
    if not results:
        return replace(run, environments=old.environments)
    aside = records.set_aside(run.testset, run.method)
    say(
        f"{run.method} on {run.testset}: the records were made otherwise ({changes[0]}) and none of their images "
        f"is on disk: moved to {aside}, restored again"
    )
    return run


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Readable differences of two JSON-able values, one line per changed leaf."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in dict.fromkeys([*old, *new]):
            found += _differences(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
        return found
    if provenance.sha256_json(old) == provenance.sha256_json(new):
        return []
    return [f"{at}: recorded {_short(old)}, now {_short(new)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _with_environment(
    run: Run, options: MethodOptions, method: Method | FolderMethod | FolderRunner | None = None
) -> tuple[str, Run]:
    """The key of the present environment, and `run` with it; with that of the method's own process, where it has one.

    What such a process ran in may not be known when nothing could be started; then the reason stands there.
    """
    content = provenance.environment(options.device, options.dtype)
    if isinstance(method, FolderRunner):
        try:
            external = json.loads(json.dumps(method.environment(), allow_nan=False))
        except Exception as error:
            external = {"unknown": one_line(error)}
        content[EXTERNAL] = external
    key = provenance.environment_key(content)
    return key, replace(run, environments={**run.environments, key: content})
