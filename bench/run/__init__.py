"""A measurement from request to table: plan, restore, score."""

from typing import TYPE_CHECKING

from bench.run.request import Request

if TYPE_CHECKING:
    from bench.run.pipeline import measure

__all__ = ["Request", "measure"]


def __getattr__(name: str) -> object:
    """Imports `measure` on first use: the command line needs `Request` alone and must start quickly."""
    if name != "measure":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bench.run.pipeline import measure

    return measure
