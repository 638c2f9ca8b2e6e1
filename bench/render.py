"""Stage 4: a `Table` → Markdown for people, CSV for programs. The only place that rounds and marks.

Markdown: per test set the means, the paired differences to the reference row, and the half-widths of the intervals;
below, what the methods remark on themselves, and in a table of its own what the paper printed. A dash carries the
number of the footnote that says why; cells with one reason share a footnote. CSV: one line per method with full
precision, n and intervals, empty where nothing was measured; the paper's figures in columns of their own.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tabulate import tabulate

from bench.errors import UserError
from bench.records import Records, write_atomic
from bench.schema import Plan
from bench.summarize import SECONDS, Cell, HeaderCell, Section, Table, summarize
from bench.tables import pairs_of, paper_figures

DASH = "—"
PAPER_DISPLAY = {
    "psnr": "PSNR ↑",
    "ssim": "SSIM ↑",
    "lpips": "LPIPS ↓",
    "dists": "DISTS ↓",
    "fid": "FID ↓",
    "niqe": "NIQE ↓",
    "musiq": "MUSIQ ↑",
    "maniqa": "MANIQA ↑",
    "clipiqa": "CLIPIQA ↑",
}


@dataclass
class Footnotes:
    """Numbers for reasons, in the order they are first needed."""

    numbers: dict[tuple[str, ...], int] = field(default_factory=dict)

    def mark(self, reasons: tuple[str, ...]) -> str:
        number = self.numbers.setdefault(reasons, len(self.numbers) + 1)
        return f"{DASH} [{number}]"

    def lines(self) -> list[str]:
        return [f"- [{number}] {'; '.join(reasons)}" for reasons, number in self.numbers.items()]


def write_table(records: Records, plan: Plan, *, timing: bool = True, reference: str | None = None) -> str:
    """Writes TABLE.md and TABLE.csv beside the records, from the records alone; returns the Markdown.

    Args:
        timing: with the column of seconds.
        reference: method that differences refer to, instead of the plan's.

    Raises:
        UserError: the table has no row of that name.
    """
    if reference is not None:
        names = [method.name for method in plan.methods]
        if reference not in names:
            raise UserError(f"no row {reference!r} to refer differences to; the table has {', '.join(names)}")
        plan = replace(plan, reference=reference)
    table = summarize(records, plan, timing=timing, pairs=pairs_of(plan.table, plan.profile))
    paper = paper_figures(plan.paper) if plan.paper else []
    markdown = to_markdown(table, paper)
    write_atomic(records.out / f"{plan.table}.md", markdown.encode())
    write_atomic(records.out / f"{plan.table}.csv", to_csv(table, paper).encode())
    return markdown


def to_markdown(table: Table, paper: list[dict[str, str]]) -> str:
    """The whole document; ends with a newline. `paper` holds the published rows, as in `bench/paper`."""
    notes = Footnotes()
    parts = [_heading(table)]
    for section in table.sections:
        parts += _section(table, section, notes)
    if notes.numbers:
        parts.append("Not measured:\n\n" + "\n".join(notes.lines()))
    remarks = dict.fromkeys(
        f"- {row.display}: {remark}" for section in table.sections for row in section.rows for remark in row.remarks
    )
    if remarks:
        parts.append("Remarks:\n\n" + "\n".join(remarks))
    if paper:
        parts.append(_paper(table, _relevant(table, paper)))
    parts.append(_evidence(table))
    return "\n\n".join(parts) + "\n"


def to_csv(table: Table, paper: list[dict[str, str]]) -> str:
    """One line per method and test set; published rows follow, with nothing in the measured columns."""
    lines: list[dict[str, object]] = []
    for section in table.sections:
        for row in section.rows:
            line: dict[str, object] = {
                "source": "measured",
                "testset": section.testset,
                "method": row.method,
                "display": row.display,
                "steps": row.steps,
                "images": section.n,
                "seed": table.seed,
            }
            for column in table.columns:
                name, cell = column.name, row.cells[column.name]
                line |= {name: cell.value, f"{name}_n": cell.n, f"{name}_ci95_low": cell.low}
                line |= {f"{name}_ci95_high": cell.high}
            line |= _difference_columns(table, row.differences)
            line["diff_reference"] = section.reference if row.differences else None
            line["not_measured"] = " | ".join(
                f"{column.name}: {'; '.join(row.cells[column.name].reasons)}"
                for column in table.columns
                if row.cells[column.name].value is None
            )
            if row.remarks:
                line["remarks"] = " | ".join(row.remarks)
            lines.append(line)
        for pair in section.pairs:
            line = {"source": "pair", "testset": section.testset, "method": pair.method, "display": pair.display}
            line |= {"images": section.n, "seed": table.seed, "diff_reference": pair.against}
            lines.append(line | _difference_columns(table, pair.differences))
    for published in _relevant(table, paper):
        figures = {key: value for key, value in published.items() if key not in ("dataset", "method", "steps")}
        line = {"source": "paper", "testset": published.get("dataset")}
        line |= {"display": published["method"], "steps": published.get("steps")}
        lines.append(line | {f"paper_{key}": value for key, value in figures.items()})
    stream = io.StringIO()
    columns = list(dict.fromkeys(key for line in lines for key in line))
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)  # floats as their shortest exact text, None as nothing
    return stream.getvalue()


def _difference_columns(table: Table, differences: Mapping[str, Cell]) -> dict[str, object]:
    columns: dict[str, object] = {}
    for column in table.columns:
        if column.name != SECONDS:
            cell, name = differences.get(column.name, Cell(None, 0)), f"{column.name}_diff"
            columns |= {name: cell.value, f"{name}_ci95_low": cell.low, f"{name}_ci95_high": cell.high}
    return columns


def _heading(table: Table) -> str:
    sets = ", ".join(_set_name(section) for section in table.sections)
    return f"# {table.title}, measured on {sets}\n\nProfile `{table.profile}`, seed {table.seed}."


def _set_name(section: Section) -> str:
    of_all = "" if section.n == section.total else f" of {section.total}"
    return f"{section.display} (N = {section.n}{of_all})"


def _section(table: Table, section: Section, notes: Footnotes) -> list[str]:
    parts = [f"## {_set_name(section)}"] if len(table.sections) > 1 else []
    parts.append(
        _grid(
            ["Method", "Steps", *[_title(column) for column in table.columns]],
            [
                [row.display, _steps(row.steps), *[_value(row.cells[c.name], c, notes) for c in table.columns]]
                for row in section.rows
            ],
        )
    )
    explained = "Means of per-image values, **best** and *second best* by unrounded values."
    if any(column.name == "fid" for column in table.columns):
        explained += " FID depends on N: never compare it across test sets or subsets."
    parts.append(explained)
    measured = [c for c in table.columns if any(c.name in row.differences for row in section.rows)]
    if section.reference and measured:
        parts.append(f"Paired difference to {section.reference}, image by image: mean [95 % interval]")
        parts.append(
            _grid(
                ["Method", *[_title(column) for column in measured]],
                [
                    [row.display, *[_difference(row.differences.get(c.name), c) for c in measured]]
                    for row in section.rows
                    if row.differences
                ],
            )
        )
        parts.append("▲ better and ▼ worse than the reference beyond the interval; unmarked: within sampling error.")
    compared = [c for c in table.columns if any(c.name in pair.differences for pair in section.pairs)]
    if compared:
        finer = [replace(column, decimals=column.decimals + 2) for column in compared]  # these differ by little
        parts.append("What this table is about: each method against the other on the same base, image by image")
        parts.append(
            _grid(
                ["Method", "Against", *[_title(column) for column in compared]],
                [
                    [pair.display, pair.against, *[_difference(pair.differences.get(c.name), c) for c in finer]]
                    for pair in section.pairs
                ],
            )
        )
    spread = [c for c in table.columns if any(row.cells[c.name].low is not None for row in section.rows)]
    if spread:
        parts.append("Half-width of the 95 % interval of each mean (Student's t over images)")
        parts.append(
            _grid(
                ["Method", *[column.display for column in spread]],
                [
                    [row.display, *[_half_width(row.cells[c.name], c) for c in spread]]
                    for row in section.rows
                    if any(row.cells[c.name].low is not None for c in spread)
                ],
            )
        )
    return parts


def _title(column: HeaderCell) -> str:
    return f"{column.display} {'↑' if column.higher_is_better else '↓'}"


def _steps(steps: int | None) -> str:
    return DASH if steps is None else str(steps)


def _value(cell: Cell, column: HeaderCell, notes: Footnotes) -> str:
    if cell.value is None:
        return notes.mark(cell.reasons)
    text = f"{cell.value:.{column.decimals}f}"
    return {1: f"**{text}**", 2: f"*{text}*"}.get(cell.rank or 0, text)


def _difference(cell: Cell | None, column: HeaderCell) -> str:
    if cell is None or cell.value is None:
        return DASH
    digits = f"+.{column.decimals}f"
    if cell.low is None or cell.high is None:
        return f"{cell.value:{digits}}"
    mark = ""
    if cell.low > 0 or cell.high < 0:
        mark = " ▲" if (cell.value > 0) == column.higher_is_better else " ▼"
    return f"{cell.value:{digits}} [{cell.low:{digits}}, {cell.high:{digits}}]{mark}"


def _half_width(cell: Cell, column: HeaderCell) -> str:
    if cell.low is None or cell.high is None:
        return DASH
    return f"±{(cell.high - cell.low) / 2:.{column.decimals}f}"


def _relevant(table: Table, paper: list[dict[str, str]]) -> list[dict[str, str]]:
    """The paper's rows for the test sets of the table; all of them where the paper has none of these sets."""
    shown = {section.display for section in table.sections}
    return [row for row in paper if row.get("dataset") in shown] or paper


def _paper(table: Table, rows: list[dict[str, str]]) -> str:
    titles = {"dataset": "Dataset", "method": "Method", "steps": "Steps"} | PAPER_DISPLAY
    headers = [titles.get(key, key) for key in rows[0]]
    return (
        f"## The paper's own figures: {table.title.split(':')[0]} as printed in the TSD-SR paper, not measured here\n\n"
        + _grid(headers, [list(row.values()) for row in rows])
    )


def _evidence(table: Table) -> str:
    rows = [row for section in table.sections for row in section.rows]
    measured = {c.display for c in table.columns if any(row.cells[c.name].value is not None for row in rows)}
    lines = [f"- {display}: {protocol}" for display, protocol in table.protocols if display in measured]
    if any(column.name == SECONDS for column in table.columns):
        where = "; ".join(table.machines) or "nothing timed"
        note = "restoration alone, after one uncounted warm-up, without loading and file access"
        lines.append(f"- s/image: {note}; {where}")
    lines.append(f"- Versions: {', '.join(table.versions) or 'nothing measured'}")
    lines.append("- Every number comes from the per-image records beside this file (`records/`).")
    return "How it was measured:\n\n" + "\n".join(lines)


def _grid(headers: list[str], rows: list[list[str]]) -> str:
    """An aligned Markdown table: text columns left, numbers right."""
    text = {"Method", "Against", "Dataset"}
    align = ["left" if header in text else "right" for header in headers]
    return tabulate(rows, headers, tablefmt="pipe", colalign=align, disable_numparse=True)
