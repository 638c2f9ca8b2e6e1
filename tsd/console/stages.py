"""How far the restoration of one image is: the one protocol by which it is told, to a command line or to any other.

    def progress(stage: str, done: int, total: int) -> None: ...

is called when a stage begins, with 0 done, and after each of its pieces. An image passes the stages in the order of
`STAGES`; one that the work does not have is left out. `total` may grow while a stage runs, since how many passes an
image in pieces takes shows on the way. Whatever `progress` raises ends the restoration and leaves no file, so it can
stop one too.
"""

from collections.abc import Callable

ENCODE, TILES, DECODE, WRITE = "encode", "tiles", "decode", "write"
STAGES = (ENCODE, TILES, DECODE, WRITE)
"""`tiles` is the denoiser, one tile where it takes the image whole; `write` counts rows, or one file."""

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """The progress of who does not ask."""
