"""Lays out a sweep for the renderers of bench/report: arms and references, comparisons, health of the runs, prose."""

import math
from collections.abc import Iterator, Mapping, Sequence

from bench.ablation.domain import Domain, Measure
from bench.ablation.experiment import Experiment, measures_of, shipped
from bench.ablation.records import Row, SweepRecords
from bench.ablation.report.prose import interval, sentences, signed, signs
from bench.ablation.report.published import Published, column_title, row_name
from bench.ablation.report.results import Findings, Result, label, reasons_untold
from bench.provenance import machine_name
from bench.report.document import DASH, PAPER_DISPLAY, PAPER_FACTS, Chapter, Document, Entry, Grid
from bench.report.summarize import mean_ci95

LOGGED = {
    "critic_gain": "Critic's gain",
    "data_grad_rms": "Data gradient, rms",
    "tsd_grad_rms": "TSD gradient, rms",
    "grad_cosine": "Cosine of the two",
}
"""Columns of the training log that tell a healthy run from a sick one."""


def lay_out(
    experiment: Experiment, domain: Domain, records: SweepRecords, findings: Findings, published: Published
) -> Document:
    """The document of a sweep."""
    grids = [
        *_means(experiment, domain, records, published),
        _comparisons(experiment, findings.results),
        _health(experiment, records),
    ]
    title = f"{experiment.table.replace('table', 'Table ')}, " if experiment.table else ""
    chapters = [Chapter(None, f"{experiment.name}: {experiment.question}", tuple(grid for grid in grids if grid))]
    chapters += _paper(published)
    shows = sentences(experiment, findings)
    return Document(
        title=f"{title}{experiment.name}",
        about=experiment.question,
        chapters=tuple(chapters),
        lists=(
            *((("What it shows", shows),) if shows else ()),
            ("How it was measured", tuple(_evidence(experiment, records, findings))),
        ),
    )


def rows_of(experiment: Experiment, records: SweepRecords) -> list[tuple[str, str | None, dict[int, Row]]]:
    """(label, arm or None, cells by seed) for each arm that has a cell, then for each reference."""
    arms = [(arm.label, arm.name, records.of_arm(arm.name)) for arm in experiment.arms]
    references = [(name, None, records.of_reference(name)) for name in records.references()]
    return [row for row in [*arms, *references] if row[2]]


def scores_of(cells: Mapping[int, Row], measure: Measure) -> list[float]:
    return [row.scores[measure.name] for row in cells.values()]


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _means(experiment: Experiment, domain: Domain, records: SweepRecords, published: Published) -> list[Grid]:
    """One table, or one for each data set that the file holds measures against."""
    groups: dict[str | None, list[Measure]] = {}
    for measure in measures_of(experiment.metrics, domain):
        groups.setdefault(published.dataset_of(measure.name), []).append(measure)
    return [_means_of(measures, name, experiment, records, published) for name, measures in groups.items()]


def _means_of(
    measures: Sequence[Measure],
    dataset: str | None,
    experiment: Experiment,
    records: SweepRecords,
    published: Published,
) -> Grid:
    mapped = [published.column_of[measure.name] for measure in measures if measure.name in published.column_of]
    columns = list(dict.fromkeys(mapped))
    shown = rows_of(experiment, records)
    entries: list[tuple[Entry, ...]] = []
    for title, arm, cells in shown:
        cpu_seconds = mean([row.cpu_seconds for row in cells.values()])
        entries.append(
            (
                Entry(title),
                Entry(str(len(cells))),
                *(Entry(_mean_text(scores_of(cells, measure), measure)) for measure in measures),
                *(Entry(" / ".join(published.cells(arm or "", column)) or DASH) for column in columns),
                Entry(DASH if cpu_seconds is None else f"{cpu_seconds:.1f}"),
            )
        )
    legend = "Means over seeds ± half-width of the 95 % interval (Student's t over seeds). CPU s: of one cell."
    if columns and dataset is None:
        legend += f" The paper's figures, on other data, are for {' / '.join(published.datasets())}."
    elif columns:
        legend += f" The paper's figures are its own for {dataset}."
    absent = [arm.label for arm in experiment.arms if not records.of_arm(arm.name)]
    return Grid(
        caption=dataset or "",
        headers=(
            "Arm",
            "Seeds",
            *(heading(measure) for measure in measures),
            *(f"paper's {column_title(column)}" for column in columns),
            "CPU s",
        ),
        rows=tuple(entries),
        legend=legend,
        notes=(f"Not measured yet: {', '.join(absent)}.",) if absent else (),
    )


def heading(measure: Measure) -> str:
    """ "PSNR (dB) ↑"; no arrow where neither direction is better."""
    arrow = {True: " ↑", False: " ↓", None: ""}[measure.higher_is_better]
    return f"{measure.title}{arrow}"


def _mean_text(values: Sequence[float], measure: Measure) -> str:
    average, low, high = mean_ci95(values)
    if low is None or high is None:
        return f"{average:.{measure.digits}f}"
    return f"{average:.{measure.digits}f} ± {(high - low) / 2:.{measure.digits}f}"


def _comparisons(experiment: Experiment, results: Sequence[Result]) -> Grid | None:
    if not results:
        return None
    family = results[0].family
    monte_carlo = sum(not result.paired.exact for result in results)
    p = "p: exact sign-flip test over seeds"
    if monte_carlo:
        p = "p: sign-flip test over seeds (beyond 16 seeds by 100,000 random flips with a fixed seed)"
    return Grid(
        caption="Paired differences within seeds, first minus second: mean [95 % interval over seeds]",
        headers=(
            "Arm", "Against", "Metric", "Difference", "Seeds and images", "Signs", "d_z", "p", "Holm", "Verdict",
            "Seeds for .8",
        ),
        rows=tuple(_comparison(experiment, result) for result in results),
        legend=f"{p}; Holm: corrected over the {family} test{'s' if family != 1 else ''} (comparisons × metrics) of "
        "this table. Seeds and images: interval of a bootstrap over both, crossed, with the images "
        "that are recorded one by one. d_z: mean over standard deviation "
        "of the differences. Seeds for .8: how many find the observed effect with probability .8 (t test, p < .05).",
        notes=(
            *(f"Cannot be told: {reason}." for reason in reasons_untold(results)),
            *(_outside(experiment, result) for result in results if result.difference.outside),
        ),
    )  # fmt: skip


def _outside(experiment: Experiment, result: Result) -> str:
    difference = result.difference
    total = len(difference.outside) + len(difference.seeds)
    return (
        f"{label(experiment, difference.of)}, {difference.measure.label}: outside the range of the curve "
        f"`{difference.against}` in {len(difference.outside)} of {total} seeds."
    )


def _comparison(experiment: Experiment, result: Result) -> tuple[Entry, ...]:
    difference, test = result.difference, result.paired
    digits = difference.measure.digits + 1
    against = label(experiment, difference.against)
    if difference.matched_x is not None:
        against += f", equal {difference.matched_x.label}"
    return (
        Entry(label(experiment, difference.of)),
        Entry(against),
        Entry(difference.measure.label),
        Entry(f"{signed(test.mean, digits)}{interval(test.low, test.high, digits)}"),
        Entry(interval(*difference.images, digits).strip() if difference.images else DASH),
        Entry(signs(result).removesuffix("s").removesuffix(" seed")),
        Entry(DASH if test.d_z is None else f"{test.d_z:+.2f}"),
        Entry(f"{test.p:.2g}"),
        Entry(f"{result.holm_p:.2g}"),
        Entry(result.verdict, "bold" if result.verdict in ("lower", "higher") else "plain"),
        Entry(DASH if result.seeds_needed is None else str(result.seeds_needed)),
    )


def _health(experiment: Experiment, records: SweepRecords) -> Grid | None:
    shown = [(arm.label, records.of_arm(arm.name)) for arm in experiment.arms]
    logged = [name for name in LOGGED if any(name in row.log for _, cells in shown for row in cells.values())]
    if not logged:
        return None
    rows: list[tuple[Entry, ...]] = []
    for title, cells in shown:
        if cells:
            values = [mean([row.log.get(name) for row in cells.values()]) for name in logged]
            rows.append((Entry(title), *(Entry(DASH if value is None else f"{value:.3g}") for value in values)))
    legend = "Means over the second half of the training and over seeds."
    if "critic_gain" in logged:
        legend += " A critic's gain below zero means that the critic does not follow the student: its signal is noise."
    return Grid("Health of the runs", ("Arm", *(LOGGED[name] for name in logged)), tuple(rows), legend)


def _paper(published: Published) -> list[Chapter]:
    """What the paper printed, whole."""
    if not published.figures:
        return []
    keys = ["dataset", *published.columns]
    grid = Grid(
        caption="",
        headers=("Arm", *(PAPER_FACTS.get(key, PAPER_DISPLAY.get(key, key)) for key in keys)),
        rows=tuple((Entry(row_name(row)), *(Entry(row[key]) for key in keys)) for row in published.figures),
    )
    number = str(published.table).removeprefix("table")
    subject = f"The paper's own figures, as printed in its Table {number}, not measured here"
    return [Chapter(subject, subject, (grid,))]


def _evidence(experiment: Experiment, records: SweepRecords, findings: Findings) -> Iterator[str]:
    cells = [row for row in records.rows if row.arm is not None]
    seeds = sorted({row.seed for row in records.rows})
    yield (
        f"Domain `{experiment.domain}`, {len(cells)} cells, seeds {_ranges(seeds)}; within a seed all arms share start "
        "weights, data and every random draw, and seeds vary all of them."
    )
    file = experiment.name if experiment.name in {path.stem for path in shipped()} else f"{experiment.name}.toml"
    yield f"Command: `bench sweep {file} --seeds {_ranges(seeds).replace('–', '-').replace(' ', '')}`."
    if experiment.settings:
        shown = ", ".join(f"{key} = {value}" for key, value in experiment.settings.items())
        yield f"Settings of all arms: {shown}."
    total = mean([row.cpu_seconds for row in cells])
    if total is not None:
        interrupted = sum(row.calls > 1 for row in cells)
        rest = f"; interrupted and continued: {interrupted} of the cells" if interrupted else ""
        yield f"Cost: {total * len(cells) / 60:.1f} CPU minutes in all{rest}."
    made = [records.environments.get(key, {}) for key in dict.fromkeys(row.environment for row in records.rows)]
    # Environments may differ in what is not printed.
    yield from dict.fromkeys(
        f"Made on {machine_name(found)}, {found.get('threads')} thread(s) a process, "
        f"torch {found.get('versions', {}).get('torch')}."
        for found in made
    )
    commits = sorted({row.commit[:10] + row.commit[40:] for row in records.rows if row.commit})
    code = sorted({row.code for row in records.rows})
    yield f"Training code {', '.join(code) or DASH}, commit {', '.join(commits) or DASH}."
    yield "`comparisons.csv` has every figure unrounded; `forest.png` and `curves.png` are drawn from the same records."


def _ranges(seeds: Sequence[int]) -> str:
    """ "0–11, 20" """
    parts: list[str] = []
    start = None
    for seed in seeds:
        if start is None:
            start = seed
        if seed + 1 not in seeds:
            parts.append(str(start) if start == seed else f"{start}–{seed}")
            start = None
    return ", ".join(parts)
