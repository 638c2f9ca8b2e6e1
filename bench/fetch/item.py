"""One thing that `bench fetch` can get."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.options import RunOptions
from bench.store.missing import Missing, Obstacle


@dataclass(frozen=True)
class Item:
    """One thing to fetch.

    Attributes:
        name: the name on the command line.
        summary: one line: what it is and from where.
        licence: licence of the content.
        size_bytes: size of the download where it is known.
        restricted: whether the licence restricts the use, so that `--accept-license` is required.
        missing: returns the files of it that are not on this machine. It looks at file names only.
        get: fetches what is missing and leaves the rest alone; None where no program can fetch anything.
        by_hand: what a person has to do beyond or instead of `get`.
        unknown: returns the files that are there and whose hash is not known yet.
        record_first_hashes: verifies the files that are there, records the hashes that were not known, and returns a
            line for each of these.
    """

    name: str
    summary: str
    licence: str
    size_bytes: int | None
    restricted: bool
    missing: Callable[[RunOptions], Sequence[Missing | Obstacle]]
    get: Callable[[RunOptions], None] | None
    by_hand: str | None = None
    unknown: Callable[[RunOptions], list[str]] = lambda options: []
    record_first_hashes: Callable[[RunOptions], list[str]] = lambda options: []
