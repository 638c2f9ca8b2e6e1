"""Stage 4: writes the files of a table: Markdown for people, LaTeX for papers, CSV for programs.

The CSV has one line per method with full precision, n, intervals and ranks. Cells that were not measured are empty, and
a column has the full reasons. The paper's figures have their own columns.
"""

import csv
import io
from collections.abc import Mapping

from bench.paper.tables import pairs_of, paper_figures
from bench.records.records import Records
from bench.records.schema import Plan
from bench.report.document import lay_out, relevant_rows
from bench.report.latex import to_latex
from bench.report.markdown import to_markdown
from bench.report.summarize import SECONDS, Cell, Table, summarize
from tsd.files import write_atomic

ENDINGS = ("md", "csv", "tex")


def rendered(records: Records, plan: Plan, *, timing: bool = True, reference: str | None = None) -> dict[str, str]:
    """TABLE.md, TABLE.csv and TABLE.tex from the records alone: their text, by file name, the Markdown first.

    Args:
        timing: whether the table has the column of seconds.
        reference: method that differences refer to; None for the plan's.

    Raises:
        UserError: the table has no row of that name.
    """
    if reference is not None:
        plan = plan.referring_to(reference)
    table = summarize(records, plan, timing=timing, pairs=pairs_of(plan.table, plan.profile))
    paper = paper_figures(plan.paper) if plan.paper else []
    document = lay_out(table, paper)
    texts = (to_markdown(document), to_csv(table, paper), to_latex(document))
    return {f"{plan.table}.{ending}": text for ending, text in zip(ENDINGS, texts, strict=True)}


def write_table(records: Records, plan: Plan, *, timing: bool = True, reference: str | None = None) -> str:
    """Writes the files of `rendered`, whose arguments it takes, beside the records; returns the Markdown."""
    texts = rendered(records, plan, timing=timing, reference=reference)
    for name, text in texts.items():
        write_atomic(records.out / name, text.encode())
    return next(iter(texts.values()))


def to_csv(table: Table, paper: list[dict[str, str]]) -> str:
    """One line per method and test set. The paper's rows follow, with empty cells in the measured columns."""
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
                line[f"{name}_ci95_high"] = cell.high
                if name != SECONDS:  # which is never ranked
                    line |= {f"{name}_rank": cell.rank, f"{name}_tied": cell.tied if cell.rank else None}
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
    for published in relevant_rows(table, paper):
        figures = {key: value for key, value in published.items() if key not in ("dataset", "method", "steps")}
        line = {"source": "paper", "testset": published.get("dataset")}
        line |= {"display": published["method"], "steps": published.get("steps")}
        lines.append(line | {f"paper_{key}": value for key, value in figures.items()})
    stream = io.StringIO()
    columns = list(dict.fromkeys(key for line in lines for key in line))
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)  # writes floats as their shortest exact text, None as nothing
    return stream.getvalue()


def _difference_columns(table: Table, differences: Mapping[str, Cell]) -> dict[str, object]:
    columns: dict[str, object] = {}
    for column in table.columns:
        if column.name != SECONDS:
            cell, name = differences.get(column.name, Cell(None, 0)), f"{column.name}_diff"
            columns |= {name: cell.value, f"{name}_ci95_low": cell.low, f"{name}_ci95_high": cell.high}
    return columns
