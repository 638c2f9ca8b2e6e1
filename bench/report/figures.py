"""The picture beside a table: input, every method and the ground truth, each with one detail enlarged below it.

Nothing is chosen by hand, unless images are named: they are spread evenly over the test set. The enlarged window is
where the ground truth has the most detail that a x4 smaller image cannot hold; without a ground truth, where the input
has the most detail. Every tile is drawn from the PNG whose hash is in the records, with its recorded PSNR as caption.
"""

import io
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.PngImagePlugin import PngInfo

from bench.options import SCALE
from bench.provenance import sha256_json
from bench.records.records import MethodRecords, Records
from bench.records.schema import Plan, valid_scores
from tsd.files import write_atomic
from tsd.images import read_picture

if TYPE_CHECKING:
    from bench.testsets.manifest import TestImage, TestSet

ImageT = TypeVar("ImageT")

TILE = 240
"""Width and height in pixels of a drawn image and of its detail."""
WINDOW = 80
"""Side of the detail in pixels of the ground truth; drawn three times as large, without interpolation."""
ROWS = 3
GAP = 6
HEADER = 60
CAPTION = 30
STEP = 4
FRAME = (235, 50, 40)
TAG = "inputs-sha256"


def draw_figure(
    records: Records, plan: Plan, testset: "TestSet", path: Path, names: Collection[str] | None = None
) -> bool:
    """Writes the grid of `testset` to `path`, unless the file exists and was drawn from the same images.

    Returns False and writes nothing if no method's images are on disk as recorded.

    Args:
        names: the images to draw, in the order of the test set; None for `ROWS` of them, evenly spread.
    """
    images = [i for i in testset.images if i.name in names] if names else spread(list(testset.images), ROWS)
    found = [(method, records.of(testset.name, method.name)) for method in plan.methods]
    found = [(method, method_records) for method, method_records in found if _complete(method_records, images)]
    if not found:
        return False
    psnr = {method.name: _psnr(method_records, plan) for method, method_records in found}
    drawn = [
        (method.display, method_records.images()[image.name].sr_sha256, psnr[method.name])
        for method, method_records in found
        for image in images
    ]
    layout = [TILE, WINDOW, ROWS, GAP, HEADER, CAPTION, STEP, FRAME]
    inputs = sha256_json([layout, drawn, [(image.name, image.lr_sha256, image.hr_sha256) for image in images]])
    if path.exists() and _inputs_of(path) == inputs:
        return True
    referenced = all(image.hr is not None for image in images)
    titles = ["Input", *[method.display for method, _ in found], *(["Ground truth"] if referenced else [])]
    width = len(titles) * (TILE + GAP) + GAP
    block = 2 * TILE + CAPTION + 3 * GAP
    sheet = Image.new("RGB", (width, HEADER + len(images) * block + GAP), "white")
    for column, title in enumerate(titles):
        _write(sheet, title, column, 0, HEADER)
    for number, image in enumerate(images):
        lr = _open(image.lr)
        size = (lr.width * SCALE, lr.height * SCALE)
        truth = [_open(image.hr)] if image.hr is not None else []
        detailed = truth[0] if truth else lr.resize(size, Image.Resampling.BICUBIC)
        window = busiest_window(fine_detail(detailed), min(WINDOW, *size))
        top = HEADER + number * block
        input_view = lr.resize(size, Image.Resampling.NEAREST)
        outputs = [_open(method_records.image_path(image.name)) for _, method_records in found]
        scores = [psnr[method.name].get(image.name, "") for method, _ in found]
        captions = ["", *scores, image.name] if truth else [image.name, *scores]
        for column, (view, caption) in enumerate(zip([input_view, *outputs, *truth], captions, strict=True)):
            _tile(sheet, view, window, column, top)
            _write(sheet, caption, column, top + 2 * TILE + 2 * GAP, CAPTION)
    buffer = io.BytesIO()
    tag = PngInfo()
    tag.add_text(TAG, inputs)
    sheet.save(buffer, format="PNG", optimize=True, pnginfo=tag)
    write_atomic(path, buffer.getvalue())
    return True


def _inputs_of(path: Path) -> str | None:
    """The hash of the inputs of a picture, which `draw_figure` stored in the file."""
    try:
        with Image.open(path) as image:
            return image.info.get(TAG)
    except OSError:
        return None


def spread(images: list[ImageT], count: int) -> list[ImageT]:
    """At most `count` images, evenly spread over the list, in its order."""
    count = min(count, len(images))
    return [images[int((index + 0.5) * len(images) / count)] for index in range(count)]


def fine_detail(image: Image.Image) -> np.ndarray:
    """The luma (H, W) without its coarse structure, which every method restores well."""
    luma = image.convert("L")
    coarse = luma.filter(ImageFilter.GaussianBlur(4))
    return np.asarray(luma, dtype=np.float64) - np.asarray(coarse, dtype=np.float64)


def busiest_window(values: np.ndarray, side: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the square window of (H, W) `values` with the highest variance.

    Windows start at multiples of STEP pixels, so that they fall on whole pixels of the x4 smaller input. Of equal
    windows the first is returned.
    """
    total, squares = _integral(values), _integral(values**2)
    height, width = values.shape
    tops, lefts = np.arange(0, height - side + 1, STEP), np.arange(0, width - side + 1, STEP)

    def sums(table: np.ndarray) -> np.ndarray:
        below, right = tops[:, None] + side, lefts[None, :] + side
        inner = table[tops[:, None], lefts[None, :]]
        return table[below, right] - table[below, lefts[None, :]] - table[tops[:, None], right] + inner

    variance = sums(squares) / side**2 - (sums(total) / side**2) ** 2
    row, column = np.unravel_index(int(np.argmax(variance)), variance.shape)
    left, top = int(lefts[column]), int(tops[row])
    return left, top, left + side, top + side


def _integral(values: np.ndarray) -> np.ndarray:
    return np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _complete(records: MethodRecords, images: "list[TestImage]") -> bool:
    rows = records.images()
    return all(image.name in rows and records.has(rows[image.name]) for image in images)


def _psnr(records: MethodRecords, plan: Plan) -> dict[str, str]:
    """The recorded PSNR by image, as text; empty if it was not measured."""
    for metric in plan.metrics:
        if metric.name == "psnr":
            valid = valid_scores(records.scores(metric.name), records.images(), metric.protocol)
            return {name: f"{row.value:.2f} dB" for name, row in valid.items()}
    return {}


def _tile(sheet: Image.Image, view: Image.Image, window: tuple[int, int, int, int], column: int, top: int) -> None:
    """Pastes the whole image with the window framed, and below it the window alone, enlarged."""
    left = GAP + column * (TILE + GAP)
    scale = TILE / max(view.size)
    small = view.resize((round(view.width * scale), round(view.height * scale)), Image.Resampling.LANCZOS)
    framed = [round(edge * scale) for edge in window]
    ImageDraw.Draw(small).rectangle((framed[0], framed[1], framed[2] - 1, framed[3] - 1), outline=FRAME, width=2)
    sheet.paste(small, (left, top))
    detail = view.crop(window).resize((TILE, TILE), Image.Resampling.NEAREST)
    sheet.paste(detail, (left, top + TILE + GAP))


def _write(sheet: Image.Image, text: str, column: int, top: int, height: int) -> None:
    """Writes text centred in a column: on several lines if one is too short, in a smaller font if they do not fit."""
    draw = ImageDraw.Draw(sheet)
    words = text.split()
    for size in (22, 19, 16, 13):
        font = ImageFont.load_default(size)
        lines = [""]
        for word in words:
            longer = f"{lines[-1]} {word}".strip()
            if draw.textlength(longer, font) <= TILE:
                lines[-1] = longer
            else:
                lines.append(word)
        if len(lines) * (size + 4) <= height:
            break
    center = GAP + column * (TILE + GAP) + TILE // 2
    draw.multiline_text((center, top + height // 2), "\n".join(lines), "black", font, anchor="mm", align="center")


def _open(path: Path) -> Image.Image:
    return Image.fromarray(read_picture(path).to_rgb8())
