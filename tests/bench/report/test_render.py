"""What a reader and a program see of a table."""

import csv
import io
import re
from dataclasses import replace

import pandas as pd
import pytest

from bench.report import markdown
from bench.report.document import lay_out
from bench.report.render import to_csv, to_legend
from bench.report.summarize import SECONDS, Cell, HeaderCell, Pair, Section, Table, TableRow

PSNR = HeaderCell("psnr", "PSNR", True, 2)
LPIPS = HeaderCell("lpips", "LPIPS", False, 4)
TIME = HeaderCell(SECONDS, "s/image", False, 3)
WHY = ("LPIPS needs alexnet.pth (1 kB, MIT) at X: `bench fetch lpips`, or by hand from https://x.org/alexnet.pth",)
PAPER = [
    {"dataset": "RealSR", "method": "OSEDiff", "steps": "1", "psnr": "25.15", "lpips": "0.2920"},
    {"dataset": "DRealSR", "method": "OSEDiff", "steps": "1", "psnr": "27.92", "lpips": "0.2968"},
]


def to_markdown(table: Table, paper: list[dict[str, str]]) -> str:
    return markdown.to_markdown(lay_out(table, paper))


def table(
    *rows: TableRow, display: str = "Mini", n: int = 3, total: int = 3, reference: str | None = "Bicubic"
) -> Table:
    return Table(
        name="table1",
        title="Table 1: one-step methods",
        profile="mini",
        seed=42,
        columns=(PSNR, LPIPS, TIME),
        sections=(Section(display.lower(), display, n, total, rows, reference),),
        protocols=(("PSNR", "luma"), ("LPIPS", "alex")),
        versions=("torch 2.6",),
        machines=("CPU, 2 threads, fp32",),
    )


BICUBIC = TableRow(
    "bicubic",
    "Bicubic",
    None,
    {"psnr": Cell(26.123456789, 6, 25.0, 27.246913578, rank=2), "lpips": Cell(0.25, 6, 0.1, 0.4)}
    | {SECONDS: Cell(0.0123, 6, 0.01, 0.0146)},
)
NET = TableRow(
    "net",
    "Net",
    1,
    {"psnr": Cell(27.0, 6, 26.0, 28.0, rank=1), "lpips": Cell(None, 0, reasons=WHY)}
    | {SECONDS: Cell(None, 0, reasons=("Net: published",))},
    {"psnr": Cell(0.876, 6, 0.5, 1.252), "lpips": Cell(0.01, 6, -0.01, 0.03)},
)


def grids(markdown: str) -> list[list[list[str]]]:
    """Every Markdown table as rows of stripped cells, without the ruler."""
    found: list[list[list[str]]] = [[]]
    for line in markdown.splitlines():
        if line.startswith("|"):
            if not re.fullmatch(r"[|:-]+", line):
                found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [grid for grid in found if grid]


def without(row: TableRow, *columns: str, reasons: tuple[str, ...] = WHY) -> TableRow:
    return replace(row, cells={**row.cells, **{name: Cell(None, 0, reasons=reasons) for name in columns}})


def absent(name: str, *reasons: str) -> TableRow:
    """A row without images."""
    return without(replace(NET, method=name.lower(), display=name, reasons=reasons), *NET.cells, reasons=reasons)


def test_values_are_rounded_and_marked_and_a_cell_missing_alone_is_a_dash_with_a_number() -> None:
    means = grids(to_markdown(table(BICUBIC, NET), []))[0]
    assert means == [
        ["Method", "Steps", "PSNR ↑", "LPIPS ↓", "s/image ↓"],
        ["Bicubic", "—", "*26.12*", "0.2500", "0.012"],
        ["Net", "1", "**27.00**", "— [1]", "— [2]"],
    ]


def test_ties_carry_a_sign_that_the_legend_explains_only_where_it_stands() -> None:
    tied = replace(NET, cells={**NET.cells, "psnr": replace(NET.cells["psnr"], tied=True)})
    text = to_markdown(table(BICUBIC, tied), [])
    assert grids(text)[0][2][2] == "**27.00**⁼"
    assert "excludes zero; ⁼: tied, where it includes zero.\n" in text
    plain = to_markdown(table(BICUBIC, NET), [])
    assert "\nMeans over the images. Bold: best, italic: second best, where the 95 % interval of the" in plain
    assert "⁼" not in plain
    assert "Bold" not in to_markdown(table(replace(NET, cells={**NET.cells, "psnr": Cell(27.0, 1)})), [])


def test_cells_with_one_reason_share_a_short_footnote() -> None:
    other = without(replace(NET, display="Other"), SECONDS, reasons=("Other: published",))
    text = to_markdown(table(BICUBIC, NET, other), [])
    assert [row[3:] for row in grids(text)[0][2:]] == [["— [1]", "— [2]"]] * 2
    assert "\n- [1] files are missing: `bench fetch lpips`\n- [2] published\n- `bench list NAME` says" in text
    assert "[3]" not in text
    assert "https" not in text
    assert "alexnet" not in text
    assert "https://x.org/alexnet.pth" in to_csv(table(BICUBIC, NET), [], full_reasons=True)
    assert "https" not in to_csv(table(BICUBIC, NET), [])


def test_a_column_that_nobody_has_is_a_sentence() -> None:
    rows = [without(row, "lpips") for row in (BICUBIC, NET)]
    text = to_markdown(table(*rows), [])
    assert grids(text)[0][0] == ["Method", "Steps", "PSNR ↑", "s/image ↓"]
    assert "- LPIPS was not measured (files are missing: `bench fetch lpips`).\n" in text
    assert "`table1.reasons.csv` has reasons in full" in text
    assert "- [1] published\n" in text, "footnotes are counted without it"


def test_a_row_that_could_not_be_run_is_a_sentence() -> None:
    lines = {name: f"{name} needs {name}.pth (MIT) at X: `bench fetch {name.lower()}`, or by hand" for name in "AB"}
    rows = [absent(name, text) for name, text in lines.items()]
    text = to_markdown(table(BICUBIC, *rows, absent("C", "C failed on 1 of 3 images")), [])
    assert [row[0] for row in grids(text)[0]] == ["Method", "Bicubic"]
    assert "- A and B were not measured (files are missing: `bench fetch a b`).\n" in text
    assert "- C was not measured (failed on 1 of 3 images).\n" in text
    assert "LPIPS was not" not in text, "the rows are missing, not the column"


def test_reasons_that_are_whole_point_nowhere() -> None:
    text = to_markdown(table(without(BICUBIC, "lpips", reasons=("LPIPS needs a ground truth, and Mini has none",))), [])
    assert "- LPIPS was not measured (needs a ground truth, and Mini has none).\n" in text
    assert "bench list" not in text


def test_paired_differences_say_which_way_and_whether_beyond_the_interval() -> None:
    text = to_markdown(table(BICUBIC, NET), [])
    assert "Paired difference to Bicubic" in text
    assert grids(text)[1] == [
        ["Method", "PSNR ↑", "LPIPS ↓"],
        ["Net", "+0.88 [+0.50, +1.25] ▲", "+0.0100 [-0.0100, +0.0300]"],
    ]
    worse = TableRow("net", "Net", 1, NET.cells, {"lpips": Cell(0.02, 6, 0.01, 0.03), "psnr": Cell(-1.0, 1)})
    assert grids(to_markdown(table(BICUBIC, worse), []))[1][1] == ["Net", "-1.00", "+0.0200 [+0.0100, +0.0300] ▼"]


def test_half_widths_stand_in_a_table_of_their_own() -> None:
    assert grids(to_markdown(table(BICUBIC, NET), []))[2] == [
        ["Method", "PSNR", "LPIPS", "s/image"],
        ["Bicubic", "±1.12", "±0.1500", "±0.002"],
        ["Net", "±1.00", "—", "—"],
    ]


def test_without_a_reference_or_measured_values_those_tables_are_left_out() -> None:
    text = to_markdown(table(absent("X", "X: nothing restored"), reference=None), [])
    assert grids(text) == []
    assert "- X was not measured (nothing restored).\n" in text
    assert "Paired" not in text
    assert "Means" not in text


def test_the_heading_names_the_set_and_how_much_of_it() -> None:
    assert to_markdown(table(NET), []).startswith("# Table 1: one-step methods, measured on Mini (N = 3)\n")
    limited = to_markdown(table(NET, display="RealSR", n=3, total=100), [])
    assert limited.startswith(
        "# Table 1: one-step methods, measured on RealSR (N = 3 of 100)\n\nProfile `mini`, seed 42."
    )
    assert "FID" not in limited, "no such column"
    for fact in ("- PSNR: luma", "torch 2.6", "CPU, 2 threads, fp32", "uncounted warm-up"):
        assert fact in limited
    assert "- LPIPS: alex" not in limited.split("How it was measured")[1], "nothing was measured by that protocol"


def test_the_warning_about_fid_stands_where_fid_does() -> None:
    assert "FID depends on N" not in to_markdown(table(NET), [])
    row = replace(NET, cells={**NET.cells, "fid": Cell(120.5, 3)})
    with_fid = table(row)
    with_fid = replace(with_fid, columns=(*with_fid.columns, HeaderCell("fid", "FID", False, 2)))
    assert "FID depends on N" in to_markdown(with_fid, [])


def test_several_test_sets_get_a_heading_each() -> None:
    one = table(NET)
    two = Table(**{**vars(one), "sections": (one.sections[0], table(NET, display="RealSR").sections[0])})
    text = to_markdown(two, [])
    assert "\n## Mini (N = 3)\n" in text
    assert "\n## RealSR (N = 3)\n" in text


def test_the_papers_figures_stand_apart_as_printed_and_only_those_of_the_set() -> None:
    text = to_markdown(table(NET, display="RealSR"), PAPER)
    measured, papers = text.split("## The paper's own figures")
    assert "not measured here" in papers
    assert "25.15" not in measured
    assert grids(papers)[0] == [
        ["Dataset", "Method", "Steps", "PSNR ↑", "LPIPS ↓"],
        ["RealSR", "OSEDiff", "1", "25.15", "0.2920"],
    ]
    everything = to_markdown(table(NET), PAPER)
    assert "27.92" in everything, "for a set that the paper does not have, all of its figures"
    only_psnr = replace(table(NET, display="RealSR"), columns=(PSNR,))
    assert grids(to_markdown(only_psnr, PAPER).split("own figures")[1])[0][0] == [
        "Dataset",
        "Method",
        "Steps",
        "PSNR ↑",
    ]


def test_remarks_stand_once_below_the_table_and_in_the_csv() -> None:
    remarked = replace(NET, remarks=("prompt: empty", "unseeded"))
    one = table(BICUBIC, remarked)
    two = replace(one, sections=(one.sections[0], table(remarked, display="RealSR").sections[0]))
    text = to_markdown(two, [])
    assert text.count("Remarks:\n\n- Net: prompt: empty\n- Net: unseeded\n\nHow it was measured") == 1
    assert text.count("unseeded") == 1
    lines = list(csv.DictReader(io.StringIO(to_csv(two, []))))
    assert [line["remarks"] for line in lines] == ["", "prompt: empty | unseeded", "prompt: empty | unseeded"]


def test_without_remarks_nothing_speaks_of_them() -> None:
    assert "Remarks" not in to_markdown(table(BICUBIC, NET), PAPER)
    assert "remarks" not in to_csv(table(BICUBIC, NET), PAPER)


def test_columns_are_aligned_for_a_terminal() -> None:
    for line_group in re.findall(r"(?:^\|.*\n)+", to_markdown(table(BICUBIC, NET), PAPER), flags=re.M):
        assert len({len(line) for line in line_group.splitlines()}) == 1


def test_csv_has_full_precision_n_intervals_and_nothing_where_nothing_was_measured() -> None:
    frame = pd.read_csv(io.StringIO(to_csv(table(BICUBIC, NET), PAPER)), float_precision="round_trip")
    measured = frame[frame.source == "measured"].set_index("method")
    assert measured.loc["bicubic", "psnr"] == 26.123456789
    assert measured.loc["bicubic", "psnr_ci95_high"] == 27.246913578
    assert (measured.psnr_n == 6).all()
    assert measured.lpips.isna().tolist() == [False, True]
    assert measured.lpips_n.tolist() == [6, 0]
    assert measured.psnr_rank.tolist() == [2, 1]
    assert measured.psnr_tied.tolist() == [False, False]
    assert measured.lpips_rank.isna().all()
    assert measured.loc["net", "psnr_diff"] == 0.876
    assert measured.loc["net", "diff_reference"] == "Bicubic"
    assert pd.isna(measured.loc["bicubic", "diff_reference"])
    assert measured.loc["net", "not_measured"] == "lpips: files-1 | seconds: obstacle-1"
    legend = pd.read_csv(io.StringIO(to_legend(table(BICUBIC, NET)))).set_index("code").reason
    assert legend.to_dict() == {"files-1": WHY[0], "obstacle-1": "Net: published"}
    assert (measured.seed == 42).all()
    assert (measured.images == 3).all()


def test_csv_keeps_the_papers_figures_out_of_the_measured_columns() -> None:
    frame = pd.read_csv(io.StringIO(to_csv(table(BICUBIC, NET, display="RealSR"), PAPER)))
    papers = frame[frame.source == "paper"]
    assert list(papers.paper_psnr) == [25.15]
    assert papers.psnr.isna().all()
    assert papers.method.isna().all()
    assert frame[frame.source == "measured"].paper_psnr.isna().all()


@pytest.mark.parametrize("value", [0.1, 1 / 3, 26.546786308288574, 1e-12])
def test_csv_floats_are_read_back_exactly(value: float) -> None:
    row = TableRow("x", "X", 1, {"psnr": Cell(value, 1), "lpips": Cell(value, 1), SECONDS: Cell(value, 1)})
    (line,) = csv.DictReader(io.StringIO(to_csv(table(row), [])))
    assert float(line["psnr"]) == value


def test_a_true_zero_is_printed_as_zero() -> None:
    row = TableRow("x", "X", 0, {"psnr": Cell(0.0, 1), "lpips": Cell(0.0, 1), SECONDS: Cell(0.0, 1)})
    assert grids(to_markdown(table(row), []))[0][1] == ["X", "0", "0.00", "0.0000", "0.000"]


def test_pairs_on_the_same_base_stand_in_a_table_of_their_own_and_in_the_csv() -> None:
    column = HeaderCell("psnr", "PSNR", True, 2)
    row = TableRow("ours", "Ours", 1, {"psnr": Cell(20.0, 6, 19.0, 21.0)})
    pair = Pair("ours", "Ours", "Theirs", {"psnr": Cell(0.0123, 6, 0.004, 0.02)})
    section = Section("mini", "Mini", 3, 3, (row,), None, (pair,))
    table = Table("table5", "Table 5: x", "mini", 42, (column,), (section,), (), (), ())
    markdown = to_markdown(table, [])
    assert "each method against the other on the same base" in markdown
    assert "| Ours     | Theirs    | +0.0123 [+0.0040, +0.0200] ▲ |" in markdown
    lines = list(csv.DictReader(io.StringIO(to_csv(table, []))))
    assert lines[1]["source"] == "pair"
    assert (lines[1]["diff_reference"], lines[1]["psnr_diff"], lines[1]["psnr"]) == ("Theirs", "0.0123", "")


def test_a_name_with_a_bar_does_not_end_its_cell() -> None:
    assert "| a\\|b " in to_markdown(table(replace(NET, display="a|b")), [])
