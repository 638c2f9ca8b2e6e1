"""Lays out a `Table` for Markdown and LaTeX. This is the only module that rounds and marks.

Each test set gets the means, the paired differences to the reference row, and the half-widths of the intervals. The
paper's figures, the remarks of the methods and the conditions of measurement follow. A row or column without any value
becomes a sentence below the table; a single missing cell becomes a dash with a footnote.

Text is plain, with commands and file names between backticks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.report.reasons import Reason, merged_reason, sentences, short_reason
from bench.report.summarize import FEWEST, SECONDS, Cell, HeaderCell, Section, Table, TableRow

DASH = "—"
TIE = "⁼"
TEXT_COLUMNS = (
    "Method", "Against", "Dataset", "Base model", "Arm", "Metric", "Verdict", "Printed elsewhere", "Variant", "Source",
    "Figure", "Category",
)  # fmt: skip
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
PAPER_FACTS = {"dataset": "Dataset", "method": "Method", "steps": "Steps", "base_model": "Base model"}
FACTS = PAPER_FACTS | {
    "variant": "Variant", "seconds": "Seconds", "source": "Source", "figure": "Figure", "category": "Category",
    "approval_percent": "Approval, %",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One printed cell; `tied` puts `TIE` after it."""

    text: str
    style: Literal["plain", "bold", "italic"] = "plain"
    tied: bool = False


@dataclass(frozen=True)
class Grid:
    """One printed table.

    Attributes:
        caption: what the table shows, printed above it; empty for the first of a chapter, whose heading says it.
        headers: columns named in `TEXT_COLUMNS` hold text, all others numbers.
        rows: cells from left to right; without rows only the notes are printed.
        legend: how to read the table, printed below it; may be empty.
        notes: what is missing and why, one line each.
    """

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    legend: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chapter:
    """Grids under one heading; `heading` is None if the document's title is enough.

    `subject` says what the grids are about, for captions ("One-step methods, measured on Mini (N = 18)").
    """

    heading: str | None
    subject: str
    grids: tuple[Grid, ...]


@dataclass(frozen=True)
class Document:
    """Everything to print, in the order of the fields. `lists` are (title, lines)."""

    title: str
    about: str
    chapters: tuple[Chapter, ...]
    lists: tuple[tuple[str, tuple[str, ...]], ...]


def lay_out(table: Table, paper: Sequence[dict[str, str]]) -> Document:
    """The document of a table.

    Args:
        paper: the rows that the paper printed, as in `bench/paper`; empty if there are none.
    """
    several = len(table.sections) > 1
    chapters = [_chapter(table, section, several) for section in table.sections]
    if paper:
        chapters.append(_paper(table, relevant_rows(table, paper)))
    remarks = [
        f"{row.display}: {remark}" for section in table.sections for row in section.rows for remark in row.remarks
    ]
    lists = [("Remarks", tuple(dict.fromkeys(remarks)))] if remarks else []
    return Document(
        title=f"{table.title}, measured on {', '.join(set_name(section) for section in table.sections)}",
        about=f"Profile `{table.profile}`, seed {table.seed}.",
        chapters=tuple(chapters),
        lists=(*lists, ("How it was measured", _evidence(table))),
    )


def relevant_rows(table: Table, paper: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The paper's rows for the test sets of the table; all rows if the paper has none of these sets."""
    shown = {section.display for section in table.sections}
    return [row for row in paper if row.get("dataset") in shown] or list(paper)


def evidence_of(cell: Cell, column: HeaderCell) -> str:
    """What stands behind a printed mean: its 95 % interval if it has one, and the number of images."""
    if cell.value is None:
        return "; ".join(cell.reasons)
    images = f"{cell.n} image{'' if cell.n == 1 else 's'}"
    if cell.low is None or cell.high is None:
        return f"no interval, {images}"
    low, high = f"{cell.low:.{column.decimals}f}", f"{cell.high:.{column.decimals}f}"
    return f"95 % interval {low} to {high}, {images}"


def set_name(section: Section) -> str:
    """The test set and its number of images: "RealSR (N = 10 of 100)"."""
    of_all = "" if section.n == section.total else f" of {section.total}"
    return f"{section.display} (N = {section.n}{of_all})"


def _chapter(table: Table, section: Section, several: bool) -> Chapter:
    grids = [_means(table, section), _differences(table, section), _pairs(table, section), _half_widths(table, section)]
    return Chapter(
        heading=set_name(section) if several else None,
        subject=f"{_without_number(table.title)}, measured on {set_name(section)}",
        grids=tuple(grid for grid in grids if grid is not None),
    )


def _without_number(title: str) -> str:
    """The title without its number, for LaTeX: "One-step methods" for "Table 1: one-step methods"."""
    text = title.partition(": ")[2] or title
    return text[:1].upper() + text[1:]


def _means(table: Table, section: Section) -> Grid:
    rows = [row for row in section.rows if not row.reasons]
    columns = [c for c in table.columns if any(row.cells[c.name].value is not None for row in rows)]
    unrestored = [(row.display, short_reason(row.reasons, [row.display])) for row in section.rows if row.reasons]
    unmeasured = [
        (column.display, merged_reason(_reason(row, column) for row in rows))
        for column in table.columns
        if rows and column not in columns
    ]
    footnotes: dict[Reason, int] = {}
    entries = [
        (Entry(row.display), Entry(_steps(row.steps)), *(_value(row, column, footnotes) for column in columns))
        for row in rows
    ]
    notes = [f"[{number}] {reason.phrase()}" for reason, number in footnotes.items()]
    notes += [*sentences(unmeasured), *sentences(unrestored)]
    if not all(reason.complete for reason in [*footnotes, *(reason for _, reason in unmeasured + unrestored)]):
        notes.append(
            f"`bench list NAME` says what a metric or a method needs; `{table.name}.reasons.csv` has reasons in full."
        )
    return Grid(
        caption="",
        headers=("Method", "Steps", *(_title(column) for column in columns)),
        rows=tuple(entries),
        legend=_legend(columns, rows),
        notes=tuple(notes),
    )


def _reason(row: TableRow, column: HeaderCell) -> Reason:
    subjects = [f"{column.display} of {row.display}", column.display, row.display]
    return short_reason(row.cells[column.name].reasons, subjects)


def _value(row: TableRow, column: HeaderCell, footnotes: dict[Reason, int]) -> Entry:
    """The value with its mark, or a dash with the number of its footnote; equal reasons share a footnote."""
    cell = row.cells[column.name]
    if cell.value is None:
        number = footnotes.setdefault(_reason(row, column), len(footnotes) + 1)
        return Entry(f"{DASH} [{number}]")
    text = f"{cell.value:.{column.decimals}f}"
    if cell.rank is None:
        return Entry(text)
    return Entry(text, "bold" if cell.rank == 1 else "italic", cell.tied)


def _legend(columns: Sequence[HeaderCell], rows: Sequence[TableRow]) -> str:
    if not columns:
        return ""
    text = "Means over the images."
    cells = [row.cells[column.name] for row in rows for column in columns]
    if any(cell.rank for cell in cells):
        tied = f"; {TIE}: tied, where it includes zero" if any(cell.tied for cell in cells) else ""
        text += (
            " Bold: best, italic: second best, where the 95 % interval of the paired difference, image by image, "
            f"excludes zero{tied}."
        )
    if any(column.name == "fid" for column in columns):
        text += " FID depends on N and has neither interval nor mark: never compare it across test sets or subsets."
    return text


def _differences(table: Table, section: Section) -> Grid | None:
    columns = [c for c in table.columns if any(c.name in row.differences for row in section.rows)]
    if not section.reference or not columns:
        return None
    return Grid(
        caption=f"Paired difference to {section.reference}, image by image: mean [95 % interval]",
        headers=("Method", *(_title(column) for column in columns)),
        rows=tuple(
            (Entry(row.display), *(_difference(row.differences.get(c.name), c) for c in columns))
            for row in section.rows
            if row.differences
        ),
        legend="▲ better and ▼ worse than the reference beyond the interval; unmarked: within sampling error."
        if section.n >= FEWEST
        else f"On fewer than {FEWEST} images nothing is called better or worse.",
    )


def _pairs(table: Table, section: Section) -> Grid | None:
    columns = [c for c in table.columns if any(c.name in pair.differences for pair in section.pairs)]
    if not columns:
        return None
    finer = [replace(column, decimals=column.decimals + 2) for column in columns]  # these differences are small
    return Grid(
        caption="What this table is about: each method against the other on the same base, image by image",
        headers=("Method", "Against", *(_title(column) for column in columns)),
        rows=tuple(
            (
                Entry(pair.display),
                Entry(pair.against),
                *(_difference(pair.differences.get(column.name), column) for column in finer),
            )
            for pair in section.pairs
        ),
    )


def _half_widths(table: Table, section: Section) -> Grid | None:
    rows = [row for row in section.rows if any(cell.low is not None for cell in row.cells.values())]
    columns = [c for c in table.columns if any(row.cells[c.name].low is not None for row in rows)]
    names = [column.name for column in columns]
    if not columns:
        return None
    return Grid(
        caption="Half-width of the 95 % interval of each mean (Student's t over images)",
        headers=("Method", *(column.display for column in columns)),
        rows=tuple((Entry(row.display), *(_half_width(row.cells[c.name], c) for c in columns)) for row in rows),
        legend=f"{DASH}: the interval would leave the metric's range."
        if any(
            cell.value is not None and cell.low is None for row in rows for cell in map(row.cells.get, names) if cell
        )
        else "",
    )


def _title(column: HeaderCell) -> str:
    return f"{column.display} {'↑' if column.higher_is_better else '↓'}"


def _steps(steps: int | None) -> str:
    return DASH if steps is None else str(steps)


def _difference(cell: Cell | None, column: HeaderCell) -> Entry:
    if cell is None or cell.value is None:
        return Entry(DASH)
    digits = f"+.{column.decimals}f"
    if cell.low is None or cell.high is None:
        return Entry(f"{cell.value:{digits}}")
    mark = ""
    if cell.enough and (cell.low > 0 or cell.high < 0):
        mark = " ▲" if (cell.value > 0) == column.higher_is_better else " ▼"
    return Entry(f"{cell.value:{digits}} [{cell.low:{digits}}, {cell.high:{digits}}]{mark}")


def _half_width(cell: Cell, column: HeaderCell) -> Entry:
    if cell.low is None or cell.high is None:
        return Entry(DASH)
    return Entry(f"±{(cell.high - cell.low) / 2:.{column.decimals}f}")


def _paper(table: Table, rows: Sequence[dict[str, str]]) -> Chapter:
    """What the paper printed, in the columns of the plan; in all columns if they share no metric."""
    planned = {column.name for column in table.columns}
    shared = [key for key in rows[0] if key in PAPER_FACTS or key in planned]
    keys = shared if any(key in planned for key in shared) else list(rows[0])
    titles = PAPER_FACTS | PAPER_DISPLAY
    grid = Grid(
        caption="",
        headers=tuple(titles.get(key, key) for key in keys),
        rows=tuple(tuple(Entry(row[key]) for key in keys) for row in rows),
    )
    subject = f"The paper's own figures, as printed in its {table.title.partition(':')[0]}, not measured here"
    return Chapter(subject, subject, (grid,))


def _evidence(table: Table) -> tuple[str, ...]:
    rows = [row for section in table.sections for row in section.rows]
    measured = {c.display for c in table.columns if any(row.cells[c.name].value is not None for row in rows)}
    lines = [f"{display}: {protocol}" for display, protocol in table.protocols if display in measured]
    if any(column.name == SECONDS for column in table.columns):
        where = "; ".join(table.machines) or "nothing timed"
        note = "restoration alone, after one uncounted warm-up, without loading and file access"
        lines.append(f"s/image: {note}; {where}")
    lines.append(f"Versions: {', '.join(table.versions) or 'nothing measured'}")
    lines += table.verified
    lines.append("Every number comes from the per-image records beside this file (`records/`).")
    return tuple(lines)
