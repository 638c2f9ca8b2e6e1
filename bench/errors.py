"""Errors as text, for a terminal or for a record."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from tsd.errors import UserError

ABSOLUTE = re.compile(r"(?<![\w.:/~…>-])/(?:[^\s/'\":,;()<>]+/)+")


def one_line(error: BaseException) -> str:
    """Any exception as one line of at most 300 characters, with its type where it is none of ours."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."


def some(names: Iterable[object], most: int = 3) -> str:
    """The first of `names`, and how many more there are: "a, b, c and 4 more"; empty for none."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def without_paths(text: str, names: Mapping[Path, str] = MappingProxyType({})) -> str:
    """`text` with known folders under the names given, and of other absolute paths the last part only.

    Reasons become part of records, which are published and say nothing of the machine.
    """
    for path, name in sorted(names.items(), key=lambda item: -len(str(item[0]))):
        text = text.replace(str(path), name)
    return ABSOLUTE.sub("…/", text)
