"""A script times its own images through the harness's module, and the harness reads what it wrote."""

import json
from pathlib import Path

import pytest

from bench.cards.card import cards
from bench.methods.external.method import external_spec
from bench.methods.external.times import read_times
from tsd.errors import UserError

PATCH = """
[[patches]]
file = "run.py"
find = "image = image.resize(size, 0).point("
replace = "import bench_time; image = bench_time.timed(path, image.resize)(size, 0).point("
reason = "the seconds of an image"
"""


def test_lines_add_up_by_image_and_the_first_image_is_cold(tmp_path: Path) -> None:
    path = tmp_path / "times.jsonl"
    lines = [("a.png", 9.0), ("a.png", 1.0), ("b.1.png", 0.5), ("c", 2.0), ("b.1.png", 0.25), ("alien.png", 1.0)]
    text = "".join(json.dumps({"image": image, "seconds": seconds}) + "\n" for image, seconds in lines)
    path.write_text(text + '{"image": "d.png", "sec')
    assert read_times(path, ["a", "b.1", "c", "d"]) == {"b.1": 0.75, "c": 2.0}
    assert read_times(tmp_path / "none", ["a"]) == {}


@pytest.mark.usefixtures("built")
def test_a_patched_script_has_seconds_but_for_its_first_image(make_card, options, make_images, tmp_path) -> None:
    images = make_images("a", "b", "c")
    method = external_spec(make_card("timed", patches=PATCH, timing="one resize")).load(options)
    found = dict(method.restore_folder(images, dict.fromkeys(images, 1), tmp_path / "work"))
    assert all(isinstance(output, Path) for output in found.values())
    assert method.seconds("a") is None
    assert 0 < method.seconds("b") < 5
    assert 0 < method.seconds("c") < 5
    assert "s/image counts one resize; the first image" in method.provenance()["remarks"][-1]


def test_timing_and_its_patch_belong_together(make_card) -> None:
    with pytest.raises(UserError, match="timing says what the patches with bench_time count"):
        make_card("lone", timing="nothing")


def test_every_external_card_times_its_images() -> None:
    external = [card for card in cards().values() if card.run == "external"]
    assert len(external) >= 12
    assert all(card.timing for card in external)
