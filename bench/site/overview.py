"""The tables of the overview: the printed cells of `bench.report.document`, and behind each its value."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.report.document import Document, Entry, Grid, evidence_of, lay_out, set_name
from bench.report.latex import to_latex
from bench.report.render import to_csv
from bench.report.summarize import Section
from bench.site.collection import Collection, Set, SiteTable


@dataclass(frozen=True)
class SiteCell:
    """A printed cell, the number to sort by, what stands behind it, and the metric of its records (its place)."""

    entry: Entry
    value: float | None
    evidence: str
    metric: int | None = None


@dataclass(frozen=True)
class SiteRow:
    """A row of the means. `method` is its place in the test set."""

    display: str
    method: int
    cells: tuple[SiteCell, ...]


@dataclass(frozen=True)
class SiteSection:
    """One test set of a table: the means, and the other grids as they are printed.

    Attributes:
        testset: the place of the test set.
        methods, reference: places of its rows, and of the row that differences refer to.
        metrics: places of its image-level columns.
    """

    heading: str
    testset: int
    headers: tuple[str, ...]
    rows: tuple[SiteRow, ...]
    grid: Grid
    others: tuple[Grid, ...]
    methods: tuple[int, ...]
    metrics: tuple[int, ...]
    reference: int | None


@dataclass(frozen=True)
class SitePage:
    """A table as the page shows it, with the files to download."""

    name: str
    run: str
    document: Document
    sections: tuple[SiteSection, ...]
    paper: Grid | None
    csv: str
    tex: str
    machines: tuple[str, ...]


def pages_of(collection: Collection) -> list[SitePage]:
    """Every table of the collection."""
    return [_page(table, collection.sets) for table in collection.tables]


def _page(site: SiteTable, sets: tuple[Set, ...]) -> SitePage:
    document = lay_out(site.table, site.paper)
    chapters = document.chapters[: len(site.table.sections)]
    places = {found.name: place for place, found in enumerate(sets)}
    sections = [
        _section(site, section, chapter.grids, places[section.testset], sets[places[section.testset]])
        for section, chapter in zip(site.table.sections, chapters, strict=True)
    ]
    return SitePage(
        name=site.table.name,
        run=site.run.label,
        document=document,
        sections=tuple(sections),
        paper=document.chapters[-1].grids[0] if site.paper else None,
        csv=to_csv(site.table, site.paper, full_reasons=True),
        tex=to_latex(document),
        machines=site.table.machines,
    )


def _section(site: SiteTable, section: Section, grids: tuple[Grid, ...], place: int, found: Set) -> SiteSection:
    means, *others = grids
    rows = [row for row in section.rows if not row.reasons]
    methods = {method.name: at for at, method in enumerate(found.methods) if method.run.label == site.run.label}
    protocols = dict(site.table.protocols)
    columns = [c for c in site.table.columns if any(row.cells[c.name].value is not None for row in rows)]
    metrics: Mapping[str, int | None] = {
        column.name: next(
            (
                at
                for at, metric in enumerate(found.metrics)
                if (metric.name, metric.protocol) == (column.name, protocols.get(column.display))
            ),
            None,
        )
        for column in columns
    }
    printed = [
        SiteRow(
            row.display,
            methods[row.method],
            (
                SiteCell(entries[1], row.steps, ""),
                *(
                    SiteCell(entry, row.cells[c.name].value, evidence_of(row.cells[c.name], c), metrics[c.name])
                    for entry, c in zip(entries[2:], columns, strict=True)
                ),
            ),
        )
        for row, entries in zip(rows, means.rows, strict=True)
    ]
    reference = next((row.method for row in rows if row.display == section.reference), None)
    return SiteSection(
        heading=set_name(section),
        testset=place,
        headers=means.headers,
        rows=tuple(printed),
        grid=means,
        others=tuple(others),
        methods=tuple(row.method for row in printed),
        metrics=tuple(at for at in metrics.values() if at is not None),
        reference=methods[reference] if reference else None,
    )
