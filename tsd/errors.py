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


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch or Python ran out of memory. torch's allocator on the CPU says so in words alone."""
    import torch  # loaded already where such an error comes from

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "alloc" in str(error).lower()


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, whatever its case; None if none is close."""
    import difflib  # on the way to an error alone

    written = {one.lower(): one for one in known}
    return next((written[close] for close in difflib.get_close_matches(name.lower(), written, n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'scale'?)`, to end a sentence with; empty if nothing is close."""
    near = nearest(name, known)
    return f" (did you mean {near!r}?)" if near else ""


def some(names: Iterable[object], most: int = 3) -> str:
    """The first names, and the number of the others: "a, b, c and 4 more"; empty if there are none."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
