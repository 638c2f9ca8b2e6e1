"""One-step restoration: sizes, colour, tiles."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsd.restore.restorer import Restorer

__all__ = ["Restorer"]


def __getattr__(name: str) -> object:
    """Hands on `Restorer` when it is asked for: its module imports torch and diffusers, which takes seconds."""
    if name != "Restorer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tsd.restore.restorer import Restorer

    return Restorer
