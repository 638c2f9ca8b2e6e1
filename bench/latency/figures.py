"""The pictures of timings: a bar of stages for each method, and Figure 1, quality against seconds. SVG and PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.latency.records import LatencyPlan, read_plan
from bench.latency.summary import SizeTable, summarize_latency
from bench.methods.stages import STAGES
from bench.paper.tables import TABLES, paper_figures
from bench.records.records import Records
from bench.report.csvs import csv_text
from bench.report.plots import PAPER, STYLE, pyplot, save
from bench.report.summarize import summarize
from tsd.errors import UserError
from tsd.files import write_atomic

COLORS = ("#BBBBBB", "#CC79A7", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#F0E442", "#56B4E9", "#DDDDDD")
"""Of the stages, in their order: Okabe and Ito's, which colour-blind readers tell apart."""
MEASURED = "#0072B2"


@dataclass(frozen=True)
class Point:
    """A method of Figure 1; `steps` None where the word has no meaning. `low` and `high` bound the quality at 95 %."""

    display: str
    steps: int | None
    seconds: float
    quality: float
    low: float | None = None
    high: float | None = None


def draw_stages(out: Path, plan: LatencyPlan) -> list[Path]:
    """Writes TABLE-stages.png and .svg, a panel for each size; nothing without timings. Returns the files."""
    tables = [table for table in summarize_latency(out, plan) if any(row.stages for row in table.rows)]
    if not tables:
        return []
    plt = pyplot()
    height = sum(0.9 + 0.32 * sum(bool(row.stages) for row in table.rows) for table in tables)
    with plt.rc_context(STYLE):
        ratios = [0.9 + 0.32 * sum(bool(row.stages) for row in table.rows) for table in tables]
        figure, axes = plt.subplots(
            len(tables), 1, figsize=(8, height + 0.5), squeeze=False, layout="constrained", height_ratios=ratios
        )
        for axis, table in zip(axes[:, 0], tables, strict=True):
            _stage_panel(axis, table)
        handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in COLORS]
        figure.legend(handles, STAGES, loc="outside lower center", ncols=len(STAGES), frameon=False, fontsize=7)
        paths = save(figure, out / f"{plan.table}-stages")
        plt.close(figure)
    return paths


def _stage_panel(axis: Any, table: SizeTable) -> None:
    rows = [row for row in table.rows if row.stages]
    by_cpu = all(row.cpu_stages for row in rows)
    for place, row in enumerate(rows):
        left = 0.0
        stages = row.cpu_stages if by_cpu else row.stages
        for stage, color in zip(STAGES, COLORS, strict=True):
            axis.barh(place, stages.get(stage, 0.0), left=left, color=color, height=0.7)
            left += stages.get(stage, 0.0)
        axis.barh(place, stages.get("process", 0.0), color=MEASURED, height=0.7)
    axis.set_yticks(range(len(rows)), [row.row.display for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel(f"{'CPU seconds' if by_cpu else 'seconds'} per image, {table.size} x {table.size} pixels")


def measured_points(quality: Path, latency: Path, *, table: str, testset: str, metric: str, size: int) -> list[Point]:
    """Every method with both a quality in the records of `quality` and seconds in those of `latency`.

    Raises:
        UserError: one of the folders has no such records, or they have no method in common.
    """
    plan, timings = Records(quality).read_plan(table), read_plan(latency, "table3")
    if plan is None:
        raise UserError(f"no records of {table} in {quality}: `bench run --table {table} --out {quality}` makes them")
    if timings is None:
        raise UserError(f"no timings in {latency}: `bench latency --out {latency}` makes them")
    section = next((s for s in summarize(Records(quality), plan).sections if s.testset == testset), None)
    if section is None or metric not in [column.name for column in plan.metrics]:
        sets, metrics = ", ".join(s.name for s in plan.testsets), ", ".join(m.name for m in plan.metrics)
        raise UserError(f"{quality} has no {metric} on {testset}; it has {metrics} on {sets}")
    found = next((t for t in summarize_latency(latency, timings) if t.size == size), None)
    if found is None:
        sizes = ", ".join(map(str, timings.sizes))
        raise UserError(f"{latency} has no seconds at {size} pixels; it has {sizes}")
    cells = {row.method: (row, row.cells[metric]) for row in section.rows if row.cells[metric].value is not None}
    points = []
    for timed in found.rows:
        if timed.seconds and timed.row.name in cells and "random" not in timed.row.display:
            row, cell = cells[timed.row.name]
            assert cell.value is not None
            points.append(Point(row.display, row.steps, timed.seconds.value, cell.value, cell.low, cell.high))
    if not points:
        both = f"timed: {', '.join(r.row.name for r in found.rows if r.seconds)}; scored: {', '.join(cells)}"
        raise UserError(f"no method has both {metric} on {testset} and seconds at {size} pixels ({both})")
    return points


def paper_points(dataset: str, metric: str) -> list[Point]:
    """The paper's own points: the seconds of its Table 3, and the quality that its Tables 1 and 2 print."""
    seconds = {(row["method"], row["steps"]): float(row["seconds"]) for row in paper_figures(TABLES["table3"].paper)}
    rows = [row for name in ("table1", "table2") for row in paper_figures(TABLES[name].paper)]
    found = {
        (row["method"], row["steps"]): float(row[metric])
        for row in rows
        if row["dataset"] == dataset and row.get(metric)
    }
    return [Point(key[0], int(key[1]), seconds[key], found[key]) for key in found if key in seconds]


def draw_figure1(points: Sequence[Point], paper: Sequence[Point], labels: tuple[str, str], out: Path) -> list[Path]:
    """Writes figure1.png, .svg and .csv; the paper's points are grey. Returns the files.

    Args:
        labels: of the axes: seconds, quality.
    """
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        for group, color, marker in ((paper, PAPER, "s"), (points, MEASURED, "o")):
            for number, point in enumerate(group):
                _draw_point(axis, point, color, marker, lift=4 + 9 * (number % 3))
        axis.set_xscale("log")
        axis.set_xlabel(labels[0])
        axis.set_ylabel(labels[1])
        axis.margins(0.18, 0.12)
        if paper:
            handles = [
                plt.Line2D([], [], linestyle="", marker="o", color=MEASURED, label="measured here"),
                plt.Line2D([], [], linestyle="", marker="s", color=PAPER, label="printed in the paper (A100)"),
            ]
            axis.legend(handles=handles, frameon=False, fontsize=8, loc="best")
        paths = save(figure, out / "figure1")
        plt.close(figure)
    write_atomic(out / "figure1.csv", csv_text(_lines(points, paper)).encode())
    return [*paths, out / "figure1.csv"]


def _draw_point(axis: Any, point: Point, color: str, marker: str, lift: int) -> None:
    if point.low is not None and point.high is not None:
        axis.plot([point.seconds] * 2, [point.low, point.high], color=color, linewidth=1)
    axis.plot(point.seconds, point.quality, marker, color=color, markersize=6)
    steps = "" if point.steps in (None, 1) else f" ({point.steps} steps)"
    place = {"textcoords": "offset points", "xytext": (6, lift), "fontsize": 7, "color": color}
    axis.annotate(f"{point.display}{steps}", (point.seconds, point.quality), **place)


def _lines(points: Sequence[Point], paper: Sequence[Point]) -> list[dict[str, object]]:
    return [
        {
            "source": source,
            "method": point.display,
            "steps": point.steps,
            "seconds": point.seconds,
            "quality": point.quality,
            "ci95_low": point.low,
            "ci95_high": point.high,
        }
        for source, group in (("measured", points), ("paper", paper))
        for point in group
    ]
