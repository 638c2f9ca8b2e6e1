"""A `Document` as Markdown, with tables that are aligned for a terminal as well."""

from collections.abc import Iterator

from tabulate import tabulate

from bench.report.document import TEXT_COLUMNS, TIE, Document, Entry, Grid

STYLES = {"plain": "", "bold": "**", "italic": "*"}


def to_markdown(document: Document) -> str:
    """The content of the file, which ends with a newline."""
    return "\n\n".join(_blocks(document)) + "\n"


def _blocks(document: Document) -> Iterator[str]:
    yield f"# {document.title}"
    yield document.about
    for chapter in document.chapters:
        if chapter.heading is not None:
            yield f"## {chapter.heading}"
        for grid in chapter.grids:
            if grid.caption:
                yield f"**{grid.caption}**"
            if grid.rows:
                yield to_table(grid)
            if grid.legend:
                yield grid.legend
            if grid.notes:
                yield _list(grid.notes)
    for title, lines in document.lists:
        yield f"{title}:"
        yield _list(lines)


def _list(lines: tuple[str, ...]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def to_table(grid: Grid) -> str:
    """The rows of a grid alone."""
    align = ["left" if header in TEXT_COLUMNS else "right" for header in grid.headers]
    rows = [[_entry(entry) for entry in row] for row in grid.rows]
    return tabulate(rows, grid.headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def _entry(entry: Entry) -> str:
    style, text = STYLES[entry.style], entry.text.replace("|", r"\|")
    return f"{style}{text}{style}{TIE if entry.tied else ''}"
