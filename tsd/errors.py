"""The exception for errors that the user can correct, what a disk may do, and lists short enough for a message."""

import errno
from collections.abc import Iterable

DEVICE_ERRORS = frozenset({
    errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE,
    errno.ENODEV, errno.ESTALE,
})  # fmt: skip
"""What a disk, a folder or its owner refuses: commands say so in one line, since no traceback would mend it."""


class UserError(ValueError):
    """Bad input. The message says what was found, what was expected and what to do; the CLI prints only the message."""


def some(names: Iterable[object], most: int = 3) -> str:
    """The first names, and the number of the others: "a, b, c and 4 more"; empty if there are none."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
