"""Makes the images of a site: a preview of every picture, a strip of thumbnails per image, and regions of interest.

A preview holds exactly the pixels of its original (lossless WebP) unless a quality is asked for; then the page says so.
A strip holds one thumbnail for every picture of an image, side by side, so that a grid of 3,000 images needs one small
file for each. A region of interest is the window in which two pictures of an image differ most.

Where asked for, a map shows where an output differs from its ground truth to the eye (NVIDIA's FLIP), in colours. Maps
are of outputs against ground truths alone: those of all pairs of methods would be many times as many.

The number of bytes is estimated from a few images before anything is written.
"""

import importlib.util
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from bench.options import SCALE
from bench.report.figures import spread
from bench.site.collection import Set
from tsd.console.progress import Progress
from tsd.errors import UserError
from tsd.files import human_size

PIXELS_PER_DEGREE = 67
"""For FLIP: a screen 3840 pixels and .7 m wide, seen from .7 m."""
THUMBNAIL = 168
"""Height of a thumbnail in pixels."""
WINDOW = 64
"""Side of a region of interest in pixels."""
BLOCK = 8
"""Regions start at multiples of so many pixels."""
SAMPLE = 6
"""Number of images of a set whose previews are made to estimate the size of all."""


@dataclass(frozen=True)
class Job:
    """One image of a set: the files of its pictures. The last two are the input and the ground truth."""

    testset: str
    index: int
    files: tuple[Path | None, ...]


@dataclass(frozen=True)
class Pictures:
    """What was made of a job.

    Attributes:
        size: (width, height) of the outputs.
        previews: the bytes of each preview; None where there is no picture.
        strip: the bytes of the thumbnails, and the width of each in pixels.
        regions: for every pair of pictures but the input, in the order of `pairs_of`, the number of the block in which
            the region of interest begins (row by row), or -1 where there is none.
        faults: by the place of a picture, why it is not shown.
        maps: by the place of a method, the bytes of its FLIP map and the mean of FLIP, 0 to 1.
    """

    job: Job
    size: tuple[int, int]
    previews: tuple[bytes | None, ...]
    strip: bytes
    tile: int
    regions: tuple[int, ...]
    faults: dict[int, str]
    maps: dict[int, tuple[bytes, float]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        previews = sum(len(preview) for preview in self.previews if preview is not None)
        return len(self.strip) + previews + sum(len(content) for content, _ in self.maps.values())


def jobs_of(found: Set, limit: int | None) -> list[Job]:
    """The images of a set that at least one method shows; at most `limit`, evenly spread over them."""
    jobs = [
        Job(
            found.name,
            index,
            (*(method.files[index] for method in found.methods), found.inputs[index], found.truths[index]),
        )
        for index in range(len(found.names))
        if any(method.files[index] is not None for method in found.methods)
    ]
    return jobs if limit is None else spread(jobs, limit)


def make(jobs: Sequence[Job], quality: int | None, title: str, flip: bool = False) -> Iterator[Pictures]:
    """The pictures of every job, in order, made by as many threads as there are cores, with a progress bar.

    Args:
        quality: of the previews, 1 to 100; None for previews without loss.
        flip: whether FLIP maps are made too.
    """
    if not jobs:
        return
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        made = _bounded(pool, jobs, quality, flip)
        yield from Progress(made, title, total=len(jobs), unit="image", delay=1, leave=False)


def _bounded(pool: ThreadPoolExecutor, jobs: Sequence[Job], quality: int | None, flip: bool) -> Iterator[Pictures]:
    """Results in the order of `jobs`, with no more than a few of them in memory."""
    ahead = 2 * (os.cpu_count() or 1)
    waiting = [pool.submit(_make, job, quality, flip) for job in jobs[:ahead]]
    for job in [*jobs[ahead:], *[None] * min(ahead, len(jobs))]:
        yield waiting.pop(0).result()
        if job is not None:
            waiting.append(pool.submit(_make, job, quality, flip))


def estimate_bytes(sets: Sequence[Sequence[Job]], quality: int | None, flip: bool = False) -> int:
    """About how many bytes the pictures of all jobs take, from at most `SAMPLE` images of each set."""
    total = 0.0
    for jobs in sets:
        sample = spread(list(jobs), SAMPLE)
        made = list(make(sample, quality, "estimate the size", flip))
        total += sum(pictures.size_bytes for pictures in made) / max(len(made), 1) * len(jobs)
    return round(total)


def check_size(
    sets: Sequence[Sequence[Job]],
    estimated: int,
    max_bytes: int,
    quality: int | None,
    share: float,
    flip: bool = False,
    copied: int = 0,
) -> None:
    """Refuses a site that would be larger than asked for.

    Args:
        share: bytes written for each byte of a picture (more than 1 in a single file).
        copied: bytes of originals that are copied beside the pictures.

    Raises:
        UserError: names the numbers of images and the quality with which it would fit.
    """
    size = estimated * share + copied
    if size <= max_bytes:
        return
    most = max(len(jobs) for jobs in sets)
    fitting = int(most * max_bytes / size)
    ways = [f"--images {fitting}"] if fitting else []
    if quality is None:
        compressed = round(estimate_bytes(sets, 90, flip) * share) + copied
        ways.append(f"--quality 90 (about {human_size(compressed)}; pixels are then not exact, and the page says so)")
    if copied:
        ways.append(f"--originals link ({human_size(copied)} less)")
    ways.append(f"--max-mb {-(-round(size) // 1_000_000)}")
    raise UserError(
        f"the pictures would take about {human_size(round(size))}, more than --max-mb allows "
        f"({human_size(max_bytes)}): try {' or '.join(ways)}"
    )


def pairs_of(count: int) -> list[tuple[int, int]]:
    """All pairs of `count` pictures, the smaller place first."""
    return [(a, b) for a in range(count) for b in range(a + 1, count)]


def _make(job: Job, quality: int | None, flip: bool) -> Pictures:
    faults: dict[int, str] = {}
    images = [_open(path, place, faults) for place, path in enumerate(job.files)]
    lr = images[-2]
    sizes = [image.size for image in images[:-2] if image is not None]
    size = (lr.width * SCALE, lr.height * SCALE) if lr is not None else max(sizes, key=sizes.count, default=(0, 0))
    for place, image in enumerate(images):
        if image is not None and place != len(images) - 2 and image.size != size:
            faults[place] = f"another size ({image.width}x{image.height}, not {size[0]}x{size[1]})"
            images[place] = None
    strip, tile = _strip(images, size)
    return Pictures(
        job=job,
        size=size,
        previews=tuple(None if image is None else webp(image, quality) for image in images),
        strip=strip,
        tile=tile,
        regions=tuple(_regions([*images[:-2], images[-1]])),
        faults=faults,
        maps=dict(_maps(images)) if flip else {},
    )


def missing_flip() -> str:
    """Why no FLIP maps can be made here; empty if they can."""
    if importlib.util.find_spec("flip_evaluator") is not None:
        return ""
    return "flip-evaluator is not installed: `pip install flip-evaluator` (no wheels for Python 3.14 yet)"


def _maps(images: Sequence[Image.Image | None]) -> Iterator[tuple[int, tuple[bytes, float]]]:
    """The FLIP map of each output that has a ground truth, and its mean."""
    import flip_evaluator

    truth = images[-1]
    if truth is None:
        return
    reference = np.asarray(truth, dtype=np.float32) / 255
    for place, image in enumerate(images[:-2]):
        if image is not None:
            test = np.asarray(image, dtype=np.float32) / 255
            colours, mean, _ = flip_evaluator.evaluate(
                reference, test, "LDR", parameters={"ppd": float(PIXELS_PER_DEGREE)}
            )
            levels = np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)
            yield place, (webp(Image.fromarray(levels), 80), float(mean))


def _open(path: Path | None, place: int, faults: dict[int, str]) -> Image.Image | None:
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        faults[place] = f"cannot be read ({type(error).__name__})"
        return None


def webp(image: Image.Image, quality: int | None) -> bytes:
    buffer = io.BytesIO()
    if quality is None:
        image.save(buffer, "WEBP", lossless=True, method=0, quality=20)  # the effort: ten times as fast, 10 % larger
    else:
        image.save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def _strip(images: Iterable[Image.Image | None], size: tuple[int, int]) -> tuple[bytes, int]:
    """All pictures side by side at the height of a thumbnail, and the width of one."""
    images = list(images)
    width = max(1, round(size[0] * THUMBNAIL / max(size[1], 1)))
    strip = Image.new("RGB", (width * len(images), THUMBNAIL))
    for place, image in enumerate(images):
        if image is not None:
            strip.paste(image.resize((width, THUMBNAIL), Image.Resampling.BOX), (place * width, 0))
    return webp(strip, 75), width


def _regions(images: Sequence[Image.Image | None]) -> Iterator[int]:
    """For each pair, the block at which the window with the largest sum of absolute differences of luma begins."""
    lumas = [None if image is None else np.asarray(image.convert("L"), dtype=np.int16) for image in images]
    for a, b in pairs_of(len(lumas)):
        first, second = lumas[a], lumas[b]
        yield -1 if first is None or second is None else _largest(np.abs(first - second))


def _largest(difference: np.ndarray) -> int:
    rows, columns = (side // BLOCK for side in difference.shape)
    if not rows or not columns:
        return -1
    blocks = difference[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK).sum((1, 3), np.int64)
    side_rows, side_columns = min(WINDOW // BLOCK, rows), min(WINDOW // BLOCK, columns)
    table = np.pad(blocks.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = (
        table[side_rows:, side_columns:]
        - table[:-side_rows, side_columns:]
        - table[side_rows:, :-side_columns]
        + table[:-side_rows, :-side_columns]
    )
    if not sums.max():
        return -1
    row, column = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return int(row) * columns + int(column)
