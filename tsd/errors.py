"""The exception for errors that the user can correct, and lists that are short enough for its message."""

from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message says what was found, what was expected and what to do; the CLI prints only the message."""


def some(names: Iterable[object], most: int = 3) -> str:
    """The first names, and the number of the others: "a, b, c and 4 more"; empty if there are none."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
