"""Stage 2: images × metrics → one row per score.

A row counts while output, ground truth and protocol are those it was computed with; everything else is scored again.
The score of a whole set (FID) is one row with the hash of the set and the number of images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import provenance
from bench.errors import one_line
from bench.metrics.base import CannotScoreError, MetricSpec, weight_hashes
from bench.ranks import ALONE, Rank, all_gather, from_first, wait_until_visible
from bench.records.records import MethodRecords, Records
from bench.records.schema import WHOLE_SET, ImageRow, ScoreRow, set_sha256, valid_scores, valid_set_score
from bench.run.report import StageReport, combined
from tsd.console.progress import Progress
from tsd.errors import UserError

if TYPE_CHECKING:
    from bench.metrics.base import ImageScorer, SetScorer
    from bench.testsets.manifest import TestImage, TestSet


def score_set(
    records: Records,
    testset: "TestSet",
    methods: list[str],
    spec: MetricSpec,
    device: str,
    *,
    rank: Rank = ALONE,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, StageReport]:
    """Scores every restored image of `methods` on `testset` that has no valid score; one report per method.

    The metric is loaded once, and only if there is something to score.

    Args:
        rank: the rank of this process. All processes of the run call this; each scores its share of the images, only
            the first scores whole sets, and all get the reports over all shares.
        log: receives one line when a process without progress bars is done with the metric.

    Raises:
        UserError: an image on disk is not the recorded one.
    """

    @cache
    def scorer() -> "ImageScorer | SetScorer":
        return spec.load(device)

    def score(method: str) -> StageReport:
        method_records = records.of(testset.name, method)
        if spec.level == "set":
            return from_first(rank, lambda: _score_whole_set(method_records, testset, spec, scorer))
        images, valid = from_first(rank, lambda: _begin(method_records, testset, spec))
        report = _score_images(method_records, rank.share(testset.images), spec, scorer, images, valid)
        done = all_gather(rank, (report, method_records.scores_bytes(spec.name, rank.index)))
        if rank.first:
            _finish(method_records, testset, spec, [size for _, size in done])
        return combined([report for report, _ in done])

    reports = {method: score(method) for method in methods}
    made = sum(report.made for report in reports.values())
    if made and not rank.first:
        log(rank.line(f"{spec.name} on {testset.name}: done with {made} values, all processes together"))
    return reports


def _begin(
    records: MethodRecords, testset: "TestSet", spec: MetricSpec
) -> tuple[dict[str, ImageRow], dict[str, ScoreRow]]:
    """Returns the restored images and their valid scores. Only the first process calls it."""
    order = [image.name for image in testset.images]
    records.finish_scores(spec.name, order)  # what an interrupted run of several processes left
    images = _restored(records, testset)
    return images, valid_scores(records.scores(spec.name), images, spec.protocol)


def _finish(records: MethodRecords, testset: "TestSet", spec: MetricSpec, sizes: list[int]) -> None:
    """Merges and sorts what the processes wrote, `sizes` bytes by rank.

    Raises:
        UserError: rows of other processes do not show up in the output folder.
    """

    def have_arrived() -> bool:
        return [records.scores_bytes(spec.name, rank) for rank in range(len(sizes))] == sizes

    if not wait_until_visible(have_arrived):
        raise UserError(f"scores that other processes wrote do not show up in {records.out}")
    records.finish_scores(spec.name, [image.name for image in testset.images])


def _score_images(
    records: MethodRecords,
    share: Sequence["TestImage"],
    spec: MetricSpec,
    scorer: Callable[[], Any],
    images: dict[str, ImageRow],
    valid: dict[str, ScoreRow],
) -> StageReport:
    pending = [image for image in share if image.name in images and image.name not in valid]
    report = StageReport(kept=sum(1 for image in share if image.name in valid))
    title = f"{spec.name} {records.testset} · {records.method}"
    for image in Progress(pending, desc=title, unit="image", delay=1, leave=False):
        sr = _verified(records, images[image.name])
        row = _row(spec, image.name, images[image.name].sr_sha256, image.hr_sha256, 1)
        other = image.hr if spec.needs_reference else None
        if spec.needs_input:
            row, other = replace(row, lr_sha256=image.lr_sha256), image.lr
        row = _with_value(row, lambda sr=sr, other=other: scorer()(sr, other), report)
        records.add_score(row)
    return report


def _score_whole_set(
    records: MethodRecords, testset: "TestSet", spec: MetricSpec, scorer: Callable[[], Any]
) -> StageReport:
    images = _restored(records, testset)
    names = [image.name for image in testset.images]
    if set(names) - set(images):
        return StageReport()  # not every image is restored; the table says so
    if valid_set_score(records.scores(spec.name), images, names, spec.protocol):
        return StageReport(kept=1)
    sr = {name: _verified(records, images[name]) for name in names}
    hr = {image.name: image.hr for image in testset.images}
    report = StageReport()
    title = f"{spec.name} {records.testset} · {records.method}"
    with Progress(total=1, desc=title, unit="set", leave=False) as bar:
        row = _row(spec, WHOLE_SET, set_sha256(images, names), None, len(names))
        row = _with_value(row, lambda: scorer()(sr, hr), report)
        bar.update()
    records.add_score(row)
    records.finish_scores(spec.name, [WHOLE_SET])
    return report


def _restored(records: MethodRecords, testset: "TestSet") -> dict[str, ImageRow]:
    """The rows that have a result made from the current input images of the test set."""
    rows = records.images()
    return {
        image.name: rows[image.name]
        for image in testset.images
        if image.name in rows and rows[image.name].error is None and rows[image.name].lr_sha256 == image.lr_sha256
    }


def _verified(records: MethodRecords, image: ImageRow) -> Path:
    path = records.image_path(image.name)
    if not records.has(image):
        raise UserError(
            f"{path} is not the recorded image: it was changed or removed since. `bench run` restores it again"
        )
    return path


def _row(spec: MetricSpec, name: str, sr_sha256: str | None, hr_sha256: str | None, n: int) -> ScoreRow:
    return ScoreRow(
        metric=spec.name,
        name=name,
        value=None,
        sr_sha256=sr_sha256 or "",
        hr_sha256=hr_sha256,
        n=n,
        protocol=spec.protocol,
        weights=weight_hashes(spec),
        versions=provenance.versions(provenance.SCORE_LIBRARIES),
        error=None,
    )


def _with_value(row: ScoreRow, compute: Callable[[], float], report: StageReport) -> ScoreRow:
    """`row` with its value or its error, counted in `report`."""
    try:
        value = float(compute())
        if not math.isfinite(value):
            raise ValueError(f"the metric returned {value}")
    except Exception as error:
        group = report.undefined if isinstance(error, CannotScoreError) else report.failed
        group[row.name] = one_line(error)
        return replace(row, error=group[row.name])
    report.made += 1
    return replace(row, value=value)
