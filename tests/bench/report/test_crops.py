"""Figures 7 and 9 to 13: pixels are those of the files, in PNG and PDF, and what does not fit is refused."""

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.methods import METHODS
from bench.options import RunOptions
from bench.paper.tables import TABLES
from bench.records.records import Records
from bench.records.schema import PlanSet, ScoreRow
from bench.report.crops import GAP, LINE, TILE, CropRequest, draw_crops
from bench.run.plan import choose, make_plan
from bench.run.restore import restore_set
from bench.testsets.manifest import TestSet

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny: TestSet, tmp_path: Path) -> Path:
    """A run of two methods, one of which has a name with signs of formulas, with a PSNR for every image."""
    chosen = choose(
        TABLES["table1"], "mini", RunOptions(), testsets=None, methods=["bicubic", "lanczos"], metrics=["psnr"]
    )
    sets = [PlanSet("mini", "Mini", [image.name for image in tiny.images], 3)]
    plan = make_plan(chosen, sets, seed=42, reference="bicubic", old=None)
    records = Records(tmp_path / "run")
    for number, method in enumerate(plan.methods):
        restore_set(records, tiny, METHODS[method.name], RunOptions())
        handle = records.of("mini", method.name)
        for row in handle.images().values():
            protocol, sha256 = plan.metrics[0].protocol, row.sr_sha256 or ""
            handle.add_score(
                ScoreRow("psnr", row.name, 20.0 + number, sha256, row.hr_sha256, 1, protocol, {}, {}, None)
            )
    methods = [replace(method, display=f"{method.display} $\\frac{{ <b> {'very ' * 20}long") for method in plan.methods]
    records.write_plan(replace(plan, methods=methods))
    return records.out


def write_votes(run: Path, path: Path, source: str = "measured", **changed: str) -> Path:
    lines = [
        {"source": source, "image": row.name, "method": method, "sr_sha256": row.sr_sha256, "chosen": 7, "votes": 9}
        for method in ("bicubic", "lanczos")
        for row in Records(run).of("mini", method).images().values()
    ]
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(lines[0]))
        writer.writeheader()
        writer.writerows(line | changed for line in lines)
    return path


def test_a_detail_is_the_pixels_of_the_file(run: Path, tmp_path: Path) -> None:
    request = CropRequest(run, tmp_path / "out", images=("photo1", "photo0"), crops=((16, 8, 40), None))
    png, pdf = draw_crops(request)
    assert (png.name, pdf.name) == ("figure7.png", "figure7.pdf")
    sheet = np.asarray(Image.open(png).convert("RGB"))
    expected = [
        np.asarray(Image.open(run / "images" / "mini" / method / "photo1.png").convert("RGB"))[8:48, 16:56]
        for method in ("bicubic", "lanczos")
    ]
    enlarged = [pixels.repeat(TILE // 40, 0).repeat(TILE // 40, 1) for pixels in expected]
    whole = round(80 * (2 * TILE + LINE) / 64)
    left, top = whole + 2 * GAP, GAP
    second = sheet[top : top + TILE, left + TILE + GAP : left + 2 * TILE + GAP]
    assert np.array_equal(second, enlarged[0])
    data = pdf.read_bytes()
    assert {int(width) for width in re.findall(rb"/Width (\d+)", data)} == {whole, TILE, 3 * 64}
    assert len(re.findall(rb"/Width 240\b", data)) == 4  # input, two methods and ground truth
    assert b"Software" not in png.read_bytes()
    again = [path.read_bytes() for path in draw_crops(replace(request, out=tmp_path / "again"))]
    assert again == [png.read_bytes(), data]


def test_figure_13_has_metrics_and_votes(run: Path, bench: Command, tmp_path: Path) -> None:
    arguments = ("figures", run, "--figure", 13, "--images", "photo1", "--metrics", "psnr", "--out", tmp_path / "out")
    votes = write_votes(run, tmp_path / "votes.csv", source="simulated")
    status, printed, _ = bench(*arguments, "--votes", votes)
    assert status == 0
    assert printed.split() == [str(tmp_path / "out" / f"figure13.{ending}") for ending in ("png", "pdf")]
    sheet = Image.open(tmp_path / "out" / "figure13.png")
    assert bench(*arguments)[0] == 0
    assert Image.open(tmp_path / "out" / "figure13.png").height < sheet.height  # without the note and a line of votes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", "no-such"), "Mini has no no-such"),
        (("--crops", "0,0,40"), "1 for 3 images"),
        (("--images", "photo0", "--crops", "60,0,40"), "photo0 is 80x64; expected LEFT,TOP,SIDE inside"),
        (("--metrics", "lpips"), "has no lpips of single images; it has psnr"),
        (("--methods", "seesr"), "the run has no seesr"),
    ],
)
def test_what_cannot_be_drawn(run: Path, bench: Command, tmp_path: Path, arguments, message: str) -> None:
    status, _, error = bench("figures", run, *arguments, "--out", tmp_path / "out")
    assert status == 2
    assert message in error
    assert not (tmp_path / "out").exists()


def test_votes_and_images_must_be_of_the_same_files(run: Path, bench: Command, tmp_path: Path) -> None:
    arguments = ("figures", run, "--images", "photo1", "--out", tmp_path / "out", "--votes", tmp_path / "votes.csv")
    write_votes(run, tmp_path / "votes.csv", sr_sha256="0" * 64)
    assert "people saw another image of bicubic on photo1" in bench(*arguments)[2]
    write_votes(run, tmp_path / "votes.csv", image="else")
    assert "no votes on these images" in bench(*arguments)[2]
    (tmp_path / "votes.csv").write_text("a,b\n1,2\n")
    assert "expected the figure8-images.csv" in bench(*arguments)[2]
    (run / "images" / "mini" / "lanczos" / "photo1.png").write_bytes(b"x")
    assert "photo1: the image of lanczos is not the recorded file" in bench(*arguments)[2]
