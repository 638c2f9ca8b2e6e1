"""The whole way on test sets without ground truth, and with published outputs: scored, drawn, laid out."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import cli
from bench.records.records import Records
from bench.report.figures import CAPTION, GAP, HEADER, TILE

Bench = Callable[..., tuple[int, str, str]]
RUN = ("run", "--table", "table7", "--methods", "bicubic", "lanczos", "--out", "out", "--no-timing")


def headers(markdown: str) -> list[str]:
    line = next(line for line in markdown.splitlines() if line.startswith("| Method"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def row(markdown: str, display: str) -> list[str]:
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {display} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_of_such_a_set_has_the_columns_it_can_have(bench: Bench, unreferenced: Path) -> None:
    status, out, _ = bench(*RUN, "--testsets", "realsrset")
    assert status == 0
    assert "measured on RealSRSet (N = 3)" in out
    assert headers(out) == ["Method", "Steps", "NIQE ↓"]
    assert "- MUSIQ, MANIQA and CLIPIQA were not measured (files are missing: `bench fetch metrics`).\n" in out
    assert "FID depends" not in out
    assert "ground truth" not in out
    scores = Records(Path("out")).of("realsrset", "bicubic").scores("niqe")
    assert [rows.hr_sha256 for rows in scores.values()] == [None] * 3
    mean = np.mean([rows.value for rows in scores.values()])
    assert row(out, "Bicubic")[2].strip("*⁼") == f"{mean:.4f}"
    sizes = [(rows.width, rows.height) for rows in Records(Path("out")).of("realsrset", "bicubic").images().values()]
    assert sizes == [(200, 108), (196, 196), (244, 120)]
    assert bench(*RUN, "--testsets", "realsrset")[1] == out
    assert bench("table", "--table", "table7", "--out", "out", "--no-timing")[1] == out


def test_the_picture_has_no_column_for_a_ground_truth(bench: Bench, unreferenced: Path) -> None:
    assert "no picture of RealSRSet, whose images may not be handed on" in bench(*RUN, "--testsets", "realsrset")[2]
    assert not Path("out/table7.png").exists()
    bench(*RUN, "--testsets", "realsrset", "--figure")
    with Image.open("out/table7.png") as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)
    block = 2 * TILE + CAPTION + 3 * GAP
    assert sheet.shape == (HEADER + 3 * block + GAP, 3 * (TILE + GAP) + GAP, 3), "input and two methods"
    caption = sheet[HEADER + 2 * TILE + 2 * GAP : HEADER + block - GAP, GAP : GAP + TILE]
    assert caption.min() < 100, "the image's name below the input"
    with Image.open(unreferenced / "scene0.png") as image:
        colours = {tuple(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}
    detail = sheet[HEADER + TILE + GAP : HEADER + 2 * TILE + GAP, GAP : GAP + TILE].reshape(-1, 3)
    assert {tuple(pixel) for pixel in detail.tolist()} <= colours, "the input's own pixels, enlarged"


def test_in_a_table_of_both_kinds_each_set_has_the_columns_it_can_have(bench: Bench, unreferenced: Path) -> None:
    arguments = (*RUN, "--metrics", "psnr", "lpips", "niqe", "--no-figure")
    status, out, _ = bench(*arguments, "--testsets", "mini", "realsrset")
    assert status == 0
    mini, section = out.split("## RealSRSet (N = 3)")
    assert headers(mini)[2] == "PSNR ↑"
    assert "LPIPS was not measured (files are missing: `bench fetch lpips`)" in mini
    assert headers(section)[2:] == ["NIQE ↓"]
    assert float(row(section, "Bicubic")[2].strip("*⁼")) > 0
    assert "- PSNR and LPIPS were not measured (each needs a ground truth, and RealSRSet has none).\n" in section
    difference = section.split("Paired difference")[1]
    assert headers(difference) == ["Method", "NIQE ↓"]
    assert bench("compare", "out", "out")[0] == 0


def test_asked_for_by_name_such_a_column_is_a_sentence_that_says_why(bench: Bench, unreferenced: Path) -> None:
    status, out, _ = bench(*RUN, "--testsets", "realsrset", "--metrics", "psnr", "niqe", "--no-figure")
    assert status == 0
    assert headers(out)[2:] == ["NIQE ↓"]
    assert "- PSNR was not measured (needs a ground truth, and RealSRSet has none).\n" in out


def test_published_outputs_are_measured_where_there_are_any(bench: Bench, unreferenced: Path, tmp_path: Path) -> None:
    bench("restore", "--methods", "lanczos", "--testsets", "mini", "--out", "theirs")
    shutil.copytree("theirs/images/mini/lanczos", tmp_path / "data" / "mini" / "net")
    arguments = (*RUN[:4], "bicubic", "published:net", *RUN[6:], "--metrics", "psnr", "--no-figure")
    status, out, _ = bench(*arguments, "--testsets", "mini", "realsrset")
    assert status == 0
    assert "- net (published) was not measured (missing: published images for realsrset).\n" in out
    assert (
        "needs published images for realsrset at $TSD_DATA/realsrset/net/" in Path("out/table7.reasons.csv").read_text()
    )
    images = Records(Path("out")).of("mini", "net-published").images()
    assert {rows.seed for rows in images.values()} == {None}
    _, plain, _ = bench(*RUN, "--testsets", "mini", "--metrics", "psnr", "--no-figure")
    assert row(out, "net (published)")[2].strip("*⁼") == row(plain, "Lanczos")[2].strip("*⁼")
    assert not set("*⁼") & set(row(plain, "Lanczos")[2]), "three images are too few for a mark"
    status, _, err = bench(*arguments, "--testsets", "realsrset")
    assert status == 2
    assert "--methods published:net: not there" in err


def test_bsrgans_published_images_make_a_row_for_realsrset(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shared_dir / "weights" / "pyiqa", tmp_path / "torch" / "hub" / "pyiqa")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    arguments = ["run", "--table", "table7", "--testsets", "realsrset", "--methods", "bicubic", "bsrgan-published"]
    arguments += ["--limit", "3", "--data-root", str(shared_dir / "data"), "--out", str(tmp_path / "out"), "--figure"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "measured on RealSRSet (N = 3 of 20)" in out
    assert headers(out)[2:] == ["NIQE ↓", "s/image ↓"]
    assert float(row(out, "BSRGAN (published)")[2].strip("*⁼")) < float(row(out, "Bicubic")[2].strip("*⁼"))
    assert row(out, "BSRGAN (published)")[3] == "— [1]"
    assert "- [1] published images, the time is not measured here\n" in out
    assert str(tmp_path) not in out
    assert (tmp_path / "out" / "table7.png").exists()
