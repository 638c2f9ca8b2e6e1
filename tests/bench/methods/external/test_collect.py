"""Names and patterns; the checks of single files are tested through the whole mechanism (test_method.py)."""

import time
from pathlib import Path

import pytest
from PIL import Image

from bench.methods.external.collect import OutputNames, collect


@pytest.mark.parametrize(
    ("pattern", "path", "name"),
    [
        ("{name}.png", "a.png", "a"),
        ("{name}.png", "a.b.png", "a.b"),
        ("{name}.png", "deeper/a.png", None),
        ("{name}.png", "A.png", None),
        ("{name}.png", "unknown.png", None),
        ("{name}_0.png", "a_0.png", "a"),
        ("{name}_*.png", "a_b_0.png", "a_b"),
        ("{name}_*.png", "a_c_0.png", "a"),
        ("*_{name}.png", "x_a_b.png", "a_b"),
        ("*/{name}.png", "sample00/a.png", "a"),
        ("*/{name}.png", "one/two/a.png", None),
        ("{name}/{name}_?.png", "a/a_1.png", "a"),
        ("{name}/{name}_?.png", "a/a_b_1.png", None),
        ("{name}.png", "x[1].png", "x[1]"),
    ],
)
def test_which_image_a_file_belongs_to(pattern: str, path: str, name: str | None) -> None:
    assert OutputNames(pattern, (), ["a", "a_b", "a.b", "x[1]"]).name_of(path) == name


def test_ignored_files_are_neither_outputs_nor_worth_a_word(tmp_path: Path) -> None:
    for path in ("a.png", "a_lq.png", "logs/x.txt", "grid.jpg"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 4)).save(tmp_path / path, format="PNG")
    names = OutputNames("{name}*.png", ["*_lq.png", "logs/*"], ["a"])
    result = collect(tmp_path, names, {"a": (2, 1)})
    assert result.files == {"a": tmp_path / "a.png"}
    assert result.unmatched == ["grid.jpg"]
    assert result.faults == {}


def test_grey_and_palette_images_are_8_bit_and_a_deep_one_is_not(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGB", "I;16", "1"):
        Image.new(mode, (8, 4)).save(tmp_path / f"{mode[0]}.png")
    sizes = dict.fromkeys(["L", "P", "R", "I", "1"], (2, 1))
    result = collect(tmp_path, OutputNames("{name}.png", (), sizes), sizes)
    assert set(result.files) == {"L", "P", "R"}
    assert result.faults == {
        "I": "wrong format: I.png is I;16, expected 8-bit RGB",
        "1": "wrong format: 1.png is 1, expected 8-bit RGB",
    }


@pytest.mark.parametrize("pattern", ["{name}.png", "{name}_*.png"])
def test_three_thousand_outputs_are_counted_fast_enough_for_a_progress_bar(tmp_path: Path, pattern: str) -> None:
    expected = [f"div2k_{number:04d}_crop" for number in range(3000)]
    for name in expected:
        (tmp_path / pattern.format(name=name).replace("*", "0")).touch()
    names = OutputNames(pattern, (), expected)
    start = time.perf_counter()
    by_name, unmatched = names.found(tmp_path)
    assert time.perf_counter() - start < 2
    assert set(by_name) == set(expected)
    assert unmatched == []
