"""A measurement from request to table: plan, restore, score."""

from typing import TYPE_CHECKING

from bench.run.request import Request

if TYPE_CHECKING:
    from bench.run.pipeline import measure

__all__ = ["Request", "measure"]


def __getattr__(name: str) -> object:
    """Hands on `measure` when it is asked for: the command line reads `Request` and must start quickly."""
    if name != "measure":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bench.run.pipeline import measure

    return measure
