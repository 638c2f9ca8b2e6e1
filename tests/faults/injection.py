"""Faults at a chosen instant of a command, installed in the process that runs it.

An *instant* is one request of Python's to change something under the watched folder: a file opened for writing, renamed
or removed, a folder made or removed, data flushed to disk. They are counted over all processes that the command forks.
Python's audit events tell of them, and an audit hook may end the process there or raise the error that the system would
have raised. What C++ and Rust write by themselves is met between the instants before and after it.
"""

import errno
import mmap
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

CHANGES = frozenset({
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod",
})  # fmt: skip
NEEDS_ROOM = frozenset({"open", "os.mkdir", "fsync"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
TORN_BYTES = 40
KINDS = {
    "kill": "SIGKILL to the command and its children",
    "full": "disk full from an instant on (ENOSPC)",
    "eio-write": "one EIO while writing",
    "eio-read": "one EIO while reading",
    "read-only": "the folder read-only from an instant on (EROFS)",
    "clock": "clock set back by a day",
}


class Injection:
    """One fault.

    Args:
        root: the watched folder; for "eio-read" that of the inputs and results together.
        kind: one of `KINDS`, or "count" to count instants alone, or "count-read".
        at: the number of the instant, from 1.
    """

    def __init__(self, root: Path, kind: str, at: int = 0) -> None:
        self.root, self.kind, self.at = str(root.resolve()), kind, at
        self.counter = mmap.mmap(-1, 8)  # shared with forked processes

    @property
    def count(self) -> int:
        return int.from_bytes(self.counter[:8], "little")

    def install(self) -> None:
        """Watches this process from now on, for good: an audit hook cannot be removed."""
        real = os.fsync

        def fsync(handle: Any) -> None:
            number = handle if isinstance(handle, int) else handle.fileno()
            self.meet("fsync", os.readlink(f"/proc/self/fd/{number}"), number)
            real(handle)

        os.fsync = fsync
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if bool(flags & WRITING) == self.kind.endswith("read"):
                return
        elif event in CHANGES and not self.kind.endswith("read"):
            path = arguments[0]
        else:
            return
        if isinstance(path, str | bytes | os.PathLike):
            self.meet(event, os.path.abspath(os.fsdecode(path)))

    def meet(self, event: str, path: str, handle: int | None = None) -> None:
        """Counts an instant, and does what is due."""
        if not f"{path}/".startswith(f"{self.root}/"):
            return
        number = self.count + 1
        self.counter[:8] = number.to_bytes(8, "little")
        if self.kind == "kill" and number == self.at:
            if handle is not None and number % 2:  # torn as well
                os.ftruncate(handle, max(os.fstat(handle).st_size - TORN_BYTES, 0))
            os.killpg(0, signal.SIGKILL)
            time.sleep(60)
        elif self.kind == "clock" and number == self.at:
            real = time.time
            time.time = lambda: real() - 86_400
        elif self.kind == "full" and number >= self.at and event in NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        elif self.kind == "read-only" and number >= self.at:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        elif self.kind.startswith("eio") and number == self.at:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
