"""Scores the images of a run again and compares every value with its record: is what is recorded what comes out?

The images must be the recorded ones, byte for byte, and the ground truths those that they were compared with. What was
found is appended to the records of each method (`rescored.jsonl`), with the day, the machine and the versions.
"""

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from bench import provenance
from bench.errors import one_line
from bench.metrics import ImageScorer, MetricSpec, SetScorer, get_metric, missing_metric
from bench.options import RunOptions
from bench.records.records import MethodRecords, Records
from bench.records.schema import WHOLE_SET, ImageRow, Rescored, ScoreRow, valid_scores, valid_set_score, values_sha256
from bench.report.compare import REPEATED, TOLERANCES
from bench.store.missing import brief
from bench.testsets.manifest import MissingData, TestImage, load_testset
from tsd.console.progress import Progress
from tsd.errors import UserError


@dataclass(frozen=True)
class Verdict:
    """What came out for one metric of one method on one test set: a row, or why there is none."""

    testset: str
    method: str
    metric: str
    row: Rescored | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Inputs:
    """The pictures of a method on a test set that are at hand: its own, and those of the test set.

    Attributes:
        fault: why not all of its own are; empty if they are.
        absent: why those of the test set are not; empty if they are.
    """

    records: MethodRecords
    images: Mapping[str, ImageRow]
    references: Mapping[str, TestImage]
    fault: str
    absent: str


def rescore(
    run: Path, options: RunOptions, metrics: Sequence[str] = (), limit: int | None = None, by: str | None = None
) -> Iterator[Verdict]:
    """Computes the scores of a run again, and appends what it finds to the records of each method.

    Args:
        metrics: names; empty for all that are recorded.
        limit: only the first images by name; values of a whole set are then left out.
        by: who says so, as it is recorded.

    Raises:
        UserError: a folder without records, or a metric that is unknown or in no record.
    """
    records = Records(run)
    measured = records.measured()
    if not measured:
        raise UserError(f"no records in {run}; expected the --out folder of a `bench run`")
    recorded = {name for pair in measured for name in records.of(*pair).metrics()}
    asked = [get_metric(name).name for name in metrics]
    unknown = [name for name in asked if name not in recorded]
    if unknown:
        raise UserError(f"{run} has no scores of {', '.join(unknown)}; it has {', '.join(sorted(recorded))}")
    scorers: dict[str, ImageScorer | SetScorer] = {}
    for testset, method in measured:
        inputs = _inputs(records.of(testset, method), options.data_root)
        for name in inputs.records.metrics():
            if asked and name not in asked:
                continue
            try:
                row = _row(inputs, name, scorers, options.device, limit, by)
            except Exception as error:  # one metric that fails does not end the others
                yield Verdict(testset, method, name, reason=one_line(error))
                continue
            inputs.records.add_rescoring(row)
            yield Verdict(testset, method, name, row)


def _inputs(records: MethodRecords, data_root: Path | None) -> _Inputs:
    rows = records.images()
    restored = {name: row for name, row in rows.items() if row.error is None}
    images = {name: row for name, row in restored.items() if records.has(row)}
    fault, references, missing = "", {}, ""
    if len(images) < len(restored):
        absent = sum(not records.image_path(name).exists() for name in restored)
        other = len(restored) - len(images) - absent
        said = [f"{absent} are not on this machine"] if absent else []
        said += [f"{other} are not the recorded files"] if other else []
        fault = f"of its {len(restored)} images {' and '.join(said)}; `bench run` makes them again"
    try:
        references = {image.name: image for image in load_testset(records.testset, data_root).images}
    except MissingData as error:
        missing = "; ".join(brief(error.missing))
    except UserError as error:
        missing = str(error)
    return _Inputs(records, images, references, fault, missing)


def _row(
    inputs: _Inputs,
    name: str,
    scorers: dict[str, ImageScorer | SetScorer],
    device: str,
    limit: int | None,
    by: str | None,
) -> Rescored:
    """Computes one metric of one method again.

    Raises:
        UserError: why it cannot be.
    """
    spec = get_metric(name)
    missing = brief(missing_metric(spec))
    rows = inputs.records.scores(name)
    every = inputs.records.images()
    if inputs.fault or missing:
        raise UserError(inputs.fault or "; ".join(missing))
    if name not in TOLERANCES:
        raise UserError(f"nobody has said how much {spec.display} may move")
    if spec.level == "set":
        names = [image for image, row in every.items() if row.error is None]
        whole = valid_set_score(rows, every, names, spec.protocol)
        valid = {WHOLE_SET: whole} if whole is not None else {}
        if limit is not None:
            raise UserError(f"{spec.display} is a value of all images: leave out --limit")
    else:
        valid = valid_scores(rows, every, spec.protocol)
    if not valid:
        protocols = sorted({row.protocol for row in rows.values()} - {spec.protocol})
        raise UserError(
            f"it was measured as `{protocols[0]}`, this version measures `{spec.protocol}`"
            if protocols
            else "no recorded value belongs to the images as they are recorded now"
        )
    if name not in scorers:
        scorers[name] = spec.load(device)
    if spec.level == "set":
        changes = {WHOLE_SET: _whole_set(inputs, cast(SetScorer, scorers[name])) - _value(valid[WHOLE_SET])}
    else:
        changes = _changes(inputs, spec, cast(ImageScorer, scorers[name]), valid, limit)
    furthest = max(changes, key=lambda image: abs(changes[image]))
    allowed = TOLERANCES[name] * REPEATED
    return Rescored(
        metric=name,
        protocol=spec.protocol,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        by=by,
        values_sha256=values_sha256(valid),
        n=len(changes),
        total=len(valid),
        largest=abs(changes[furthest]),
        image=furthest,
        allowed=allowed,
        agrees=abs(changes[furthest]) <= allowed,
        environment=provenance.environment(device, "fp32"),
        versions=provenance.versions(provenance.SCORE_LIBRARIES),
    )


def _changes(
    inputs: _Inputs, spec: MetricSpec, score: ImageScorer, valid: Mapping[str, ScoreRow], limit: int | None
) -> dict[str, float]:
    """Value computed here minus recorded value, by image."""
    names = sorted(valid)[:limit]
    title = f"{spec.name} {inputs.records.testset} · {inputs.records.method}"
    found: dict[str, float] = {}
    for name in Progress(names, title, unit="image", delay=1, leave=False):
        other = None
        if spec.needs_reference or spec.needs_input:
            other = _reference(inputs, name, spec.needs_input)
        change = score(inputs.records.image_path(name), other) - _value(valid[name])
        if not math.isfinite(change):
            raise UserError(f"{name} has no finite value here")
        found[name] = change
    return found


def _whole_set(inputs: _Inputs, score: SetScorer) -> float:
    sr = {name: inputs.records.image_path(name) for name in inputs.images}
    return score(sr, {name: _reference(inputs, name, False) for name in sr})


def _reference(inputs: _Inputs, name: str, lr: bool) -> Path:
    """The ground truth of an image, or its input, which must be the recorded one."""
    image, row = inputs.references.get(name), inputs.images[name]
    path = None if image is None else image.lr if lr else image.hr
    if image is None or path is None:
        raise UserError(inputs.absent or f"the test set here has no {'input' if lr else 'ground truth'} of {name}")
    if (image.lr_sha256 if lr else image.hr_sha256) != (row.lr_sha256 if lr else row.hr_sha256):
        raise UserError(f"the {'input' if lr else 'ground truth'} of {name} is another file than it was")
    return path


def _value(row: ScoreRow) -> float:
    assert row.value is not None
    return row.value
