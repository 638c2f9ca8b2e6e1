"""The whole way: a test set through `restore_set` into images and rows, with what a row says of a process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.methods.external.method import external_spec
from bench.provenance import image_seed
from bench.records.records import Records
from bench.run.restore import restore_set
from bench.testsets.manifest import TestImage, TestSet

pytestmark = pytest.mark.usefixtures("built")


def testset_of(images: dict[str, Path]) -> TestSet:
    listed = tuple(TestImage(name, path, None, f"sha of {name}", None) for name, path in sorted(images.items()))
    return TestSet("mini", "Mini", listed, len(listed), "Apache-2.0", "the tests", "0" * 64)


testset_of.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def test_images_rows_and_the_environment_of_the_process(make_card, options, make_images, tmp_path) -> None:
    testset = testset_of(make_images("a", "skip_b", "small_c"))
    records = Records(tmp_path / "out")
    spec = external_spec(make_card(seeding="image"))
    report = restore_set(records, testset, spec, options)
    assert (report.made, sorted(report.failed)) == (1, ["skip_b", "small_c"])
    rows = records.of("mini", "tiny").images()
    assert (rows["a"].width, rows["a"].height, rows["a"].seconds) == (80, 64, None)
    assert rows["a"].seed == image_seed(42, "a")
    assert rows["skip_b"].error is not None
    assert "partial result" in rows["skip_b"].error
    assert "log: images/.work/mini/tiny/attempt-1.log" in rows["skip_b"].error
    assert (tmp_path / "out/images/.work/mini/tiny/attempt-1.log").is_file()
    run = records.of("mini", "tiny").run()
    assert run is not None
    external = run.environments[rows["a"].environment]["external"]
    assert external["packages"] == {"pillow": "10.4.0"}
    text = "".join(path.read_text() for path in (tmp_path / "out/records").rglob("*.json*"))
    assert str(tmp_path) not in text
    assert str(options.cache()) not in text
    again = restore_set(records, testset, spec, options)
    assert (again.kept, again.made, sorted(again.failed)) == (1, 0, ["skip_b", "small_c"])
    assert "Tiny, 2 images" in (tmp_path / "out/images/.work/mini/tiny/attempt-2.log").read_text()


def test_an_image_restored_alone_is_the_same(make_card, options, make_images, tmp_path) -> None:
    images = make_images("a", "b", "c")
    spec = external_spec(make_card(seeding="image"))
    for out, names in (("all", "abc"), ("one", "b")):
        restore_set(Records(tmp_path / out), testset_of({n: images[n] for n in names}), spec, options)
    made = [(tmp_path / out / "images/mini/tiny/b.png").read_bytes() for out in ("all", "one")]
    assert made[0] == made[1]


def test_what_cannot_be_prepared_costs_the_row_and_leaves_nothing(make_card, options, make_images, tmp_path) -> None:
    testset = testset_of(make_images("a", "b"))
    records = Records(tmp_path / "out")
    card = make_card(repository="https://unreachable.invalid/Tiny", name="far")
    report = restore_set(records, testset, external_spec(card), options)
    assert set(report.failed) == {"a", "b"}
    assert "https://unreachable.invalid/Tiny cannot be reached" in report.failed["a"]
    assert "--repo-dir" in report.failed["a"]
    clone = tmp_path / "clones/Tiny"
    clone.mkdir(parents=True)
    for name in ("Tiny", "Tiny.git"):
        (clone.parent / name).mkdir(exist_ok=True)
    nowhere = replace(options, repo_dir=tmp_path / "clones")
    report = restore_set(Records(tmp_path / "other"), testset, external_spec(card), nowhere)
    assert "could not be loaded: --repo-dir holds no repository of Tiny" in report.failed["b"]
    assert not list((options.cache() / "repositories").glob("far-*"))
    text = json.dumps([row.error for row in records.of("mini", "far").images().values()])
    assert str(tmp_path) not in text
