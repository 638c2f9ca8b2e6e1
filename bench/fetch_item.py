"""One thing that `bench fetch` can get."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.missing import Missing, Obstacle
from bench.options import RunOptions


@dataclass(frozen=True)
class Item:
    """One thing to fetch.

    Attributes:
        name: the name on the command line.
        summary: one line: what it is and from where.
        licence: licence of the content.
        size_bytes: size of the download where it is known.
        restricted: not for every use, so that `--accept-license` is asked for.
        missing: what of it is not on this machine; file names only.
        get: fetches what is missing and leaves the rest alone; None where nothing can be fetched by a program.
        by_hand: what a person has to do beyond or instead of `get`.
        unsettled: the files that are there and still have to be picked up: nobody vouches for their content.
        settle: verifies what is there and records the hashes of what nobody vouches for; one line for each file.
    """

    name: str
    summary: str
    licence: str
    size_bytes: int | None
    restricted: bool
    missing: Callable[[RunOptions], Sequence[Missing | Obstacle]]
    get: Callable[[RunOptions], None] | None
    by_hand: str | None = None
    unsettled: Callable[[RunOptions], list[str]] = lambda options: []
    settle: Callable[[RunOptions], list[str]] = lambda options: []
