"""Published rows: what authors published, scored again, beside the printed figures and beside our own images.

Two questions about one method. Do its published images have the scores that are printed for it? And if we restored the
same test set with it, how far are our images from the published ones, image by image?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cards.card import cards
from bench.metrics import MetricSpec, missing_metric
from bench.metrics.images import read_rgb8
from bench.options import RunOptions
from bench.paper.tables import Printed, printed_figures
from bench.records.records import Records
from bench.report.audit import judge
from bench.report.folders import FolderPair, score_pairs
from bench.report.summarize import Cell, mean_ci95
from bench.store.missing import brief
from bench.testsets.manifest import TestSet, load_testset
from bench.verify.check import missing_for, published_images
from tsd.console.progress import Progress
from tsd.errors import UserError


@dataclass(frozen=True)
class RescoredCell:
    """A metric of published images: computed here, and as one source printed it; `printed` is None if none did."""

    metric: MetricSpec
    measured: Cell
    printed: Printed | None
    verdict: str


@dataclass(frozen=True)
class Likeness:
    """Our images of a test set beside the published ones.

    Attributes:
        n: number of images.
        equal: how many are equal at every pixel.
        levels: largest difference at any pixel, in levels of 8 bit, and the image that has it.
        psnr: mean PSNR-Y of our image against the published one, with its 95 % interval; None if all are equal.
    """

    n: int
    equal: int
    levels: int
    image: str
    psnr: Cell | None


@dataclass(frozen=True)
class PublishedRow:
    """What was found about one method on one test set."""

    testset: str
    display: str
    n: int
    total: int
    cells: tuple[RescoredCell, ...] = ()
    likeness: Likeness | None = None
    reasons: tuple[str, ...] = ()


def check_method(
    method: str, metrics: Sequence[MetricSpec], options: RunOptions, run: Path | None = None, limit: int | None = None
) -> list[PublishedRow]:
    """Every test set for which the authors of `method` published images.

    Args:
        run: folder of a run that restored some of these test sets with `method` itself.
        limit: only the first images of each test set.

    Raises:
        UserError: no card of that name, or none that knows of published images, or they were altered.
    """
    card = cards().get(method)
    if card is None or not card.published:
        able = ", ".join(name for name, known in cards().items() if known.published)
        raise UserError(f"no published images of {method} are known; there are some of {able}")
    found: list[PublishedRow] = []
    for published in card.published:
        missing = missing_for(method, published.testset, options)
        if missing:
            found.append(PublishedRow(published.testset, published.testset, 0, 0, reasons=tuple(brief(missing))))
            continue
        testset = load_testset(published.testset, options.data_root, limit)
        images = published_images(method, testset, options)
        cells = _rescored(card.display, card.steps, testset, images, metrics, options.device)
        likeness = _likeness(Records(run), method, testset, images) if run else None
        found.append(PublishedRow(testset.name, testset.display, len(images), testset.total, cells, likeness))
    return found


def _rescored(
    display: str, steps: int, testset: TestSet, images: dict[str, Path], metrics: Sequence[MetricSpec], device: str
) -> tuple[RescoredCell, ...]:
    pairs = [FolderPair(image.name, images[image.name], image.hr) for image in testset.images]
    usable = [spec for spec in metrics if not missing_metric(spec)]
    usable = [spec for spec in usable if not spec.needs_reference or pairs[0].hr is not None]
    scored = score_pairs(pairs, usable, device)["metrics"]
    cells: list[RescoredCell] = []
    for spec in usable:
        if spec.name not in scored:
            continue
        low, high = scored[spec.name]["ci95"] or (None, None)
        measured = Cell(scored[spec.name]["mean"], len(pairs), low, high)
        printed = printed_figures(testset.display, display, steps, spec.name)
        for figure in printed or [None]:
            verdict = judge(spec.name, measured, figure.text, testset.total).words if figure else ""
            cells.append(RescoredCell(spec, measured, figure, verdict))
    return tuple(cells)


def _likeness(records: Records, method: str, testset: TestSet, published: dict[str, Path]) -> Likeness:
    """Compares the images of a run with the published ones.

    Raises:
        UserError: the run did not restore every image of the test set, or they are not on disk as recorded.
    """
    import numpy as np

    ours = records.of(testset.name, method)
    rows = ours.images()
    absent = [image.name for image in testset.images if image.name not in rows or not ours.has(rows[image.name])]
    if absent:
        raise UserError(
            f"{records.out} has not all images of {method} on {testset.name} ({len(absent)} of {len(testset.images)} "
            f"absent or changed, first {absent[0]}); `bench run --methods {method} --testsets {testset.name} --out "
            f"{records.out}` makes them"
        )
    levels: dict[str, int] = {}
    decibels: list[float] = []
    for image in Progress(testset.images, f"images of {method}", unit="image", leave=False):
        mine, theirs = (
            read_rgb8(path).astype(np.int16) for path in (ours.image_path(image.name), published[image.name])
        )
        if mine.shape != theirs.shape:
            raise UserError(
                f"{image.name}: ours is {mine.shape[1]}x{mine.shape[0]}, published {theirs.shape[1]}x{theirs.shape[0]}"
            )
        levels[image.name] = int(np.abs(mine - theirs).max())
        luma = ((mine - theirs) @ np.array([65.481, 128.553, 24.966])) / 255
        if levels[image.name]:
            decibels.append(float(10 * np.log10(255**2 / (np.mean(luma**2) + 1e-8))))
    furthest = max(levels, key=lambda name: levels[name])
    psnr = None
    if decibels:
        mean, low, high = mean_ci95(decibels)
        psnr = Cell(mean, len(decibels), low, high)
    return Likeness(len(levels), sum(level == 0 for level in levels.values()), levels[furthest], furthest, psnr)
