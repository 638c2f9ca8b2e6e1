"""Figures 7 and 9 to 13: whole images with one detail of every method beside, as the paper lays them out. PNG and PDF.

Each image is a block: the input with the detail framed, and right of it, in two rows, the detail as the input, every
method and the ground truth have it, enlarged by a whole number without interpolation. Figure 13 adds values of
full-reference metrics below each detail, the best in bold, and how often people chose it, from `bench study score`.

Every pixel is drawn from the PNG whose hash is in the records.
"""

import csv
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from bench.options import SCALE
from bench.records.schema import ImageRow
from bench.report.chosen import Chosen, checked_rows, choose_methods, references_of
from bench.report.figures import FRAME, TILE, WINDOW, busiest_window, fine_detail, spread
from bench.report.plots import LITERAL, STYLE, pyplot, save
from bench.testsets.manifest import TestImage
from tsd.errors import UserError, some
from tsd.files import printable
from tsd.images import read_picture

FIGURES = ("7", "9", "10", "11", "12", "13")
IMAGES = 3
"""Images of a figure unless named."""
GAP, LINE, DPI, FONT = 8, 17, 72, 12.5  # at 72 dots per inch a point is a pixel, in PNG and PDF alike
SIMULATED = "votes of SIMULATED raters"

Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class CropRequest:
    """What a figure shows.

    Attributes:
        run: the output folder of a `bench run`, with its images.
        figure: one of `FIGURES`, which names the files; "13" has metrics and votes.
        images: names; empty for `IMAGES`, evenly spread over the test set.
        crops: for each image (left, top, side) in pixels of the output, None for the window of most fine detail.
        metrics: whose values stand below the details.
        votes: figure8-images.csv of `bench study score`.
    """

    run: Path
    out: Path
    figure: str = "7"
    methods: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    crops: tuple[tuple[int, int, int] | None, ...] = ()
    metrics: tuple[str, ...] = ()
    votes: Path | None = None
    testset: str | None = None
    data_root: Path | None = None


@dataclass(frozen=True)
class Detail:
    """One enlarged detail: pixels (side, side, 3) uint8, and lines below it, each with whether it is bold."""

    pixels: np.ndarray
    lines: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Block:
    """One image: the whole, (h, w, 3) uint8 with the detail framed, its caption, and the details in their order."""

    whole: np.ndarray
    caption: str
    details: tuple[Detail, ...]


def draw_crops(request: CropRequest) -> list[Path]:
    """Writes figureN.png and figureN.pdf; returns them.

    Raises:
        UserError: images that are missing or changed, crops outside them, or votes on other images.
    """
    chosen = choose_methods(request.run, request.methods, request.testset)
    names = list(request.images) or spread(chosen.testset.names, IMAGES)
    unknown = [name for name in names if name not in chosen.testset.names]
    if unknown:
        raise UserError(f"--images: {chosen.testset.display} has no {some(unknown)}")
    crops = list(request.crops) or [None] * len(names)
    if len(crops) != len(names):
        raise UserError(f"--crops: {len(crops)} for {len(names)} images; give one for each, or auto")
    rows = checked_rows(chosen, names)
    references = references_of(chosen, rows, request.data_root)
    votes, note = _votes(request.votes, chosen, rows) if request.votes is not None else ({}, "")
    captions = _captions(chosen, names, request.metrics, votes)
    blocks = [
        _block(chosen, references[name], rows[name], crop, captions[name])
        for name, crop in zip(names, crops, strict=True)
    ]
    return _draw(blocks, note, request.out / f"figure{request.figure}")


def _captions(
    chosen: Chosen, names: Sequence[str], metrics: Sequence[str], votes: Mapping[tuple[str, str], str]
) -> dict[str, list[list[tuple[str, bool]]]]:
    """By image: for each method the lines below its detail, without its name."""
    known = {metric.name: place for place, metric in enumerate(chosen.metrics)}
    absent = [name for name in metrics if name not in known]
    if absent:
        raise UserError(f"--metrics: the run has no {some(absent)} of single images; it has {', '.join(known)}")
    values = chosen.values(names)
    found: dict[str, list[list[tuple[str, bool]]]] = {}
    for place, name in enumerate(names):
        lines: list[list[tuple[str, bool]]] = [[] for _ in chosen.methods]
        for metric_name in metrics:
            metric = chosen.metrics[known[metric_name]]
            of_image = [of_method[place] for of_method in values[known[metric_name]]]
            measured = [round(value, metric.decimals) for value in of_image if value is not None]
            best = (max if metric.higher_is_better else min)(measured, default=None)
            for line, value in zip(lines, of_image, strict=True):
                text = "—" if value is None else f"{value:.{metric.decimals}f}"
                line.append((f"{metric.display} {text}", value is not None and round(value, metric.decimals) == best))
        shares = [votes.get((name, method.name)) for method in chosen.methods]
        for line, share in zip(lines, shares, strict=True):
            if votes:
                line.append((share or "no votes", False))
        found[name] = lines
    return found


def _votes(path: Path, chosen: Chosen, rows: Mapping[str, list[ImageRow]]) -> tuple[dict[tuple[str, str], str], str]:
    """By image and method how often people chose it, and a note for the whole figure.

    Raises:
        UserError: not a file of `bench study score`, or of other images.
    """
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            lines = list(csv.DictReader(handle))
        hashes = {(line["image"], line["method"]): line["sr_sha256"] for line in lines}
        counts = {(line["image"], line["method"]): (int(line["chosen"]), int(line["votes"])) for line in lines}
        simulated = any(line["source"] == "simulated" for line in lines)
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"--votes {path}: {type(error).__name__}: {error}; expected the figure8-images.csv of `bench study score`"
        ) from error
    found: dict[tuple[str, str], str] = {}
    for name, of_image in rows.items():
        for method, row in zip(chosen.methods, of_image, strict=True):
            key = (name, method.name)
            if key in counts and hashes[key] != row.sr_sha256:
                raise UserError(
                    f"--votes {path}: people saw another image of {method.name} on {name} than this run has"
                )
            if key in counts and counts[key][1]:
                count, total = counts[key]
                found[key] = f"{'simulated: ' if simulated else ''}chosen in {count} of {total} votes"
    if not found:
        raise UserError(f"--votes {path}: no votes on these images and methods")
    return found, SIMULATED if simulated else ""


def _block(
    chosen: Chosen,
    reference: TestImage,
    rows: Sequence[ImageRow],
    crop: tuple[int, int, int] | None,
    captions: list[list[tuple[str, bool]]],
) -> Block:
    lr = _open(reference.lr)
    size = (lr.width * SCALE, lr.height * SCALE)
    outputs = [_open(handle.image_path(reference.name)) for handle in chosen.handles()]
    if outputs[0].size != size:
        raise UserError(
            f"{reference.name}: the outputs are {rows[0].width}x{rows[0].height}, not {SCALE} times the input"
        )
    truth = [_open(reference.hr)] if reference.hr is not None else []
    window = _window(reference.name, crop, truth[0] if truth else lr.resize(size, Image.Resampling.BICUBIC))
    views = [lr.resize(size, Image.Resampling.NEAREST), *outputs, *truth]
    titles = ["Input", *(method.display for method in chosen.methods), *(["Ground truth"] if truth else [])]
    below: list[list[tuple[str, bool]]] = [[], *captions, *([[]] if truth else [])]
    details = [
        Detail(_enlarged(view, window), (*((line, False) for line in _wrapped(title)), *lines))
        for view, title, lines in zip(views, titles, below, strict=True)
    ]
    return Block(_framed(views[0], window), printable(reference.name), tuple(details))


def _window(name: str, crop: tuple[int, int, int] | None, detailed: Image.Image) -> Window:
    if crop is None:
        return busiest_window(fine_detail(detailed), min(WINDOW, *detailed.size))
    left, top, side = crop
    if side < 1 or left < 0 or top < 0 or left + side > detailed.width or top + side > detailed.height:
        raise UserError(
            f"--crops {left},{top},{side}: {name} is {detailed.width}x{detailed.height}; expected LEFT,TOP,SIDE inside"
        )
    return left, top, left + side, top + side


def _enlarged(view: Image.Image, window: Window) -> np.ndarray:
    """The detail, enlarged by the largest whole number that fits a tile, at least 1."""
    pixels = np.asarray(view.crop(window))
    factor = max(1, TILE // pixels.shape[0])
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _framed(view: Image.Image, window: Window) -> np.ndarray:
    """The whole image with the window framed, at the height of two tiles and their captions."""
    height = 2 * TILE + LINE
    scale = height / view.height
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    small = view.resize((max(1, round(view.width * scale)), height), resampling)
    edges = [round(edge * scale) for edge in window]
    ImageDraw.Draw(small).rectangle((edges[0], edges[1], edges[2] - 1, edges[3] - 1), outline=FRAME, width=3)
    return np.asarray(small)


def _wrapped(title: str) -> list[str]:
    """A title in at most two lines of a tile's width."""
    return textwrap.wrap(printable(title), 34, max_lines=2, placeholder=" …") or [""]


def _draw(blocks: Sequence[Block], note: str, stem: Path) -> list[Path]:
    """Places pixels one to one, and text as text, on a sheet of as many columns as the details need."""
    cell = max(TILE, *(detail.pixels.shape[0] for block in blocks for detail in block.details))
    columns = max((len(block.details) + 1) // 2 for block in blocks)
    lines = [max(len(detail.lines) for detail in block.details) for block in blocks]
    heights = [
        max(2 * (cell + LINE * count + GAP), block.whole.shape[0] + LINE + GAP)
        for block, count in zip(blocks, lines, strict=True)
    ]
    left = max(block.whole.shape[1] for block in blocks) + 2 * GAP
    width, head = left + columns * (cell + GAP), LINE + GAP if note else 0
    height = head + sum(heights) + GAP * (len(blocks) + 1)
    plt = pyplot()
    with plt.rc_context(STYLE | LITERAL | {"image.composite_image": False, "pdf.fonttype": 42}):
        figure = plt.figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")

        def paste(pixels: np.ndarray, x: int, y: int) -> None:
            figure.figimage(pixels, x, height - y - pixels.shape[0], origin="upper")

        def write(text: str, x: float, y: float, **style: Any) -> None:
            figure.text(x / width, 1 - y / height, text, ha="center", va="top", fontsize=FONT, **style)

        if note:
            write(note, width / 2, GAP, color="#B00020")
        top = head + GAP
        for block, count, block_height in zip(blocks, lines, heights, strict=True):
            paste(block.whole, left - GAP - block.whole.shape[1], top)
            write(block.caption, left - GAP - block.whole.shape[1] / 2, top + block.whole.shape[0] + 3)
            per_row = (len(block.details) + 1) // 2
            for place, detail in enumerate(block.details):
                x = left + place % per_row * (cell + GAP)
                y = top + place // per_row * (cell + LINE * count + GAP)
                paste(detail.pixels, x + (cell - detail.pixels.shape[0]) // 2, y)
                for number, (line, bold) in enumerate(detail.lines):
                    weight = "bold" if bold else "normal"
                    write(line, x + cell / 2, y + cell + 3 + LINE * number, fontweight=weight)
            top += block_height + GAP
        paths = save(figure, stem, (".png", ".pdf"), dpi=DPI)
        plt.close(figure)
    return paths


def _open(path: Path) -> Image.Image:
    return Image.fromarray(read_picture(path).to_rgb8())
