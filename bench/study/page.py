"""Renders the voting page. It knows pictures by their numbers, and neither methods nor the kinds of trials."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench import __version__
from bench.site.html import ASSETS, json_of, policy_of, script_of, style_of, templates
from bench.study.study import Study

PAGE = Path(__file__).parent / "page"
SHARED = ("elements.js", "theme.js", "zoom.js")
FOLDER, SINGLE, IMAGES = "page", "page.html", "images"
"""What raters open: a folder with `index.html` and its images, or one file."""


def render(
    study: Study,
    sizes: Sequence[tuple[int, int]],
    beside: Sequence[Mapping[str, int]],
    embedded: Mapping[int, bytes],
    post: str,
    send_to: str,
) -> str:
    """The content of the HTML file.

    Args:
        sizes: (width, height) of each image.
        beside: for each image the numbers of the pictures that stand beside those to choose from: "hr", "lr".
        embedded: the bytes of all pictures by number, for a single file; empty if they lie beside the page.
    """
    style = style_of([ASSETS / "style.css", PAGE / "vote.css"])
    script = script_of([*(ASSETS / name for name in SHARED), PAGE / "vote.js"])
    address = urlsplit(post)
    data: dict[str, Any] = {
        "study": study.id,
        "best": study.mode == "best",
        "question": study.question,
        "images": [[*size, dict(pictures)] for size, pictures in zip(sizes, beside, strict=True)],
        "trials": [
            [[trial.image, *study.pictures_of(trial)] for trial in study.trials_of(rater)]
            for rater in range(len(study.trials))
        ],
        "single": bool(embedded),
        "post": post,
    }
    return (
        templates("bench.study")
        .get_template("vote.html.j2")
        .render(
            title=study.title,
            question=study.question,
            show=study.show,
            best=study.mode == "best",
            places=max(len(trial) - 2 for trials in study.trials for trial in trials),
            send_to=send_to,
            post=post,
            version=__version__,
            policy=policy_of(style, script, f"{address.scheme}://{address.netloc}" if post else ""),
            style=style,
            script=script,
            data=json_of(data),
            embedded=[(number, base64.b64encode(content).decode()) for number, content in sorted(embedded.items())],
        )
    )
