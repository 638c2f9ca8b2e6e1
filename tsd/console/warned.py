"""What a command prints of this project's warnings: the words, without the line of source that gave them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = tuple(f"{Path(__file__).parents[2] / name}{os.sep}" for name in ("tsd", "bench"))


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Inside the block a `UserWarning` of `tsd` or `bench` is printed as `warning: TEXT`; all others as ever."""
    before = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, UserWarning) and filename.startswith(PACKAGES):
            return f"warning: {message}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before
