"""Renders the one HTML file of a site: markup by Jinja, our styles and scripts inlined, all values as JSON."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from bench import __version__
from bench.report.document import TEXT_COLUMNS, TIE
from bench.site.cards import MethodCard
from bench.site.collection import Collection, Set
from bench.site.html import ASSETS, json_of, policy_of, script_of, style_of, templates
from bench.site.overview import SitePage
from bench.site.pictures import BLOCK, WINDOW, Pictures, pairs_of

SCRIPTS = ("elements.js", "theme.js", "zoom.js", "state.js", "overview.js", "compare.js", "browse.js", "start.js")
MARK = '<meta name="generator" content="bench site'
"""Stands in every page, so that an older site may be replaced, and nothing else."""


@dataclass(frozen=True)
class Images:
    """The pictures of the sets: by place of the set and of the image. `quality` is None for exact pixels."""

    made: Mapping[tuple[int, int], Pictures]
    quality: int | None
    single_file: bool


def render(collection: Collection, pages: Sequence[SitePage], cards: Sequence[MethodCard], images: Images) -> str:
    """The content of index.html."""
    environment = templates("bench.site")
    environment.filters["code"] = _code
    environment.globals.update(TEXT_COLUMNS=TEXT_COLUMNS, TIE=TIE)
    style, script = style_of([ASSETS / "style.css"]), script_of([ASSETS / name for name in SCRIPTS])
    return environment.get_template("index.html.j2").render(
        title=_title(collection),
        version=__version__,
        policy=policy_of(style, script),
        style=style,
        script=script,
        data=json_of(_data(collection, pages, images)),
        pages=pages,
        sets=collection.sets,
        cards=cards,
        runs=[run.label for run in collection.runs],
        embedded=_embedded(images) if images.single_file else [],
        images=images,
    )


def address(found: Set, index: int, place: int | None = None) -> str:
    """The path of a preview within the site, or of the strip of an image."""
    return f"images/{found.name}/{index}.webp" if place is None else f"images/{found.name}/{index}-{place}.webp"


def _title(collection: Collection) -> str:
    return ", ".join(run.label for run in collection.runs)


def _code(text: str) -> Markup:
    """Text whose parts between backticks are code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _data(collection: Collection, pages: Sequence[SitePage], images: Images) -> dict[str, Any]:
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
                else f"records/{quote(method.run.label)}/{found.name}/{method.name}",
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
    """[width, height, width of a thumbnail, which pictures there are, regions]"""
    if pictures is None:
        return None
    present = "".join("0" if preview is None else "1" for preview in pictures.previews)
    return [*pictures.size, pictures.tile, present, pictures.regions]


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
        found += [(f"image-{key}", base64.b64encode(data).decode()) for key, data in content.items()]
    return found
