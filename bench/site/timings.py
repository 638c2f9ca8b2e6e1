"""Seconds that `bench latency` measured, beside the methods of a site."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.records.schema import DESCRIPTIONS
from bench.site.collection import Set


@dataclass(frozen=True)
class Timing:
    """A method: the median of its calls with the 95 % interval, and the weights and settings it was timed with."""

    seconds: float
    low: float | None
    high: float | None
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Timings:
    """One size of a folder of timings. `size` is the side of the outputs in pixels; `methods` by name in records."""

    label: str
    size: int
    machine: str
    methods: Mapping[str, Timing]


def timings_of(found: Set, timings: Timings) -> list[list[Any] | None]:
    """[seconds, low, high, whether weights and settings are those of the run] for each method that was timed."""
    rows: list[list[Any] | None] = []
    for method in found.methods:
        timing = timings.methods.get(method.name)
        if timing is None:
            rows.append(None)
            continue
        run = method.restoration.provenance if method.restoration else {}
        same = all(timing.provenance.get(key) == value for key, value in run.items() if key not in DESCRIPTIONS)
        rows.append([timing.seconds, timing.low, timing.high, same])
    return rows
