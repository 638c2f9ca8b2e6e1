"""A sweep for programs: the rows of its table and its comparisons as CSV, unrounded."""

from collections.abc import Sequence

from bench.ablation.domain import Domain
from bench.ablation.experiment import Experiment, measures_of
from bench.ablation.records import SweepRecords
from bench.ablation.report.published import Published, row_name
from bench.ablation.report.results import Result
from bench.ablation.report.tables import mean, rows_of, scores_of
from bench.report.csvs import csv_text
from bench.report.summarize import mean_ci95


def table_csv(experiment: Experiment, domain: Domain, records: SweepRecords, published: Published) -> str:
    """One line for each arm and reference, then the paper's rows with empty cells in the measured columns."""
    lines: list[dict[str, object]] = []
    for title, arm, cells in rows_of(experiment, records):
        line: dict[str, object] = {
            "source": "arm" if arm else "reference",
            "name": arm or title,
            "label": title,
            "paper_row": published.row_of.get(arm or ""),
            "seeds": len(cells),
        }
        for measure in measures_of(experiment.metrics, domain):
            average, low, high = mean_ci95(scores_of(cells, measure))
            line |= {measure.name: average, f"{measure.name}_ci95_low": low, f"{measure.name}_ci95_high": high}
        for cost in ("seconds", "cpu_seconds", "peak_mib"):
            line[cost] = mean([getattr(row, cost) for row in cells.values()])
        lines.append(line)
    for row in published.figures:
        figures = {f"paper_{column}": row[column] for column in published.columns}
        lines.append({"source": "paper", "name": row_name(row), "paper_dataset": row["dataset"], **figures})
    return csv_text(lines)


def comparisons_csv(results: Sequence[Result]) -> str:
    """One line for each comparison in each measure."""
    return csv_text([_comparison(result) for result in results])


def _comparison(result: Result) -> dict[str, object]:
    difference, test = result.difference, result.paired
    low, high = difference.images or (None, None)
    return {
        "of": difference.of,
        "against": difference.against,
        "equal": difference.matched_x.name if difference.matched_x else None,
        "metric": difference.measure.name,
        "seeds": test.n,
        "seeds_outside_curve": len(difference.outside),
        "difference": test.mean,
        "ci95_low": test.low,
        "ci95_high": test.high,
        "seeds_and_images_ci95_low": low,
        "seeds_and_images_ci95_high": high,
        "below_zero": test.below,
        "above_zero": test.above,
        "d_z": test.d_z,
        "p": test.p,
        "p_exact": test.exact,
        "holm_p": result.holm_p,
        "family": result.family,
        "verdict": result.verdict,
        "seeds_for_power_08": result.seeds_needed,
        "paper_relative": result.order.relative if result.order else None,
        "paper_difference": result.paper_difference,
        "seeds_for_power_08_paper": result.seeds_needed_paper,
        "paper_order": result.standing,
        "differences": " ".join(
            f"{seed}:{value!r}" for seed, value in zip(difference.seeds, difference.differences, strict=True)
        ),
    }
