"""What every page is made with: markup by Jinja, styles and scripts of ours inlined, data as JSON, and a policy.

Names reach a page as text alone: Jinja escapes what it prints, the JSON holds no `<`, and the scripts set text, never
markup. A page's own policy (a `Content-Security-Policy`) lets it run nothing but its one script, and load nothing but
its pictures; it can open no connection, unless one is named.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

ASSETS = Path(__file__).parent / "page"
"""Styles and scripts, of which other pages take what they share with the site."""


def templates(package: str) -> Environment:
    """The templates in the folder `page` of a package; what they print is escaped, and a missing value is an error."""
    return Environment(
        loader=PackageLoader(package, "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style_of(files: Sequence[Path]) -> Markup:
    """The content of a style element."""
    return Markup("\n".join(file.read_text(encoding="utf-8") for file in files))


def script_of(files: Sequence[Path]) -> Markup:
    """The content of a script element: all files in one scope."""
    body = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return Markup(f'"use strict";\n(() => {{\n{body}}})();\n')


def policy_of(style: str, script: str, connect: str = "") -> str:
    """What a page may do: its own style and script, pictures beside it or inside it, and no more.

    Args:
        connect: the origin to which the page may send, for example "https://example.org"; empty for none.
    """
    allowed = f"connect-src {connect}; " if connect else ""
    return (
        f"default-src 'none'; img-src 'self' file: data:; style-src {_source(style)}; script-src {_source(script)}; "
        f"{allowed}base-uri 'none'; form-action 'none'"
    )


def json_of(content: Any) -> Markup:
    """JSON for a script element, which no text can end."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _source(text: str) -> str:
    """The hash by which a policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
