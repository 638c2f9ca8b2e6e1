"""Measured against printed: which gaps count, and what the report says of them."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import cli
from bench.paper.tables import PAPER_DIR, TABLES, other_figures, paper_figures, printed_figures
from bench.records.records import Records
from bench.records.schema import ImageRow, Plan, PlanMethod, PlanMetric, PlanSet, Restoration, ScoreRow
from bench.report.audit import audit, judge
from bench.report.summarize import Cell
from tsd.errors import UserError

NAMES = [f"photo{index}" for index in range(4)]


@pytest.mark.parametrize(
    ("metric", "measured", "printed", "finding"),
    [
        ("psnr", Cell(25.71, 100, 25.2, 26.2), "26.65", "outside"),
        ("psnr", Cell(25.71, 100, 25.2, 26.2), "25.69", "inside"),
        ("psnr", Cell(25.71, 100, 25.2, 26.2), "25.70", "as printed"),
        ("psnr", Cell(25.7049, 100, 25.2, 26.2), "25.7", "as printed"),
        ("psnr", Cell(25.744, 100, 25.73, 25.75), "25.7", "as printed"),  # rounding alone
        ("ssim", Cell(0.7616, 100, 0.74, 0.78), "0.7603", "inside"),
        ("fid", Cell(136.0, 100), "136.29", "no interval"),
        ("fid", Cell(123.49, 100), "123.48", "as printed"),
        ("psnr", Cell(25.71, 10, 25.2, 26.2), "26.65", "other images"),
    ],
)
def test_a_gap_counts_beyond_rounding_laboratories_and_interval(
    metric: str, measured: Cell, printed: str, finding: str
) -> None:
    assert judge(metric, measured, printed, 100).finding == finding


def test_the_rounding_of_the_printed_figure_widens_the_interval() -> None:
    assert judge("psnr", Cell(25.0, 100, 24.0, 26.0), "26.004", 100).finding == "outside"
    assert judge("psnr", Cell(25.0, 100, 24.0, 26.0), "26.0", 100).finding == "inside"


@pytest.mark.parametrize("text", ["—", "nan", "26,65"])
def test_a_printed_figure_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="number"):
        judge("psnr", Cell(25.0, 100, 24.0, 26.0), text, 100)


def test_every_figure_of_other_papers_has_a_source_and_is_a_number() -> None:
    rows = paper_figures("others.csv")
    known = {(row["dataset"], row["method"]) for spec in TABLES.values() if spec.profiles for row in
             csv.DictReader((PAPER_DIR / spec.paper).open()) if "psnr" in row}  # fmt: skip
    for row in rows:
        assert row["source"]
        assert (row["dataset"], row["method"]) in known
        for column in ("psnr", "ssim", "lpips", "dists", "fid", "niqe", "musiq", "maniqa", "clipiqa"):
            assert row[column] == "" or float(row[column]) > 0


def test_printed_figures_of_one_cell() -> None:
    (printed,) = printed_figures("RealSR", "Real-ESRGAN", 1, "psnr")
    assert (printed.source, printed.text) == ("the paper's Table 7", "26.65")
    assert [figure.text for figure in other_figures("RealSR", "Real-ESRGAN", 1, "psnr")] == ["25.69"]
    assert [figure.text for figure in printed_figures("RealSR", "AddSR", 4, "psnr")] == ["23.33"]
    assert printed_figures("Mini", "Real-ESRGAN", 1, "psnr") == []


def write_records(out: Path, values: dict[str, list[float]], total: int = 4) -> None:
    """Records of Real-ESRGAN on a RealSR of four images."""
    records = Records(out)
    method = records.of("realsr", "realesrgan")
    here = {"accelerator": None, "dtype": "fp32", "processor": "a", "threads": 1, "versions": {}}
    method.write_run(Restoration("realesrgan", "realsr", "0", 42, {}, {"here": here}))
    for name in NAMES:
        method.add_image(ImageRow(name, None, "l", "h", "s", 4, 4, None, "here", None))
    for metric, column in values.items():
        for name, value in zip(NAMES, column, strict=True):
            method.add_score(ScoreRow(metric, name, value, "s", "h", 1, "protocol", {}, {}, None))
    metrics = [PlanMetric(name, name.upper(), "image", True, True, 4, "protocol", []) for name in values]
    sets = [PlanSet("realsr", "RealSR", NAMES, total)]
    rows = [PlanMethod("realesrgan", "Real-ESRGAN", 1, {})]
    records.write_plan(Plan("table7", "Table 7: GANs", "mini", 42, "table7.csv", "bicubic", sets, rows, metrics))


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(list(arguments))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_a_contradiction_is_marked_in_words_with_the_figure_that_agrees(
    tmp_path: Path, bench: Callable[..., tuple[int, str, str]]
) -> None:
    write_records(tmp_path, {"psnr": [25.6, 25.8, 25.7, 25.74], "ssim": [0.76, 0.77, 0.765, 0.766]})
    status, out, _ = bench("audit", "table7", "--out", str(tmp_path))
    assert status == 1
    assert "PSNR of Real-ESRGAN on RealSR: 26.65 printed in the paper's Table 7, 25.7100 measured" in out
    assert "nearer to the measured one: 25.69 in OSEDiff" in out
    lines = [line for line in out.splitlines() if line.startswith("| Real-ESRGAN")]
    assert ["✗" in line for line in lines] == [True, False]
    assert "differs, inside the interval" in lines[1]
    assert out == (tmp_path / "table7.audit.md").read_text()
    with (tmp_path / "table7.audit.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["metric"], row["finding"]) for row in rows] == [("psnr", "outside"), ("ssim", "inside")]
    assert float(rows[0]["gap"]) == pytest.approx(-0.94)


def test_part_of_the_images_contradicts_nothing(tmp_path: Path, bench: Callable[..., tuple[int, str, str]]) -> None:
    write_records(tmp_path, {"psnr": [25.6, 25.8, 25.7, 25.74]}, total=100)
    status, out, _ = bench("audit", "table7", "--out", str(tmp_path))
    assert status == 0
    assert "part of the images" in out


def test_what_cannot_be_audited_is_said(tmp_path: Path, bench: Callable[..., tuple[int, str, str]]) -> None:
    status, _, error = bench("audit", "table7", "--out", str(tmp_path))
    assert status == 2
    assert "no records of table7" in error
    write_records(tmp_path, {"kid": [0.1, 0.2, 0.3, 0.4]})
    plan = Records(tmp_path).read_plan("table7")
    assert plan is not None
    with pytest.raises(UserError, match="nothing to audit in table7"):
        audit(Records(tmp_path), plan)
