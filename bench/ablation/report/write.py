"""Writes the report of a sweep from its compact records: tables, comparisons, plots."""

from dataclasses import dataclass
from pathlib import Path

from bench.ablation.domain import Domain
from bench.ablation.experiment import Experiment
from bench.ablation.records import SweepRecords
from bench.ablation.report.csvs import comparisons_csv, table_csv
from bench.ablation.report.plots import draw_curves, draw_forest
from bench.ablation.report.published import Published
from bench.ablation.report.results import Findings, find
from bench.ablation.report.tables import lay_out
from bench.report.latex import to_latex
from bench.report.markdown import to_markdown
from tsd.errors import UserError
from tsd.files import write_text


@dataclass(frozen=True)
class Report:
    """What was written: the table for people, the findings, and the files."""

    markdown: str
    findings: Findings
    paths: tuple[Path, ...]


def write_report(experiment: Experiment, domain: Domain, records: SweepRecords, out: Path) -> Report:
    """Writes TABLE.md, .csv and .tex, comparisons.csv, forest.png and .svg, and curves.png and .svg into `out`.

    TABLE is table4 or table6 where the experiment stands beside one of the paper's, otherwise "table".

    Raises:
        UserError: the records have no cell of the experiment's arms.
    """
    if not any(records.of_arm(arm.name) for arm in experiment.arms):
        raise UserError(f"{out} has no finished cell of {experiment.name}; `bench sweep` makes them")
    published = Published(experiment, domain)
    findings = find(experiment, domain, records, published)
    document = lay_out(experiment, domain, records, findings, published)
    name = experiment.table or "table"
    markdown = to_markdown(document)
    texts = {
        f"{name}.md": markdown,
        f"{name}.csv": table_csv(experiment, domain, records, published),
        f"{name}.tex": to_latex(document),
        "comparisons.csv": comparisons_csv(findings.results),
    }
    for file, content in texts.items():
        write_text(out / file, content)
    plots = [
        *draw_forest(experiment, domain, findings.results, out),
        *draw_curves(experiment, domain, records, out),
    ]
    return Report(markdown, findings, (*(out / file for file in texts), *plots))
