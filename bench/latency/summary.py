"""Calls become statistics: medians with intervals, ratios of calls that followed one another, rates. No torch.

The middle of a row is its median, since single calls are disturbed in one direction only. The interval of a median,
and of a median of ratios, is a percentile bootstrap over calls, drawn from a fixed seed. A ratio is of two calls of the
same round; to a method that ran in its own process it is a ratio of medians, without interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.latency.records import CallRow, LatencyPlan, LatencyRun, PlanRow, RowRecords
from bench.methods.stages import COUNTED, STAGES

RESAMPLES = 10_000
CONFIDENCE = (2.5, 97.5)
BUSY = 1.3
"""From this ratio of clock to CPU seconds (one thread) on, a row is marked: others had the processor too."""


@dataclass(frozen=True)
class Middle:
    """A median. `low` and `high` bound its 95 % interval, None with a single value; `p10` and `p90` are percentiles."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    p10: float | None = None
    p90: float | None = None


@dataclass(frozen=True)
class TimedRow:
    """A row at one size. Without calls it has `reasons` alone.

    Attributes:
        seconds, cpu_seconds: of what the paper's protocol counts.
        stages, cpu_stages: medians by stage.
        first: of the first call of a process, the median over processes.
        ratios, cpu_ratios: how many times as fast as each reference, by its name in records.
        run: settings and counts; None without records.
    """

    row: PlanRow
    reasons: tuple[str, ...] = ()
    seconds: Middle | None = None
    cpu_seconds: Middle | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    cpu_stages: Mapping[str, float] = field(default_factory=dict)
    first: float | None = None
    ratios: Mapping[str, Middle] = field(default_factory=dict)
    cpu_ratios: Mapping[str, Middle] = field(default_factory=dict)
    run: LatencyRun | None = None

    def total(self, unit: str) -> int | None:
        """FLOPs or MACs ("flops", "macs") of what the protocol counts; None where they were not counted."""
        operations = self.counted("operations")
        return None if operations is None else sum(operations[unit].get(stage, 0) for stage in COUNTED)

    def counted(self, key: str) -> Any:
        return self.run.counted.get(key) if self.run else None

    @property
    def share_of_peak(self) -> float | None:
        """The rate as a share of that of a matmul: by CPU seconds on a CPU, by the clock on a GPU."""
        flops, peak = self.total("flops"), self.counted("peak_flops_per_second")
        time = self.cpu_seconds or self.seconds
        return flops / time.value / peak if flops and peak and time and time.value else None

    @property
    def crowding(self) -> float | None:
        """Clock over CPU seconds of one thread: 1 on a quiet machine; None where that says nothing."""
        if not (self.seconds and self.cpu_seconds and self.run and self.run.settings.get("threads") == 1):
            return None
        return self.seconds.value / self.cpu_seconds.value if self.cpu_seconds.value else None


@dataclass(frozen=True)
class SizeTable:
    """All rows at one size."""

    size: int
    rows: tuple[TimedRow, ...]


def summarize_latency(out: Path, plan: LatencyPlan) -> list[SizeTable]:
    """The statistics of every row and size of the plan, from the records alone."""
    tables = []
    for size in plan.sizes:
        records = {row.name: RowRecords(out, row.name, size) for row in plan.rows}
        calls = {name: of.timed() for name, of in records.items()}
        references = {name: calls[name] for name in plan.references if calls.get(name)}
        tables.append(
            SizeTable(size, tuple(_row(row, records[row.name], calls[row.name], references) for row in plan.rows))
        )
    return tables


def _row(
    row: PlanRow, records: RowRecords, calls: Sequence[CallRow], references: Mapping[str, Sequence[CallRow]]
) -> TimedRow:
    run = records.run()
    every = list(records.calls().values())
    if not calls:
        failed = [call.error for call in every if call.error is not None]
        return TimedRow(
            row, tuple([*failed[-1:]] or row.missing or ["not timed yet; `bench latency` does it"]), run=run
        )
    firsts = [call.seconds for call in every if call.round == 0 and call.error is None]
    cpu = [call.cpu_seconds for call in calls if call.cpu_seconds is not None]
    return TimedRow(
        row=row,
        seconds=middle([call.seconds for call in calls]),
        cpu_seconds=middle(cpu) if len(cpu) == len(calls) else None,
        stages=_medians([call.stages for call in calls]),
        cpu_stages=_medians([call.cpu_stages for call in calls]),
        first=median(firsts) if firsts else None,
        ratios={name: ratio for name, of in references.items() if (ratio := _ratio(of, calls, "seconds"))},
        cpu_ratios={name: ratio for name, of in references.items() if (ratio := _ratio(of, calls, "cpu_seconds"))},
        run=run,
    )


def middle(values: Sequence[float]) -> Middle:
    """The median of `values`, which are not empty, with its interval and percentiles."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return Middle(float(array[0]), 1)
    picks = np.random.default_rng(0).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.percentile(np.median(array[picks], axis=1), CONFIDENCE)
    p10, p90 = np.percentile(array, (10, 90))
    return Middle(float(np.median(array)), len(array), float(low), float(high), float(p10), float(p90))


def _ratio(reference: Sequence[CallRow], calls: Sequence[CallRow], unit: str) -> Middle | None:
    """Seconds of the reference over those of the row: above 1 where the row is faster."""
    of = {call.key: getattr(call, unit) for call in reference}
    own = {call.key: getattr(call, unit) for call in calls}
    pairs = [(of[key], own[key]) for key in own if of.get(key) and own[key]]
    if pairs:
        return middle([first / second for first, second in pairs])
    if unit != "seconds" or not all(own.values()):
        return None
    return Middle(median(of.values()) / median(own.values()), len(own))


def _medians(stages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians by stage, in the usual order."""
    names = [name for name in (*STAGES, "process") if any(name in one for one in stages)]
    return {name: median(one.get(name, 0.0) for one in stages) for name in names}
