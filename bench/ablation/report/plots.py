"""The plots of a sweep: a forest of paired differences, and learning curves with bands over seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.ablation.domain import Domain, Measure
from bench.ablation.experiment import Experiment, measures_of
from bench.ablation.records import SweepRecords
from bench.ablation.report.results import Result, label
from bench.ablation.report.tables import heading
from bench.report.plots import COLORS, STYLE, pyplot, save
from bench.report.summarize import mean_ci95

DASHES = ("-", "--", ":", "-.")
"""Beyond the eight colours the dashes differ."""
BETTER, WORSE, SIGNIFICANT, UNDECIDED = "#0072B2", "#D55E00", "#000000", "#8A8A8A"


def draw_forest(experiment: Experiment, domain: Domain, results: Sequence[Result], out: Path) -> list[Path]:
    """Writes forest.png and forest.svg, a panel for each measure; nothing without results. Returns the files."""
    if not results:
        return []
    plt = pyplot()
    present = {result.difference.measure.name for result in results}
    measures = [measure for measure in domain.measures if measure.name in present]
    keys = list(dict.fromkeys(_key(result) for result in results))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            len(measures),
            figsize=(2.6 + 2.6 * len(measures), 1.3 + 0.36 * len(keys)),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, measure in zip(axes[0], measures, strict=True):
            _forest_panel(axis, measure, [r for r in results if r.difference.measure == measure], keys)
        titles = [_title(experiment, next(result for result in results if _key(result) == key)) for key in keys]
        axes[0][0].set_yticks(range(len(keys)), titles)
        axes[0][0].set_ylim(len(keys) - 0.4, -0.6)
        handles = [
            plt.Line2D([], [], marker="o", linestyle="-", color=color, markerfacecolor=fill, label=text)
            for color, fill, text in (
                (BETTER, BETTER, "better, p < .05 after Holm"),
                (WORSE, WORSE, "worse, p < .05 after Holm"),
                (UNDECIDED, "white", "no significant difference, or cannot be told"),
            )
        ]
        handles.append(plt.Line2D([], [], marker="|", linestyle="", color=UNDECIDED, alpha=0.6, label="single seeds"))
        if any(result.paper_difference is not None for result in results):
            text = "an effect of the paper's relative size"
            handles.append(
                plt.Line2D([], [], marker="D", linestyle="", color="black", markersize=4, mfc="none", label=text)
            )
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        paths = save(figure, out / "forest")
        plt.close(figure)
    return paths


def draw_curves(experiment: Experiment, domain: Domain, records: SweepRecords, out: Path) -> list[Path]:
    """Writes curves.png and curves.svg, a row for each measure that the curves have. Returns the files.

    On the left every arm, with bands that leave out what all arms of a seed share; on the right, where there are
    comparisons, the paired differences.
    """
    cells = [(arm.label, records.of_arm(arm.name)) for arm in experiment.arms]
    arms = [
        (title, {seed: row.curve for seed, row in rows.items()})
        for title, rows in cells
        if any(row.curve for row in rows.values())
    ]
    logged = {name for _, curves in arms for curve in curves.values() for point in curve for name in point}
    measures = [measure for measure in measures_of(experiment.metrics, domain) if measure.name in logged]
    if not measures:
        return []
    pairs = [
        (
            f"{label(experiment, comparison.of)} − {label(experiment, comparison.against)}",
            _paired(records, comparison.of, comparison.against),
        )
        for comparison in experiment.comparisons
    ]
    pairs = [(title, rows) for title, rows in pairs if rows]
    plt = pyplot()
    with plt.rc_context(STYLE):
        columns = 2 if pairs else 1
        size = (4.6 * columns, 1.9 * len(measures) + 0.15 * max(len(arms), len(pairs)) + 0.6)
        figure, axes = plt.subplots(
            len(measures), columns, figsize=size, squeeze=False, sharex=True, layout="constrained"
        )
        for row, measure in zip(axes, measures, strict=True):
            bands = within_seeds([curves for _, curves in arms], measure.name)
            for number, ((title, _), band) in enumerate(zip(arms, bands, strict=True)):
                _band(row[0], number, title, band)
            for number, (title, rows) in enumerate(pairs):
                _band(row[1], number, title, curve_band(rows, measure.name))
                row[1].axhline(0, color="black", linewidth=0.8)
            row[0].set_ylabel(heading(measure), fontsize=9)
        figure.align_ylabels()
        titles = ("mean over seeds", "paired difference")
        bands_of = ("95 %, without what all arms of a seed share", "95 %")
        for column, (title, bands_title) in enumerate(zip(titles[:columns], bands_of[:columns], strict=True)):
            axes[0][column].set_title(title, fontsize=9)
            bottom = axes[-1][column]
            bottom.set_xlabel("step of the student")
            legend = {"title": f"bands: {bands_title}", "title_fontsize": 7, "alignment": "left"}
            bottom.legend(loc="upper left", bbox_to_anchor=(0, -0.32), frameon=False, fontsize=7, **legend)
        paths = save(figure, out / "curves")
        plt.close(figure)
    return paths


Curve = Sequence[Mapping[str, float]]
Band = tuple[list[float], list[float], list[float], list[float]]
"""Steps, means, and the lower and upper ends of an interval."""


def within_seeds(arms: Sequence[Mapping[int, Curve]], name: str) -> list[Band]:
    """The band of each arm, given its curves by seed, as wide as the seeds leave it open which arm is ahead.

    From every value the mean of its seed over all arms is taken away before the intervals are computed, and these are
    widened by √(J / (J − 1)) for J arms (Cousineau 2005, Morey 2008). Between steps that all arms have, the width is
    interpolated. Without two seeds or a step that every arm has, or with a single arm, they are those of `curve_band`.
    """
    bands = [curve_band(list(curves.values()), name) for curves in arms]
    seeds = sorted(set(arms[0]).intersection(*arms[1:]))
    steps = [step for step in bands[0][0] if all(step in band[0] for band in bands)]
    if len(arms) < 2 or len(seeds) < 2 or not steps:
        return bands
    by_step = [[{point["step"]: point[name] for point in curves[seed]} for seed in seeds] for curves in arms]
    values = np.array([[[curve[step] for step in steps] for curve in curves] for curves in by_step])
    own = values - values.mean(axis=0)
    widened = math.sqrt(len(arms) / (len(arms) - 1))
    found: list[Band] = []
    for (own_steps, means, _, _), rest in zip(bands, own, strict=True):
        intervals = [mean_ci95([float(value) for value in column]) for column in rest.T]
        halves = [0.0 if high is None else widened * (high - average) for average, _, high in intervals]
        pairs = list(zip(means, np.interp(own_steps, steps, halves).tolist(), strict=True))
        found.append((own_steps, means, [mean - half for mean, half in pairs], [mean + half for mean, half in pairs]))
    return found


def curve_band(curves: Sequence[Curve], name: str) -> Band:
    """(steps, means, lower, upper ends of the 95 % intervals over seeds) of one measure's learning curves.

    Only the steps that every curve has. With a single curve the band is the line itself.
    """
    by_step = [{point["step"]: point[name] for point in curve if name in point} for curve in curves]
    steps = sorted(step for step in by_step[0] if all(step in values for values in by_step))
    bands = [mean_ci95([values[step] for values in by_step]) for step in steps]
    return (
        steps,
        [average for average, _, _ in bands],
        [average if low is None else low for average, low, _ in bands],
        [average if high is None else high for average, _, high in bands],
    )


def _paired(records: SweepRecords, of: str, against: str) -> list[Curve]:
    """For each seed that both arms have, the curve of their difference."""
    first, second = records.of_arm(of), records.of_arm(against)
    curves: list[Curve] = []
    for seed in sorted(first.keys() & second.keys()):
        others = {point["step"]: point for point in second[seed].curve}
        curves.append(
            [
                {"step": point["step"]}
                | {name: point[name] - other[name] for name in point if name != "step" and name in other}
                for point in first[seed].curve
                if (other := others.get(point["step"])) is not None
            ]
        )
    return curves


def _band(axis: Any, number: int, title: str, band: Band) -> None:
    steps, means, low, high = band
    color, dash = COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]
    axis.plot(steps, means, color=color, linestyle=dash, label=title, linewidth=1.4)
    axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    axis.tick_params(labelsize=7)


def _forest_panel(axis: Any, measure: Measure, results: Sequence[Result], keys: Sequence[tuple[str, ...]]) -> None:
    axis.axvline(0, color="black", linewidth=0.8)
    for result in results:
        row, test = keys.index(_key(result)), result.paired
        color = _color(result)
        differences = np.array(result.difference.differences)
        axis.plot(differences, np.full(len(differences), row + 0.22), "|", color=color, alpha=0.5, markersize=5)
        if test.low is not None:
            axis.plot([test.low, test.high], [row, row], color=color, linewidth=1.6, solid_capstyle="butt")
        fill = "white" if color == UNDECIDED else color
        axis.plot(test.mean, row, "o", color=color, markerfacecolor=fill, markersize=5)
        if result.paper_difference is not None:
            axis.plot(result.paper_difference, row, "D", color="black", markersize=4, markerfacecolor="none")
    unit = f" ({measure.unit})" if measure.unit else ""
    axis.set_title(f"{measure.label}{unit}", fontsize=9)
    axis.set_xlabel({True: "better →", False: "← better", None: ""}[measure.higher_is_better])
    axis.tick_params(axis="x", labelsize=7)
    axis.locator_params(axis="x", nbins=5)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def _color(result: Result) -> str:
    if result.verdict not in ("lower", "higher"):
        return UNDECIDED
    return {True: BETTER, False: WORSE, None: SIGNIFICANT}[result.better()]


def _key(result: Result) -> tuple[str, ...]:
    difference = result.difference
    return (difference.of, difference.against, difference.matched_x.name if difference.matched_x else "")


def _title(experiment: Experiment, result: Result) -> str:
    difference = result.difference
    equal = f" at equal {difference.matched_x.label}" if difference.matched_x else ""
    return f"{label(experiment, difference.of)} − {label(experiment, difference.against)}{equal}"
