"""Measured against printed, cell by cell: which figures of a paper's table cannot be those of the same images?

A printed figure is a rounded mean over a test set. Measured on the very same images, with the same network and metric,
it must come out again up to its rounding and up to what laboratories differ by when they score the same files. A
larger gap has a cause: another seed, version or protocol, or a misprint. How large is too large? The 95 % interval of
the measured mean says how far the mean moves with other images of the same kind. No gap over the very same images can
be excused by sampling, so that one beyond that interval is marked: both figures cannot be right.

Figures of other papers for the same cell stand beside, from `bench/paper/others.csv`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.paper.tables import Printed, other_figures, paper_figures, printed_figures
from bench.records.records import Records
from bench.records.schema import Plan
from bench.report.csvs import csv_text
from bench.report.document import Chapter, Document, Entry, Grid
from bench.report.markdown import to_markdown
from bench.report.summarize import SECONDS, Cell, HeaderCell, Section, TableRow, summarize
from tsd.errors import UserError
from tsd.files import write_atomic

SPREAD = {
    "psnr": 0.01, "ssim": 0.0002, "lpips": 0.0001, "dists": 0.0003, "fid": 0.06, "niqe": 0.001, "musiq": 0.05,
    "maniqa": 0.0013, "clipiqa": 0.0016,
}  # fmt: skip
"""How far printed means of identical images (OSEDiff's, published) differ between papers. NIQE: between versions."""
PUBLISHED = " (published)"

Finding = Literal["as printed", "inside", "outside", "no interval", "other images"]
WORDS: dict[Finding, str] = {
    "as printed": "as printed",
    "inside": "differs, inside the interval",
    "outside": "✗ cannot both be right",
    "no interval": "differs, no interval",
    "other images": "part of the images",
}


@dataclass(frozen=True)
class Judgement:
    """The verdict on one cell.

    Attributes:
        gap: measured minus printed.
        slack: what rounding and laboratories explain.
    """

    finding: Finding
    gap: float
    slack: float

    @property
    def words(self) -> str:
        return WORDS[self.finding]


def judge(metric: str, measured: Cell, printed: str, total: int) -> Judgement:
    """Compares a measured mean with a printed figure.

    Args:
        measured: value, number of images and interval.
        printed: the figure as it is printed; the number of its digits is its rounding.
        total: number of images of the whole test set.

    Raises:
        UserError: `printed` is not a number.
    """
    value, half_unit = _read(printed)
    if measured.value is None:
        raise ValueError("an unmeasured cell has nothing to compare")
    gap, slack = measured.value - value, half_unit + SPREAD.get(metric, 0.0)
    if measured.n != total:
        finding: Finding = "other images"
    elif abs(gap) <= slack:
        finding = "as printed"
    elif measured.low is None or measured.high is None:
        finding = "no interval"
    elif measured.low - half_unit <= value <= measured.high + half_unit:
        finding = "inside"
    else:
        finding = "outside"
    return Judgement(finding, gap, slack)


def _read(printed: str) -> tuple[float, float]:
    """The number, and half a unit of its last digit."""
    try:
        value = float(printed)
    except ValueError:
        raise UserError(f"the printed figure {printed!r} is not a number") from None
    if not math.isfinite(value):
        raise UserError(f"the printed figure {printed!r} is not a finite number")
    return value, 0.5 * 10.0 ** -len(printed.partition(".")[2])


@dataclass(frozen=True)
class AuditedCell:
    """One cell that was both measured and printed."""

    testset: str
    method: str
    column: HeaderCell
    measured: Cell
    printed: Printed
    judgement: Judgement
    others: tuple[Printed, ...]


@dataclass(frozen=True)
class Audit:
    """All cells of a table, and what could not be compared, one sentence each."""

    title: str
    cells: tuple[AuditedCell, ...]
    notes: tuple[str, ...]

    def outside(self) -> tuple[AuditedCell, ...]:
        """The cells whose two figures cannot both be right."""
        return tuple(cell for cell in self.cells if cell.judgement.finding == "outside")


def audit(records: Records, plan: Plan) -> Audit:
    """Compares every measured cell of `plan` with what the paper printed.

    Raises:
        UserError: the paper printed no figure for any measured row, test set and metric.
    """
    table = summarize(records, plan, timing=False)
    columns = [column for column in table.columns if column.name != SECONDS]
    cells: list[AuditedCell] = []
    notes: list[str] = []
    for section in table.sections:
        printed_rows = _printed_rows(plan, section)
        for row in section.rows:
            cells += _row(section, row, columns)
        measured = {_paper_name(row) for row in section.rows if not row.reasons}
        absent = [name for name in printed_rows if name not in measured]
        if absent:
            notes.append(f"Printed for {section.display} and not measured here: {', '.join(absent)}.")
        if not printed_rows:
            notes.append(f"The paper prints nothing for {section.display}.")
    unmeasured = [c.display for c in columns if not any(cell.column is c for cell in cells)]
    if cells and unmeasured:
        notes.append(f"Not compared in any row, since not measured or not printed: {', '.join(unmeasured)}.")
    if not cells:
        raise UserError(
            f"nothing to audit in {plan.table} of {records.out}: no measured row is one that the paper prints. "
            + " ".join(notes)
        )
    return Audit(table.title, tuple(cells), tuple(notes))


def _printed_rows(plan: Plan, section: Section) -> list[str]:
    rows = paper_figures(plan.paper) if plan.paper else []
    return list(dict.fromkeys(row["method"] for row in rows if row.get("dataset") == section.display))


def _paper_name(row: TableRow) -> str:
    """The method's name in the paper: published images are those of the method itself."""
    return row.display.removesuffix(PUBLISHED)


def _row(section: Section, row: TableRow, columns: Sequence[HeaderCell]) -> list[AuditedCell]:
    found: list[AuditedCell] = []
    for column in columns:
        cell = row.cells[column.name]
        key = (section.display, _paper_name(row), row.steps, column.name)
        for printed in printed_figures(*key) if cell.value is not None else ():
            judgement = judge(column.name, cell, printed.text, section.total)
            others = tuple(other_figures(*key))
            found.append(AuditedCell(section.display, row.display, column, cell, printed, judgement, others))
    return found


def lay_out_audit(found: Audit) -> Document:
    """The audit as a document: one line a cell, the contradictions in words first."""
    sets = dict.fromkeys(cell.testset for cell in found.cells)
    chapters = tuple(_chapter(name, [cell for cell in found.cells if cell.testset == name]) for name in sets)
    lists = (
        [("Cannot both be right", tuple(_contradiction(cell) for cell in found.outside()))] if found.outside() else []
    )
    if found.notes:
        lists.append(("Not compared", found.notes))
    sources = dict.fromkeys(printed.source for cell in found.cells for printed in (cell.printed, *cell.others))
    numbers = _numbers(found.cells)
    listed = tuple(f"[{numbers[source]}] {source}" if source in numbers else source for source in sources)
    return Document(
        title=f"Audit of {found.title}",
        about="Measured from the per-image records beside this file, against what is printed.",
        chapters=chapters,
        lists=(*lists, ("Sources of the printed figures", listed)),
    )


def _numbers(cells: Sequence[AuditedCell]) -> Mapping[str, int]:
    """The number of each source other than the paper."""
    sources = dict.fromkeys(printed.source for cell in cells for printed in cell.others)
    return {source: number for number, source in enumerate(sources, start=1)}


def _chapter(testset: str, cells: Sequence[AuditedCell]) -> Chapter:
    numbers = _numbers(cells)
    rows = tuple(
        (
            Entry(cell.method),
            Entry(f"{cell.column.display} {'↑' if cell.column.higher_is_better else '↓'}"),
            Entry(_measured(cell)),
            Entry(cell.printed.text),
            Entry(f"{cell.judgement.gap:+.{cell.column.decimals}f}"),
            Entry(cell.judgement.words, "bold" if cell.judgement.finding == "outside" else "plain"),
            Entry(", ".join(f"{other.text} [{numbers[other.source]}]" for other in cell.others)),
        )
        for cell in cells
    )
    grid = Grid(
        caption="",
        headers=("Method", "Metric", "Measured [95 % interval]", "Printed", "Gap", "Verdict", "Printed elsewhere"),
        rows=rows,
        legend="The interval says how far a mean moves with other images; these are the very same images, so that a "
        "gap beyond it has another cause than sampling. As printed: within the rounding of the printed figure and what "
        "laboratories differ by on identical images. Inside the interval a gap may come from another seed, another "
        "version of the weights or of the metric.",
    )
    n = max(cell.measured.n for cell in cells)
    return Chapter(f"{testset} (N = {n})", f"Measured and printed figures, {testset} (N = {n})", (grid,))


def _measured(cell: AuditedCell) -> str:
    digits, measured = f".{cell.column.decimals}f", cell.measured
    if measured.low is None or measured.high is None:
        return f"{measured.value:{digits}}"
    return f"{measured.value:{digits}} [{measured.low:{digits}}, {measured.high:{digits}}]"


def _contradiction(cell: AuditedCell) -> str:
    """One sentence, with what others print for the cell."""
    digits = cell.column.decimals
    text = (
        f"{cell.column.display} of {cell.method} on {cell.testset}: {cell.printed.text} printed in "
        f"{cell.printed.source}, {cell.measured.value:.{digits}f} measured on the same {cell.measured.n} images, a gap "
        f"of {abs(cell.judgement.gap):.{digits}f}"
    )
    nearer = [o for o in cell.others if abs(float(o.text) - (cell.measured.value or 0)) < abs(cell.judgement.gap) / 2]
    if nearer:
        text += f"; nearer to the measured one: {', '.join(f'{other.text} in {other.source}' for other in nearer)}"
    return f"{text}."


def write_audit(records: Records, plan: Plan) -> tuple[Audit, str]:
    """Writes TABLE.audit.md and TABLE.audit.csv beside the records; returns the audit and the Markdown."""
    found = audit(records, plan)
    markdown = to_markdown(lay_out_audit(found))
    write_atomic(records.out / f"{plan.table}.audit.md", markdown.encode())
    write_atomic(records.out / f"{plan.table}.audit.csv", csv_text(_lines(found)).encode())
    return found, markdown


def _lines(found: Audit) -> list[dict[str, object]]:
    return [
        {
            "testset": cell.testset,
            "method": cell.method,
            "metric": cell.column.name,
            "n": cell.measured.n,
            "measured": cell.measured.value,
            "ci95_low": cell.measured.low,
            "ci95_high": cell.measured.high,
            "printed": cell.printed.text,
            "source": cell.printed.source,
            "gap": cell.judgement.gap,
            "slack": cell.judgement.slack,
            "finding": cell.judgement.finding,
            "printed_elsewhere": " | ".join(f"{other.text} ({other.source})" for other in cell.others),
        }
        for cell in found.cells
    ]
