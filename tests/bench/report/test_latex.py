"""The same cells and sentences as Markdown, in LaTeX that compiles. No LaTeX is needed to run this."""

import re
from dataclasses import replace

from bench.report.document import Chapter, Document, Entry, Grid
from bench.report.latex import text, to_latex

NOTE = "Net_2 was not measured (files are missing: `bench fetch a_b --x`)."
GRID = Grid(
    caption="",
    headers=("Method", "Steps", "PSNR ↑"),
    rows=(
        (Entry("Bicubic"), Entry("—"), Entry("26.12", "italic")),
        (Entry("Net & Co."), Entry("1"), Entry("27.00", "bold", tied=True)),
    ),
    legend="Means; ⁼: tied, 95 % of the time.",
    notes=(NOTE,),
)
DIFFERENCES = Grid("Paired", ("Method", "PSNR ↑"), ((Entry("[x]"), Entry("-0.17 [-0.29, -0.05] ▼")),))
DOCUMENT = Document(
    title="Table 1: one-step methods",
    about="Profile `mini`, seed 42.",
    chapters=(Chapter(None, "One-step methods", (GRID, DIFFERENCES)),),
    lists=(("How it was measured", ("SSIM: x_y", "50 % & more")),),
)


def bodies(latex: str) -> list[list[str]]:
    """The rows of every tabular, header first."""
    tabulars = re.findall(r"\\toprule\n(.*?)\\bottomrule", latex, flags=re.S)
    return [[line for line in tabular.splitlines() if line != r"\midrule"] for tabular in tabulars]


def test_cells_marks_and_sentences_are_those_of_the_document() -> None:
    latex = to_latex(DOCUMENT)
    assert bodies(latex) == [
        [
            r"Method & Steps & PSNR $\uparrow$ \\",
            r"Bicubic & --- & \textit{26.12} \\",
            r"Net \& Co. & 1 & \textbf{27.00}$^{=}$ \\",
        ],
        [r"Method & PSNR $\uparrow$ \\", r"{[}x{]} & $-$0.17 {[}$-$0.29, $-$0.05{]} $\bigtriangledown$ \\"],
    ]
    assert r"\begin{tabular}{@{}lrr@{}}" in latex
    assert r"\caption{One-step methods. Means; $^{=}$: tied, 95 \% of the time.}" in latex
    assert r"\caption{One-step methods. Paired.}" in latex
    assert r"Net\_2 was not measured (files are missing: \texttt{bench fetch a\_b -{}-x}).\par" in latex
    assert r"  \item 50 \% \& more" in latex


def test_environments_are_balanced_and_every_row_has_all_its_cells() -> None:
    latex = to_latex(DOCUMENT)
    open_environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", latex):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert open_environments == []
    for grid, rows in zip((GRID, DIFFERENCES), bodies(latex), strict=True):
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(grid.headers) - 1}
    unescaped = re.sub(r"\\.", "", latex)
    assert unescaped.count("{") == unescaped.count("}")
    assert latex.isascii()


def test_a_grid_without_rows_leaves_its_notes() -> None:
    chapter = Chapter(None, "x", (replace(GRID, rows=()),))
    latex = to_latex(replace(DOCUMENT, chapters=(chapter,)))
    assert "tabular" not in latex
    assert "was not measured" in latex


def test_special_characters_are_shown_as_they_are() -> None:
    assert text(r"a_b & 5% #1 $x {y} ~ ^ \z") == (
        r"a\_b \& 5\% \#1 \$x \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}z"
    )
    assert text("a < b | c > d") == "a $<$ b $|$ c $>$ d"
    assert text("[1] * ± … —") == r"{[}1{]} {*} $\pm$ \ldots{} ---"
    assert text("v0-1 x-2 -3") == "v0-1 x-2 $-$3", "a hyphen is no minus"


def test_only_what_is_wide_is_set_small() -> None:
    wide = replace(GRID, headers=("Method", "Steps", "x" * 120))
    latex = to_latex(replace(DOCUMENT, chapters=(Chapter(None, "x", (GRID, wide)),)))
    assert latex.count(r"\footnotesize\setlength") == 1
    assert latex.count(r"\tiny\setlength") == 1
