"""What a site is made of, read back from its files without a browser."""

import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from bench import cli
from bench.paper.tables import pairs_of
from bench.records.records import Records
from bench.records.schema import Verification
from bench.report.summarize import summarize
from bench.site import pictures
from bench.site.build import SiteRequest, build
from bench.site.collection import collect
from bench.site.pictures import Job, make
from bench.site.pictures import pairs_of as picture_pairs
from bench.site.timings import Timing, Timings
from tsd.errors import UserError


class Page(HTMLParser):
    """The elements of a page, and the text of its scripts by id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self.text = ""
        self._script: str | None = None
        self._open = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag == "script"
        if self._open:
            self._script = dict(attrs).get("id")

    def handle_endtag(self, tag: str) -> None:
        self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.text += data

    def data(self):
        return json.loads(self.scripts["data"])


def webp(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_differences_are_those_of_the_table(run: Path) -> None:
    found = collect([run]).sets[0]
    records = Records(run)
    plan = records.read_plan("table1")
    assert plan is not None
    row = summarize(records, plan, pairs=pairs_of("table1", "mini")).sections[0].rows[1]
    assert [metric.name for metric in found.metrics] == ["psnr", "lpips"]  # without the one that nobody measured
    for at, metric in enumerate(found.metrics):
        cell = row.differences[metric.name]
        assert found.pair(at, 1, 0) == (cell.value, cell.low, cell.high, 3)
        mean, low, high, _ = found.pair(at, 0, 1)
        assert (mean, low, high) == pytest.approx((-cell.value, -cell.high, -cell.low))


def test_an_attached_verification_is_no_table(run: Path) -> None:
    Records(run).write_verification(Verification("2026-11-30", {}, {}, []))
    assert [plan.table for plan in collect([run]).runs[0].plans] == ["table1"]


def test_methods_on_other_images_are_not_compared(run: Path) -> None:
    path = Records(run).of("mini", "my-net").folder / "scores.psnr.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    found = collect([run]).sets[0]
    assert found.pair(0, 1, 0) is None
    assert found.pair(1, 1, 0) is not None


def test_an_image_that_is_not_the_recorded_one_is_not_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handle = Records(run).of("mini", "my-net")
    handle.image_path("one").write_bytes(handle.image_path("two").read_bytes())
    handle.image_path("two").unlink()
    found = collect([run]).sets[0]
    assert [path and path.stem for path in found.methods[1].files] == [None, "three", None]
    assert found.methods[1].faults == {"not the recorded file (another hash)": 1, "not on this machine": 1}
    page = build(SiteRequest((run,), run.parent / "out"))
    assert "not the recorded file" in capsys.readouterr().err
    assert "1 of 3, not the recorded file (another hash)" in Page(page).text
    assert [image and image[3] for image in Page(page).data()["sets"][0]["images"]] == ["1011", "1111", "1011"]


def test_inputs_that_the_methods_were_not_given_are_not_shown(run: Path) -> None:
    path = run.parent / "datasets" / "mini" / "manifest.json"
    other = run.parent / "datasets" / "mini" / "test_LR" / "one.png"
    Image.new("RGB", (24, 16)).save(other)
    assert "not those of" in collect([run]).sets[0].note  # they differ from the manifest
    content = json.loads(path.read_text())
    for entry in content["images"]:
        del entry["lr_sha256"]
    content["lr_size"] = [24, 16]
    path.write_text(json.dumps(content))
    found = collect([run]).sets[0]
    assert [path is None for path in found.inputs] == [True, False, False]
    assert "1 images are not shown" in found.note


def test_a_run_without_images_has_its_tables(run: Path) -> None:
    shutil.rmtree(run / "images")
    page = Page(build(SiteRequest((run,), run.parent / "out")))
    assert page.data()["sets"][0]["images"] == [None, None, None]
    assert not (run.parent / "out" / "images").exists()
    assert "22.00" in page.text


def test_two_runs_stand_side_by_side(run: Path) -> None:
    other = shutil.copytree(run, run.parent / "elsewhere" / "run")
    collection = collect([run, other])
    assert [shown.display for shown in collection.sets[0].methods][::2] == ["Bicubic · run", "Bicubic · run (2)"]
    names = [
        method["name"]
        for method in Page(build(SiteRequest((run, other), run.parent / "out"))).data()["sets"][0]["methods"]
    ]
    assert names == ["bicubic@run", "my-net@run", "bicubic@run (2)", "my-net@run (2)"]
    with pytest.raises(UserError, match="twice"):
        collect([run, run])


def test_previews_hold_the_pixels_of_the_originals(run: Path) -> None:
    build(SiteRequest((run,), run.parent / "out"))
    names = sorted(["one", "two", "three"])
    original = np.asarray(Image.open(Records(run).of("mini", "my-net").image_path("three")))
    preview = (run.parent / "out" / "images" / "mini" / f"{names.index('three')}-1.webp").read_bytes()
    assert np.array_equal(webp(preview), original)


def test_the_region_is_where_two_pictures_differ_most(tmp_path: Path) -> None:
    first = np.full((128, 256, 3), 100, np.uint8)
    second = first.copy()
    second[40:80, 160:200] = 250
    for name, pixels in (("a", first), ("b", second)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    files = (tmp_path / "a.png", tmp_path / "b.png", tmp_path / "a.png", None, tmp_path / "b.png")
    (made,) = make([Job("mini", 0, files)], None, "")
    regions = dict(zip(picture_pairs(4), made.regions, strict=True))  # three methods and the ground truth
    row, column = divmod(regions[0, 1], 256 // pictures.BLOCK)
    top, left = row * pictures.BLOCK, column * pictures.BLOCK
    assert top <= 40 < 80 <= top + pictures.WINDOW
    assert left <= 160 < 200 <= left + pictures.WINDOW
    assert regions[0, 2] == -1  # they are equal
    assert regions[1, 3] == -1
    assert made.size == (256, 128)
    assert webp(made.strip).shape == (pictures.THUMBNAIL, 5 * made.tile, 3)


def test_a_picture_of_another_size_is_left_out_and_named(tmp_path: Path) -> None:
    for name, size in (("lr", (16, 16)), ("right", (64, 64)), ("wrong", (64, 60))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = tuple(tmp_path / f"{name}.png" for name in ("wrong", "right", "broken", "lr", "right"))
    (made,) = make([Job("mini", 0, files)], None, "")
    assert [preview is not None for preview in made.previews] == [False, True, False, True, True]
    assert made.faults == {0: "another size (64x60, not 64x64)", 2: "cannot be read (UnidentifiedImageError)"}


def test_a_site_that_would_be_too_large_is_refused_before_it_is_written(run: Path) -> None:
    with pytest.raises(UserError, match=r"about .* kB, more than --max-mb allows .*--quality 90 .*or --max-mb 1"):
        build(SiteRequest((run,), run.parent / "out", max_mb=0))
    assert not (run.parent / "out").exists()


def test_flip_maps_are_of_outputs_against_the_ground_truth(tmp_path: Path) -> None:
    flip = pytest.importorskip("flip_evaluator")
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    for name, pixels in (("hr", noise), ("same", noise), ("other", noise // 2)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    same, other, hr = (tmp_path / f"{name}.png" for name in ("same", "other", "hr"))
    (made,) = make([Job("mini", 0, (same, None, other, None, hr))], None, "", flip=True)
    assert sorted(made.maps) == [0, 2]
    assert made.maps[0][1] == 0
    assert webp(made.maps[0][0]).max() <= 8  # the darkest colour
    theirs = flip.evaluate(str(hr), str(other), "LDR")  # which reads the files itself, at the same pixels per degree
    assert made.maps[2][1] == pytest.approx(theirs[1], rel=1e-4)
    assert np.abs(webp(made.maps[2][0]) / 255 - theirs[0]).mean() < 0.1
    assert made.size_bytes == len(made.strip) + sum(len(p) for p in made.previews if p) + sum(
        len(content) for content, _ in made.maps.values()
    )
    (without,) = make([Job("mini", 0, (same, None, None))], None, "", flip=True)
    assert without.maps == {}


@pytest.mark.parametrize("originals", ["link", "copy"])
def test_originals_are_beside_the_page(run: Path, originals: Literal["link", "copy"]) -> None:
    out = run.parent / "site" / "out"
    data = Page(build(SiteRequest((run,), out, originals=originals))).data()
    for place, method in enumerate(("bicubic", "my-net")):
        beside = data["originals"][0][place]
        for image, name in enumerate(data["sets"][0]["names"]):
            path = out / unquote(beside["base"]) / f"{f'{image}-{place}' if beside['numbered'] else name}.png"
            assert path.read_bytes() == Records(run).of("mini", method).image_path(name).read_bytes()
    assert (out / "originals").exists() == (originals == "copy")
    with pytest.raises(UserError, match="leave out --single-file"):
        build(SiteRequest((run,), out.with_suffix(".html"), single_file=True, originals=originals))


def test_copies_count_in_the_size(run: Path) -> None:
    with pytest.raises(UserError, match=r"--originals link \(\d+ kB less\)"):
        build(SiteRequest((run,), run.parent / "out", max_mb=0, originals="copy"))


def test_timings_of_other_weights_say_so(run: Path) -> None:
    provenance = Records(run).of("mini", "my-net").run().provenance
    methods = {"bicubic": Timing(0.1, None, None, {}), "my-net": Timing(1.0, 0.5, 2.0, {**provenance, "input": "ab"})}
    page = build(SiteRequest((run,), run.parent / "out", images=0, timings=(Timings("t", 256, "CPU", methods),)))
    assert Page(page).data()["timings"][0]["sets"] == [[[0.1, None, None, False], [1.0, 0.5, 2.0, True]]]


@pytest.mark.parametrize("count", [0, 2])
def test_fewer_images(run: Path, count: int) -> None:
    page = Page(build(SiteRequest((run,), run.parent / "out", images=count)))
    assert sum(image is not None for image in page.data()["sets"][0]["images"]) == count


def test_only_a_site_is_replaced(run: Path) -> None:
    out = run.parent / "out"
    build(SiteRequest((run,), out))
    (out / "left-over").touch()
    build(SiteRequest((run,), out, images=0))
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "records"]
    assert [path.name for path in run.parent.iterdir() if path.name.startswith(".")] == []
    for place in (run, run.parent / "out.html", run.parent / "datasets"):
        with pytest.raises(UserError, match="--out"):
            build(SiteRequest((run,), place))
    (run.parent / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(UserError, match="not a site"):
        build(SiteRequest((run,), run.parent / "mine.html", single_file=True))
    assert (run.parent / "mine.html").read_text() == "<p>mine</p>"


def test_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.parent / "out"
    assert cli.main(["site", str(run), "--out", str(out), "--quality", "80"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{(out / 'index.html').as_uri()}\n"
    assert "pictures of 3 images, about" in captured.err
    assert "not exactly those of the originals" in Page(out / "index.html").text
    assert cli.main(["site", str(run.parent), "--out", str(out)]) == 2
    assert "no records in" in capsys.readouterr().err
    assert cli.main(["site", str(run), "--out", str(out), "--latency", str(run)]) == 2
    assert "no timings there" in capsys.readouterr().err
    for wrong in (["--images", "-1"], ["--quality", "0"], ["--quality", "best"]):
        with pytest.raises(SystemExit):
            cli.main(["site", str(run), "--out", str(out), *wrong])


@pytest.mark.parametrize("name", ["folder/index.html", "single.html"])
def test_names_are_text_and_nothing_comes_from_elsewhere(site: Path, name: str) -> None:
    page = Page(site / name)
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert len([attributes for attributes in scripts if "type" not in attributes]) == 1
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert not any(tag in ("img", "link") and attributes.get("rel") != "icon" for tag, attributes in page.elements)
    addresses = [
        value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    assert [value for value in addresses if value and re.match(r"\w+:(?!,)|//", value)] == []
    assert "a <remark>" in page.text
    assert page.data()["sets"][0]["names"][2] == "__proto__"
    assert all(ord(character) < 0x2028 or ord(character) > 0x2029 for character in page.scripts["data"])
