"""Errors as text, for a terminal or for a record."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tsd.errors import UserError

ABSOLUTE = re.compile(r"(?<![\w.:/~…>-])/(?:[^\s/'\":,;()<>]+/)+")


def one_line(error: BaseException) -> str:
    """Any exception as one line of at most 300 characters, with its type unless it is a `UserError`."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."


def without_paths(text: str, names: Mapping[Path, str] = MappingProxyType({})) -> str:
    """`text` with each known folder replaced by its name, and every other absolute path by its last part.

    Reasons become part of records, which are published and must not describe the machine.
    """
    for path, name in sorted(names.items(), key=lambda item: -len(str(item[0]))):
        text = text.replace(str(path), name)
    return ABSOLUTE.sub("…/", text)
