r"""A `Document` as LaTeX for `\input`, with one `table` for each grid. Needs only `\usepackage{booktabs}`."""

import re
from collections.abc import Iterator

from bench.report.document import TEXT_COLUMNS, TIE, Document, Entry, Grid

STYLES = {"plain": "{}", "bold": r"\textbf{{{}}}", "italic": r"\textit{{{}}}"}
SYMBOLS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{symbol: f"\\{symbol}" for symbol in "&%$#_{}"},
    **{symbol: f"{{{symbol}}}" for symbol in "[]*"},  # after the end of a row, LaTeX would read these as options
    **{symbol: f"${symbol}$" for symbol in "<>|"},
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "▲": r"$\bigtriangleup$",
    "▼": r"$\bigtriangledown$",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "λ": r"$\lambda$",
    "σ": r"$\sigma$",
    "γ": r"$\gamma$",
    "ε": r"$\varepsilon$",
    "²": "$^{2}$",
    "₁": "$_{1}$",
    "₂": "$_{2}$",
    "–": "--",
    TIE: "$^{=}$",
    "—": "---",
    "…": r"\ldots{}",
    '"': "''",
}
MINUS = re.compile(r"(?<![\w$-])-(?=\d)")
SIZES = ((70, "footnotesize"), (85, "scriptsize"))  # (characters that fit into a line of an article, font size)


def to_latex(document: Document) -> str:
    """The content of the file, which ends with a newline."""
    return "\n\n".join(_blocks(document)) + "\n"


def _blocks(document: Document) -> Iterator[str]:
    title = f"{document.title}. {document.about}".replace("`", "")
    yield f"% {title}\n% In the preamble: \\usepackage{{booktabs}}"
    for chapter in document.chapters:
        for grid in chapter.grids:
            yield _table(grid, chapter.subject)
    for title, lines in document.lists:
        yield "\n".join([rf"\paragraph{{{text(title)}}}", r"\begin{itemize}", *map(_item, lines), r"\end{itemize}"])


def _item(line: str) -> str:
    return rf"  \item {text(line)}"


def _table(grid: Grid, subject: str) -> str:
    caption = " ".join(f"{part.rstrip('.')}." for part in (subject, grid.caption, grid.legend) if part)
    lines = [r"\begin{table}[htbp]", r"\centering"]
    if grid.rows:
        columns = "".join("l" if header in TEXT_COLUMNS else "r" for header in grid.headers)
        lines += [
            rf"\caption{{{text(caption)}}}",
            rf"\{_size(grid)}\setlength{{\tabcolsep}}{{3pt}}",
            rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            _row(text(header) for header in grid.headers),
            r"\midrule",
            *(_row(map(_entry, row)) for row in grid.rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    if grid.notes:
        lines.append(r"\par\smallskip\raggedright\footnotesize")
        lines += [rf"{text(note)}\par" for note in grid.notes]
    return "\n".join([*lines, r"\end{table}"])


def _size(grid: Grid) -> str:
    widths = [
        max(len(header), *(len(entry.text) for entry in column))
        for header, *column in zip(grid.headers, *grid.rows, strict=True)
    ]
    return next((size for most, size in SIZES if sum(widths) + len(widths) <= most), "tiny")


def _row(cells: Iterator[str]) -> str:
    return " & ".join(cells) + r" \\"


def _entry(entry: Entry) -> str:
    return STYLES[entry.style].format(text(entry.text)) + (SYMBOLS[TIE] if entry.tied else "")


def text(plain: str) -> str:
    """Plain text with commands between backticks, as LaTeX that prints every special character as it is."""
    prose_and_code = [_escaped(part) for part in plain.split("`")]
    for number, part in enumerate(prose_and_code):
        if number % 2:
            part = part.replace("--", "-{}-")  # keeps LaTeX from making a dash of the two hyphens of an option
            prose_and_code[number] = rf"\texttt{{{part}}}"
        else:
            prose_and_code[number] = MINUS.sub("$-$", part)
    return "".join(prose_and_code)


def _escaped(part: str) -> str:
    return "".join(SYMBOLS.get(symbol, symbol) for symbol in part)
