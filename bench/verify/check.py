"""Scores the images of a golden log on this machine and compares every value with the log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from bench.methods import get_method
from bench.methods.base import FolderMethod
from bench.metrics import ImageScorer, MetricSpec, SetScorer, get_metric, missing_metric
from bench.options import RunOptions
from bench.records.schema import WHOLE_SET, VerifiedMetric
from bench.store.missing import Missing, Obstacle, brief
from bench.testsets.manifest import TestSet, load_testset, missing_testset
from bench.verify.golden import TOLERANCES, Golden
from tsd.console.progress import Progress
from tsd.errors import UserError


@dataclass(frozen=True)
class Unchecked:
    """A metric of a golden log that was not computed, and the reasons, one line each."""

    metric: str
    log: str
    reasons: tuple[str, ...]


def published_images(method: str, testset: TestSet, options: RunOptions) -> dict[str, Path]:
    """The images that the authors of `method` published for `testset`, by name.

    Raises:
        UserError: the folder was altered, or lacks images.
    """
    spec = get_method(f"published:{method}")
    outputs = spec.load(replace(options, testset=testset.name))
    assert isinstance(outputs, FolderMethod)
    outputs.provenance()  # compares the hash over the whole folder
    return outputs.outputs(testset)


def missing_for(method: str, testset: str, options: RunOptions) -> list[Missing | Obstacle]:
    """What of a test set and of a method's published images for it is missing here. Only looks at file names."""
    absent: list[Missing | Obstacle] = [*missing_testset(testset, options.data_root)]
    return [*absent, *get_method(f"published:{method}").missing(replace(options, testset=testset))]


def check_log(
    golden: Golden, metrics: Sequence[str], options: RunOptions, limit: int | None = None
) -> list[VerifiedMetric | Unchecked]:
    """One verdict for every metric of `metrics` that the log has.

    Args:
        limit: only the first images by name; values of the whole set are then left out.

    Raises:
        UserError: the images are not those that were published, or the log does not fit them.
    """
    asked = [name for name in golden.metrics if name in metrics]
    missing = missing_for(golden.method, golden.testset, options)
    if missing:
        return [Unchecked(name, golden.name, tuple(brief(missing))) for name in asked]
    testset = load_testset(golden.testset, options.data_root, limit)
    if limit is None:
        golden.check_fits({image.name for image in testset.images})
    images = published_images(golden.method, testset, options)
    verdicts: list[VerifiedMetric | Unchecked] = []
    for name in asked:
        spec = get_metric(name)
        reasons = brief(missing_metric(spec))
        if spec.level == "set" and len(testset.images) < testset.total:
            reasons = [f"{spec.display} is a value of all {testset.total} images: leave out --limit"]
        if reasons:
            verdicts.append(Unchecked(name, golden.name, tuple(reasons)))
        else:
            verdicts.append(_verdict(golden, spec, testset, images, options.device))
    return verdicts


def _verdict(
    golden: Golden, spec: MetricSpec, testset: TestSet, images: Mapping[str, Path], device: str
) -> VerifiedMetric:
    scorer = spec.load(device)
    if spec.level == "set":
        truth = {image.name: image.hr for image in testset.images if image.hr is not None}
        value = cast(SetScorer, scorer)(images, truth)
        changes = {WHOLE_SET: value - golden.whole_set[spec.name]}
    else:
        changes = _changes(golden, spec, testset, images, cast(ImageScorer, scorer))
    furthest = max(changes, key=lambda name: abs(changes[name]))
    mean = sum(changes.values()) / len(changes)
    tolerance = TOLERANCES[spec.name]
    near = tolerance.image is None or abs(changes[furthest]) <= tolerance.image
    return VerifiedMetric(
        metric=spec.name,
        display=spec.display,
        log=golden.name,
        about=f"the log of {get_method(f'published:{golden.method}').display.removesuffix(' (published)')}'s authors "
        f"for their images of {testset.display}",
        protocol=spec.protocol,
        n=len(testset.images),
        total=testset.total,
        largest=abs(changes[furthest]),
        image=furthest,
        mean_change=mean,
        agrees=near and (len(testset.images) < testset.total or abs(mean) <= tolerance.mean),
    )


def _changes(
    golden: Golden, spec: MetricSpec, testset: TestSet, images: Mapping[str, Path], score: ImageScorer
) -> dict[str, float]:
    """Value computed here minus value of the log, by image."""
    figures = golden.figures[spec.name]
    unknown = [image.name for image in testset.images if image.name not in figures]
    if unknown:
        golden.check_fits({image.name for image in testset.images})
    bar = Progress(testset.images, f"{spec.name} {golden.name}", unit="image", leave=False)
    return {
        image.name: score(images[image.name], image.hr if spec.needs_reference else None) - figures[image.name]
        for image in bar
    }


def check_names(metrics: Sequence[str] | None) -> list[str]:
    """The metrics to check: those that are named, else all that have a tolerance.

    Raises:
        UserError: an unknown metric, or one that no golden log has.
    """
    names = [get_metric(name).name for name in metrics or TOLERANCES]
    without = [name for name in names if name not in TOLERANCES]
    if without:
        raise UserError(f"no golden log has {', '.join(without)}; they have {', '.join(TOLERANCES)}")
    return names
