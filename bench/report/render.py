"""Stage 4: writes the files of a table: Markdown for people, LaTeX for papers, CSV for programs.

The CSV has one line per method with full precision, n, intervals and ranks. Cells that were not measured are empty, and
a column has short codes of the reasons, whose legend is TABLE.reasons.csv. The paper's figures have their own columns.

A table of one's own rows, or on one's own images, has a neutral title and none of the paper's figures.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bench.paper.tables import is_of_the_paper, pairs_of, paper_figures
from bench.records.records import Records
from bench.records.schema import Plan
from bench.report.csvs import csv_text
from bench.report.document import lay_out, relevant_rows
from bench.report.latex import to_latex
from bench.report.markdown import to_markdown
from bench.report.reasons import Codes
from bench.report.summarize import SECONDS, Cell, Table, summarize
from tsd.files import write_atomic

ENDINGS = ("md", "csv", "tex", "reasons.csv")
NEUTRAL_TITLE = "Super-resolution methods"


def rendered(records: Records, plan: Plan, *, timing: bool = True, reference: str | None = None) -> dict[str, str]:
    """The files of a table (`ENDINGS`) from the records alone: their text, by file name, the Markdown first.

    Args:
        timing: whether the table has the column of seconds.
        reference: method that differences refer to; None for the plan's.

    Raises:
        UserError: the table has no row of that name.
    """
    if reference is not None:
        plan = plan.referring_to(reference)
    table, paper = table_of(records, plan, timing=timing)
    document = lay_out(table, paper)
    texts = (to_markdown(document), to_csv(table, paper), to_latex(document), to_legend(table))
    return {f"{plan.table}.{ending}": text for ending, text in zip(ENDINGS, texts, strict=True)}


def write_table(records: Records, plan: Plan, *, timing: bool = True, reference: str | None = None) -> str:
    """Writes the files of `rendered`, whose arguments it takes, beside the records; returns the Markdown."""
    texts = rendered(records, plan, timing=timing, reference=reference)
    for name, text in texts.items():
        write_atomic(records.out / name, text.encode())
    return next(iter(texts.values()))


def stale(records: Records, plan: Plan) -> list[Path]:
    """The files of a table beside the records that are not what they give, with or without seconds."""
    left = [path for ending in ENDINGS if (path := records.out / f"{plan.table}.{ending}").is_file()]
    for timing in (True, False):
        texts = rendered(records, plan, timing=timing) if left else {}
        left = [path for path in left if path.read_text(encoding="utf-8") != texts[path.name]]
    return left


def table_of(records: Records, plan: Plan, *, timing: bool = True) -> tuple[Table, list[dict[str, str]]]:
    """The table of a plan, and the rows that the paper prints for it; without these for a table of one's own."""
    table = summarize(records, plan, timing=timing, pairs=pairs_of(plan.table, plan.profile))
    if is_of_the_paper(plan.table, [m.name for m in plan.methods], [testset.name for testset in plan.testsets]):
        return table, paper_figures(plan.paper) if plan.paper else []
    return replace(table, title=NEUTRAL_TITLE), []


def to_legend(table: Table) -> str:
    """The codes that the column `not_measured` has, one line each, and the reasons in full."""
    return csv_text(
        [{"code": code, "reason": text} for text, code in _codes(table).by_reason.items()], ("code", "reason")
    )


def _codes(table: Table) -> Codes:
    codes = Codes()
    for cell in (row.cells[c.name] for section in table.sections for row in section.rows for c in table.columns):
        if cell.value is None:
            codes.code(cell.reasons)
    return codes


def to_csv(table: Table, paper: list[dict[str, str]], *, full_reasons: bool = False) -> str:
    """One line per method and test set. The paper's rows follow, with empty cells in the measured columns.

    Args:
        full_reasons: reasons in full in place of codes, for a file that has no legend beside it.
    """
    lines: list[dict[str, object]] = []
    codes = _codes(table)
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
                line[f"{name}_ci95_high"] = cell.high
                if name != SECONDS:  # which is never ranked
                    line |= {f"{name}_rank": cell.rank, f"{name}_tied": cell.tied if cell.rank else None}
            line |= _difference_columns(table, row.differences)
            line["diff_reference"] = section.reference if row.differences else None
            line["not_measured"] = " | ".join(
                f"{column.name}: {'; '.join(reasons) if full_reasons else codes.code(reasons)}"
                for column in table.columns
                if (reasons := row.cells[column.name].reasons)
            )
            if row.remarks:
                line["remarks"] = " | ".join(row.remarks)
            lines.append(line)
        for pair in section.pairs:
            line = {"source": "pair", "testset": section.testset, "method": pair.method, "display": pair.display}
            line |= {"images": section.n, "seed": table.seed, "diff_reference": pair.against}
            lines.append(line | _difference_columns(table, pair.differences))
    for published in relevant_rows(table, paper):
        figures = {key: value for key, value in published.items() if key not in ("dataset", "method", "steps")}
        line = {"source": "paper", "testset": published.get("dataset")}
        line |= {"display": published["method"], "steps": published.get("steps")}
        lines.append(line | {f"paper_{key}": value for key, value in figures.items()})
    return csv_text(lines)


def _difference_columns(table: Table, differences: Mapping[str, Cell]) -> dict[str, object]:
    columns: dict[str, object] = {}
    for column in table.columns:
        if column.name != SECONDS:
            cell, name = differences.get(column.name, Cell(None, 0)), f"{column.name}_diff"
            columns |= {name: cell.value, f"{name}_ci95_low": cell.low, f"{name}_ci95_high": cell.high}
    return columns
