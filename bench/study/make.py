"""Makes a study from a run: chooses images, checks them against their records, draws the design, writes page and key.

`OUT/study.json` is the key, which stays with the maker. `OUT/page/`, or `OUT/page.html`, is what raters open: it knows
pictures by numbers alone, drawn at random, and neither methods nor images by name.
"""

import os
import random
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from bench import __version__
from bench.provenance import sha256_json
from bench.records.schema import ImageRow
from bench.report.chosen import Chosen, checked_rows, choose_methods, references_of
from bench.site.pictures import webp
from bench.study.categories import choose, read_categories
from bench.study.design import Plan, Trial, draw
from bench.study.page import FOLDER, IMAGES, SINGLE, render
from bench.study.study import (
    KEY,
    SHOWN,
    Criterion,
    Reference,
    Study,
    StudyImage,
    StudyMethod,
    StudyMetric,
    named,
    read_study,
    write_study,
)
from bench.testsets.manifest import MissingData, TestImage
from tsd.console.progress import Progress
from tsd.errors import UserError, some
from tsd.files import atomic_folder, human_size, require_writable
from tsd.images import read_picture

BLOCKS = 16
"""Side in pixels of the blocks of a trap's bad picture."""
Slot = tuple[int, int | str]
"""A picture: the place of its image, and the place of its method, "hr", "lr" or "bad"."""


@dataclass(frozen=True)
class StudyRequest:
    """What a study is made of.

    Attributes:
        run: the output folder of a `bench run`, with its images.
        methods: names as in its records.
        out: the folder to write.
        images: how many in all, evenly divided over the categories; None for all.
        show: what stands beside the pictures; None for what the criterion needs.
        post: an address that gets the votes; empty for none.
        send_to: where raters shall send their file, in words.
        testset: of the run; None if it has only one.
    """

    run: Path
    methods: tuple[str, ...]
    out: Path
    images: int | None = None
    categories: Path | None = None
    plan: Plan = field(default_factory=Plan)
    criterion: Criterion = "similarity"
    show: tuple[Reference, ...] | None = None
    title: str = "A study of pictures"
    post: str = ""
    send_to: str = ""
    single_file: bool = False
    testset: str | None = None
    data_root: Path | None = None


def make(request: StudyRequest) -> tuple[Study, Path]:
    """Writes the study; returns it and the page that raters open.

    Raises:
        UserError: images that are missing, changed or of different sizes, or anything else that was asked wrongly.
    """
    if request.post and not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+(/\S*)?", request.post):
        raise UserError(f"--post {request.post}: expected an address such as https://example.org/votes")
    require_writable(request.out.absolute().parent)
    source = choose_methods(request.run, request.methods, request.testset)
    categories = read_categories(request.categories) if request.categories is not None else None
    chosen = choose(source.testset.names, categories, request.images)
    show = SHOWN[request.criterion] if request.show is None else request.show
    unseen = [side for side in SHOWN[request.criterion] if side not in show]
    if unseen:
        raise UserError(
            f"--criterion {request.criterion} asks about what must be shown: add {' '.join(unseen)} to --show"
        )
    rows = checked_rows(source, list(chosen))
    references = _references(request, source, rows, show)
    design = draw(len(source.methods), len(chosen), request.plan)
    files = _files(source, rows, references, show, design)
    hashes = [row.sr_sha256 for of_image in rows.values() for row in of_image]
    numbers = _numbers(list(files), hashes, request.plan.seed)
    study = _study(request, source, chosen, rows, show, design, numbers)
    _check_place(request.out, study)
    sizes = [(of_image[0].width or 0, of_image[0].height or 0) for of_image in rows.values()]
    with atomic_folder(request.out) as fresh:
        made = {numbers[slot]: data for slot, data in _pictures(files)}
        page = fresh / (SINGLE if request.single_file else f"{FOLDER}/index.html")
        page.parent.mkdir(parents=True, exist_ok=True)
        for number, data in made.items() if not request.single_file else ():
            picture = page.parent / IMAGES / f"{number}.webp"
            picture.parent.mkdir(exist_ok=True)
            picture.write_bytes(data)
        beside = [{side: numbers[image, side] for side in show} for image in range(len(study.images))]
        content = render(study, sizes, beside, made if request.single_file else {}, request.post, request.send_to)
        page.write_text(content, encoding="utf-8")
        write_study(study, fresh)
    _log(f"{len(made)} pictures, {human_size(sum(map(len, made.values())))}")
    return study, request.out / page.relative_to(fresh)


def _references(
    request: StudyRequest, source: Chosen, rows: dict[str, list[ImageRow]], show: Sequence[Reference]
) -> dict[str, TestImage]:
    """Input and ground truth of each image; empty if they are not here and nothing of them is shown."""
    try:
        found = references_of(source, rows, request.data_root)
    except MissingData:
        if show:
            raise
        return {}
    without = [name for name in rows if found[name].hr is None]
    if "hr" in show and without:
        display = source.testset.display
        raise UserError(f"{display} has no ground truth for {some(without)}; choose --criterion structure or realism")
    return found


def _files(
    source: Chosen,
    rows: dict[str, list[ImageRow]],
    references: dict[str, TestImage],
    show: Sequence[Reference],
    design: Sequence[Sequence[Trial]],
) -> dict[Slot, tuple[Path, bool]]:
    """The file behind each picture of the page, and whether it is shown in coarse blocks."""
    trapped = {trial.image for trials in design for trial in trials if trial.kind == "trap"}
    files: dict[Slot, tuple[Path, bool]] = {}
    for image, name in enumerate(rows):
        for place, method in enumerate(source.methods):
            files[image, place] = (source.records.of(source.testset.name, method.name).image_path(name), False)
        reference = references.get(name)
        good = files[image, 0][0]
        if reference is not None and "lr" in show:
            files[image, "lr"] = (reference.lr, False)
        if reference is not None and reference.hr is not None and ("hr" in show or image in trapped):
            good = reference.hr
            files[image, "hr"] = (good, False)
        if image in trapped:
            files[image, "bad"] = (good, True)
    return files


def _numbers(slots: Sequence[Slot], hashes: Sequence[str | None], seed: int) -> dict[Slot, int]:
    """A number for each picture, which tells nothing about it."""
    order = list(range(len(slots)))
    random.Random(f"pictures {seed} {sha256_json(list(hashes))}").shuffle(order)
    return dict(zip(slots, order, strict=True))


def _study(
    request: StudyRequest,
    source: Chosen,
    chosen: dict[str, str],
    rows: dict[str, list[ImageRow]],
    show: Sequence[Reference],
    design: Sequence[Sequence[Trial]],
    numbers: dict[Slot, int],
) -> Study:
    methods: list[StudyMethod] = []
    for method in source.methods:
        run = source.records.of(source.testset.name, method.name).run()
        identity = sha256_json(run.identity()) if run is not None else ""
        methods.append(StudyMethod(method.name, method.display, identity))
    images = [
        StudyImage(
            name=name,
            category=category,
            lr_sha256=rows[name][0].lr_sha256,
            hr_sha256=rows[name][0].hr_sha256,
            sr_sha256=[row.sr_sha256 or "" for row in rows[name]],
            pictures=[numbers[image, place] for place in range(len(methods))],
            good=numbers.get((image, "hr"), numbers[image, 0]) if (image, "bad") in numbers else None,
            bad=numbers.get((image, "bad")),
        )
        for image, (name, category) in enumerate(chosen.items())
    ]
    values = source.values(list(chosen))
    metrics = [
        StudyMetric(metric.name, metric.display, metric.higher_is_better, metric.protocol, of_metric)
        for metric, of_metric in zip(source.metrics, values, strict=True)
        if any(value is not None for of_method in of_metric for value in of_method)
    ]
    return named(
        Study(
            id="",
            title=request.title,
            criterion=request.criterion,
            mode=request.plan.mode,
            show=list(show),
            seed=request.plan.seed,
            run=request.run.resolve().name,
            testset=source.testset.name,
            made_by=__version__,
            methods=methods,
            images=images,
            metrics=metrics,
            trials=[[[trial.image, trial.kind, *trial.shown] for trial in trials] for trials in design],
        )
    )


def _check_place(out: Path, study: Study) -> None:
    """A study whose votes may be under way is never replaced by another one."""
    if out.is_file():
        raise UserError(f"--out {out} is a file; expected a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / KEY).is_file():
        raise UserError(f"--out {out} exists and is no study; choose another folder")
    old = read_study(out).id
    if old != study.id:
        raise UserError(f"--out {out} holds another study ({old}), whose votes need its {KEY}: choose another folder")
    others = sorted(path.name for path in out.iterdir() if path.name not in (KEY, FOLDER, SINGLE))
    if others:
        raise UserError(f"--out {out} holds {some(others)} besides the study, which would be lost: move that elsewhere")


def _pictures(files: dict[Slot, tuple[Path, bool]]) -> Iterator[tuple[Slot, bytes]]:
    """The bytes of every picture, made by as many threads as there are cores, with a progress bar."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        made = pool.map(lambda file: _picture(*file), files.values())
        work = Progress(made, "make the pictures", total=len(files), unit="picture", delay=1, leave=False)
        yield from zip(files, work, strict=True)


def _picture(path: Path, in_blocks: bool) -> bytes:
    """A picture with exactly the pixels of its file (lossless WebP), or in blocks."""
    image = Image.fromarray(read_picture(path).to_rgb8())
    if in_blocks:
        small = image.resize((max(1, image.width // BLOCKS), max(1, image.height // BLOCKS)), Image.Resampling.BOX)
        image = small.resize(image.size, Image.Resampling.NEAREST)
    return webp(image, None)


def _log(line: str) -> None:
    print(line, file=sys.stderr)
