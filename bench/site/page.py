"""Renders the one HTML file of a site: markup by Jinja, our styles and scripts inlined, all values as JSON."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from bench import __version__
from bench.report.document import TEXT_COLUMNS, TIE
from bench.site.cards import MethodCard
from bench.site.collection import Collection, Set
from bench.site.html import ASSETS, json_of, policy_of, script_of, style_of, templates
from bench.site.leaderboard import Board, to_csv
from bench.site.originals import Beside
from bench.site.overview import SitePage
from bench.site.pictures import BLOCK, PIXELS_PER_DEGREE, WINDOW, Pictures, pairs_of
from bench.site.timings import Timings, timings_of

SCRIPTS = ("elements.js", "theme.js", "zoom.js", "state.js", "overview.js", "compare.js", "browse.js", "start.js")
MARK = '<meta name="generator" content="bench site'
"""Stands in every page, so that an older site may be replaced, and nothing else."""


@dataclass(frozen=True)
class Images:
    """The pictures of the sets: by place of the set and of the image. `quality` is None for exact pixels."""

    made: Mapping[tuple[int, int], Pictures]
    quality: int | None
    single_file: bool


def render(
    collection: Collection,
    pages: Sequence[SitePage],
    boards: Sequence[Board],
    cards: Sequence[MethodCard],
    images: Images,
    originals: Sequence[Sequence[Beside | None]],
    timings: Sequence[Timings],
) -> str:
    """The content of index.html."""
    environment = templates("bench.site")
    environment.filters["code"] = _code
    environment.globals.update(TEXT_COLUMNS=TEXT_COLUMNS, TIE=TIE, PIXELS_PER_DEGREE=PIXELS_PER_DEGREE)
    style, script = style_of([ASSETS / "style.css"]), script_of([ASSETS / name for name in SCRIPTS])
    data = _data(collection, pages, boards, images)
    data["originals"] = [[of and asdict(of) for of in places] for places in originals]
    data["timings"] = [
        {
            "label": f"{one.label}, {one.size} x {one.size} pixels",
            "machine": one.machine,
            "sets": [timings_of(found, one) for found in collection.sets],
        }
        for one in timings
    ]
    return environment.get_template("index.html.j2").render(
        title=_title(collection),
        version=__version__,
        policy=policy_of(style, script),
        style=style,
        script=script,
        data=json_of(data),
        pages=pages,
        boards=boards,
        sets=collection.sets,
        cards=cards,
        runs=[run.label for run in collection.runs],
        embedded=_embedded(images) if images.single_file else [],
        images=images,
        maps=_has_maps(images),
        linked=any(of for places in originals for of in places),
    )


def address(found: Set, index: int, place: int | None = None, kind: str = "") -> str:
    """The path of a preview within the site, of its FLIP map (`kind` "flip"), or without a place of the strip."""
    suffix = "" if place is None else f"-{place}{f'-{kind}' if kind else ''}"
    return f"images/{found.name}/{index}{suffix}.webp"


def _has_maps(images: Images) -> bool:
    return any(pictures.maps for pictures in images.made.values())


def _title(collection: Collection) -> str:
    return ", ".join(run.label for run in collection.runs)


def _code(text: str) -> Markup:
    """Text whose parts between backticks are code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _data(collection: Collection, pages: Sequence[SitePage], boards: Sequence[Board], images: Images) -> dict[str, Any]:
    return {
        "sets": [_set_data(place, found, images) for place, found in enumerate(collection.sets)],
        "pages": [
            {
                "name": page.name if len(collection.runs) == 1 else f"{page.run}-{page.name}",
                "csv": page.csv,
                "tex": page.tex,
                "sections": [
                    {"set": section.testset, "methods": section.methods, "metrics": section.metrics}
                    for section in page.sections
                ],
            }
            for page in pages
        ],
        "board": {
            "name": "leaderboard",
            "csv": to_csv(boards),
            "sections": [
                {
                    "set": board.testset,
                    "methods": [row.method for row in board.rows],
                    "metrics": list(board.metrics.values()),
                }
                for board in boards
            ],
        }
        if boards
        else None,
        "flip": _has_maps(images),
        "exact": images.quality is None,
        "single": images.single_file,
        "window": WINDOW,
        "block": BLOCK,
    }


def _set_data(place: int, found: Set, images: Images) -> dict[str, Any]:
    count, pairs = len(found.methods), pairs_of(len(found.methods))
    return {
        "name": found.name,
        "display": found.display,
        "names": found.names,
        "metrics": [
            {
                "name": metric.name,
                "display": metric.display,
                "higher": metric.higher_is_better,
                "decimals": metric.decimals,
            }
            for metric in found.metrics
        ],
        "methods": [
            {
                "name": _link_name(found, index),
                "display": method.display,
                "folder": None
                if images.single_file
                else f"records/{quote(method.run.folder)}/{found.name}/{method.name}",
            }
            for index, method in enumerate(found.methods)
        ],
        "values": [[method.values[metric] for method in found.methods] for metric in range(len(found.metrics))],
        "seconds": [_mean(method.seconds) for method in found.methods],
        "pairs": [
            [found.pair(metric, method, other) for method, other in pairs] if count > 1 else []
            for metric in range(len(found.metrics))
        ],
        "images": [_image_data(images.made.get((place, index))) for index in range(len(found.names))],
    }


def _link_name(found: Set, index: int) -> str:
    """The method's name in links, different for each method of the set."""
    method = found.methods[index]
    alike = sum(other.name == method.name for other in found.methods)
    return f"{method.name}@{method.run.label}" if alike > 1 else method.name


def _image_data(pictures: Pictures | None) -> list[Any] | None:
    """[width, height, width of a thumbnail, which pictures there are, regions, mean FLIP of each method or null]"""
    if pictures is None:
        return None
    present = "".join("0" if preview is None else "1" for preview in pictures.previews)
    means = [
        round(pictures.maps[at][1], 4) if at in pictures.maps else None for at in range(len(pictures.previews) - 2)
    ]
    return [*pictures.size, pictures.tile, present, pictures.regions, *([means] if pictures.maps else [])]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _embedded(images: Images) -> list[tuple[str, str]]:
    """The pictures of a single file: the id of an element, and its data address."""
    found: list[tuple[str, str]] = []
    for (place, index), pictures in images.made.items():
        content = {f"{place}-{index}": pictures.strip} | {
            f"{place}-{index}-{at}": preview for at, preview in enumerate(pictures.previews) if preview is not None
        }
        content |= {f"{place}-{index}-{at}-flip": data for at, (data, _) in pictures.maps.items()}
        found += [(f"image-{key}", base64.b64encode(data).decode()) for key, data in content.items()]
    return found
