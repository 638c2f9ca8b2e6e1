"""Folders of the cache: one process at a time makes one, and messages name them without this machine's paths."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.options import RunOptions

REPOSITORIES, ENVIRONMENTS = "repositories", "environments"


def display_path(options: "RunOptions", place: Path) -> str:
    """Names `place` below $TSD_CACHE, for messages that may be recorded and published."""
    return f"$TSD_CACHE/{place.relative_to(options.cache()).as_posix()} (or under --cache, else ~/.cache/tsd-sr-bench)"


@contextmanager
def locked(place: Path, what: str) -> Iterator[None]:
    """Locks `place` against other processes, which wait. The kernel unlocks it however this process ends."""
    from filelock import FileLock, Timeout

    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that makes {what}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
