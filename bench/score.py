"""Stage 2: images × metrics → one row per score.

A row counts as long as output, ground truth and protocol are the ones it was computed with; everything else is
scored again. Scores of a whole set (FID) are one row that names the hash of the set and the number of images.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from bench import provenance
from bench.errors import UserError, one_line
from bench.metrics.base import CannotScoreError, MetricSpec, weight_hashes
from bench.records import Records
from bench.restore import StageReport
from bench.schema import WHOLE_SET, ImageRow, ScoreRow, set_sha256, valid_scores, valid_set_score

if TYPE_CHECKING:
    from bench.metrics.base import ImageScorer, SetScorer
    from bench.testsets import TestSet


def score_set(
    records: Records, testset: "TestSet", methods: list[str], spec: MetricSpec, device: str
) -> dict[str, StageReport]:
    """Scores every restored image of `methods` on `testset` that has no valid score; one report per method.

    The metric is loaded once, and only if there is something to score.

    Raises:
        UserError: an image on disk is not the recorded one.
    """

    @cache
    def scorer() -> "ImageScorer | SetScorer":
        return spec.load(device)

    score = _score_whole if spec.level == "set" else _score_images
    return {method: score(records, testset, method, spec, scorer) for method in methods}


def _score_images(
    records: Records, testset: "TestSet", method: str, spec: MetricSpec, scorer: Callable[[], Any]
) -> StageReport:
    images = _restored(records, testset, method)
    valid = valid_scores(records.read_scores(testset.name, method, spec.name), images, spec.protocol)
    pending = [image for image in testset.images if image.name in images and image.name not in valid]
    report = StageReport(kept=len(valid))
    bar = tqdm(
        pending, desc=f"{spec.name} {testset.name} · {method}", unit="image", delay=1, file=sys.stderr, leave=False
    )
    for image in bar:
        sr = _verified(records, testset.name, method, images[image.name])
        row = _row(spec, image.name, images[image.name].sr_sha256, image.hr_sha256, 1)
        row = _with_value(
            row, lambda sr=sr, image=image: scorer()(sr, image.hr if spec.needs_reference else None), report
        )
        records.add_score(testset.name, method, row)
    records.finish_scores(testset.name, method, spec.name, [image.name for image in testset.images])
    return report


def _score_whole(
    records: Records, testset: "TestSet", method: str, spec: MetricSpec, scorer: Callable[[], Any]
) -> StageReport:
    images = _restored(records, testset, method)
    names = [image.name for image in testset.images]
    if set(names) - set(images):
        return StageReport()  # the table says why: not every image is restored
    if valid_set_score(records.read_scores(testset.name, method, spec.name), images, names, spec.protocol):
        return StageReport(kept=1)
    sr = {name: _verified(records, testset.name, method, images[name]) for name in names}
    hr = {image.name: image.hr for image in testset.images}
    report = StageReport()
    with tqdm(total=1, desc=f"{spec.name} {testset.name} · {method}", unit="set", file=sys.stderr, leave=False) as bar:
        row = _row(spec, WHOLE_SET, set_sha256(images, names), None, len(names))
        row = _with_value(row, lambda: scorer()(sr, hr), report)
        bar.update()
    records.add_score(testset.name, method, row)
    records.finish_scores(testset.name, method, spec.name, [WHOLE_SET])
    return report


def _restored(records: Records, testset: "TestSet", method: str) -> dict[str, ImageRow]:
    """Rows of the test set's images that have a result, of those that belong to the test set as it is now."""
    rows = records.read_images(testset.name, method)
    return {
        image.name: rows[image.name]
        for image in testset.images
        if image.name in rows and rows[image.name].error is None and rows[image.name].lr_sha256 == image.lr_sha256
    }


def _verified(records: Records, testset: str, method: str, image: ImageRow) -> Path:
    path = records.image_path(testset, method, image.name)
    if not path.exists() or provenance.sha256_file(path) != image.sr_sha256:
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
