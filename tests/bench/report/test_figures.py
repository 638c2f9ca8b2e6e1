"""The picture is drawn from the recorded images, and from nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.methods import METHODS
from bench.metrics import METRICS
from bench.options import RunOptions
from bench.paper.tables import TABLES
from bench.records.records import Records
from bench.records.schema import Plan, PlanSet
from bench.report.figures import CAPTION, GAP, HEADER, TILE, busiest_window, draw_figure, fine_detail, spread
from bench.run.plan import choose, make_plan
from bench.run.restore import restore_set
from bench.run.score import score_set
from bench.testsets.manifest import TestSet


@pytest.fixture
def plan(tiny: TestSet) -> Plan:
    chosen = choose(
        TABLES["table1"], "mini", RunOptions(), testsets=None, methods=["bicubic", "lanczos"], metrics=["psnr"]
    )
    sets = [PlanSet("mini", "Mini", [image.name for image in tiny.images], 3)]
    return make_plan(chosen, sets, seed=42, reference="bicubic", old=None)


@pytest.fixture
def records(tmp_path: Path, tiny: TestSet) -> Records:
    records = Records(tmp_path / "out")
    for method in ("bicubic", "lanczos"):
        restore_set(records, tiny, METHODS[method], RunOptions())
    return records


def test_the_window_is_where_the_image_varies_most() -> None:
    luma = np.full((64, 80), 100.0)
    luma[30:46, 50:66] += np.random.default_rng(0).normal(0, 20, (16, 16))
    left, top, right, bottom = busiest_window(luma, 20)
    assert (right - left, bottom - top) == (20, 20)
    assert left % 4 == top % 4 == 0
    assert left <= 50
    assert right >= 66
    assert top <= 30
    assert bottom >= 46


def test_the_window_shows_fine_detail_rather_than_a_broad_ramp() -> None:
    ramp = np.tile(np.linspace(0, 255, 80), (64, 1))
    textured = ramp.copy()
    textured[20:40, 4:24] += np.random.default_rng(0).uniform(-15, 15, (20, 20))
    image = Image.fromarray(textured.clip(0, 255).astype(np.uint8))
    assert np.abs(fine_detail(Image.fromarray(ramp.astype(np.uint8)))[:, 16:-16]).max() <= 2
    assert busiest_window(fine_detail(image), 20) == (4, 20, 24, 40)


@pytest.mark.parametrize("shape", [(20, 20), (20, 84), (84, 20)])
def test_the_window_stays_inside(shape: tuple[int, int]) -> None:
    luma = np.random.default_rng(1).normal(0, 1, shape)
    left, top, right, bottom = busiest_window(luma, 20)
    assert 0 <= left < right <= shape[1]
    assert 0 <= top < bottom <= shape[0]


def test_the_window_is_that_of_a_direct_search() -> None:
    luma = np.random.default_rng(2).uniform(0, 255, (40, 52))
    best = max(
        ((luma[y : y + 24, x : x + 24].var(), -y, -x) for y in range(0, 17, 4) for x in range(0, 29, 4)),
    )
    assert busiest_window(luma, 24)[:2] == (-best[2], -best[1])


def test_images_are_spread_over_the_set() -> None:
    assert spread(list(range(100)), 3) == [16, 50, 83]  # type: ignore[arg-type]
    assert spread([1, 2], 3) == [1, 2]  # type: ignore[list-item]


def test_every_tile_is_the_image_it_is_said_to_be(records: Records, plan: Plan, tiny: TestSet, tmp_path: Path) -> None:
    score_set(records, tiny, ["bicubic", "lanczos"], METRICS["psnr"], "cpu")
    path = tmp_path / "table1.png"
    assert draw_figure(records, plan, tiny, path)
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)
    block = 2 * TILE + CAPTION + 3 * GAP
    assert sheet.shape == (HEADER + 3 * block + GAP, 4 * (TILE + GAP) + GAP, 3)
    sources = [None, *(records.of("mini", method).image_path("photo1") for method in ("bicubic", "lanczos"))]
    for column, source in enumerate([*sources, tiny.images[1].hr]):
        if source is None:
            continue
        with Image.open(source) as image:
            window = busiest_window(fine_detail(Image.open(tiny.images[1].hr)), 64)  # type: ignore[arg-type]
            detail = np.asarray(image.crop(window).resize((TILE, TILE), Image.Resampling.NEAREST)).astype(int)
        top, left = HEADER + block + TILE + GAP, GAP + column * (TILE + GAP)
        assert np.array_equal(sheet[top : top + TILE, left : left + TILE], detail)
        caption = sheet[top + TILE + GAP : top + TILE + GAP + CAPTION, left : left + TILE]
        assert caption.min() < 100, "PSNR or name below every column but the input"


def test_the_same_images_give_the_same_bytes_and_are_drawn_once(
    records: Records, plan: Plan, tiny: TestSet, tmp_path: Path
) -> None:
    path = tmp_path / "table1.png"
    draw_figure(records, plan, tiny, path)
    first, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert draw_figure(records, plan, tiny, path)
    assert path.stat().st_mtime_ns == stamp
    path.write_bytes(b"damaged")
    draw_figure(records, plan, tiny, path)
    assert path.read_bytes() == first
    fewer = replace(plan, methods=plan.methods[:1])
    draw_figure(records, fewer, tiny, path)
    assert path.read_bytes() != first


def test_the_images_may_be_chosen(records: Records, plan: Plan, tiny: TestSet, tmp_path: Path) -> None:
    assert draw_figure(records, plan, tiny, tmp_path / "all.png")
    assert draw_figure(records, plan, tiny, tmp_path / "last.png", ["photo2"])
    with Image.open(tmp_path / "all.png") as image:
        every = np.asarray(image.convert("RGB"))
    with Image.open(tmp_path / "last.png") as image:
        last = np.asarray(image.convert("RGB"))
    assert np.array_equal(last[HEADER:], every[-len(last) + HEADER :])


def test_a_method_whose_images_are_not_on_disk_has_no_column(
    records: Records, plan: Plan, tiny: TestSet, tmp_path: Path
) -> None:
    records.of("mini", "lanczos").image_path("photo0").unlink()
    draw_figure(records, plan, tiny, tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as image:
        assert image.width == 3 * (TILE + GAP) + GAP
    records.of("mini", "bicubic").image_path("photo0").unlink()
    assert not draw_figure(records, plan, tiny, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
