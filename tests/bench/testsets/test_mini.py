"""The mini test set is what its manifest says: cuts of the named photographs, degraded with the recorded seeds."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bench.testsets.mini
from bench.testsets.mini import COMMITTED, SIZE, build, compare, main
from tsd.data.degrade import FULL, degrade
from tsd.seeds import seed_for

pytest.importorskip("skimage", reason="the photographs ship inside scikit-image")
pytest.importorskip("sklearn", reason="the photographs ship inside scikit-learn")

MANIFEST = json.loads((COMMITTED / "manifest.json").read_text())
ENTRIES = {entry["name"]: entry for entry in MANIFEST["images"]}


def pixels(side: str, name: str) -> np.ndarray:
    return np.asarray(Image.open(COMMITTED / side / name))


def photograph(identifier: str) -> np.ndarray:
    photo = next(photo for photo in MANIFEST["photographs"] if photo["id"] == identifier)
    return np.asarray(bench.testsets.mini._photograph(photo))


@pytest.mark.parametrize("name", ENTRIES)
def test_ground_truth_is_the_photograph(name: str):
    left, top = ENTRIES[name]["corner"]
    expected = photograph(ENTRIES[name]["photograph"])[top : top + SIZE, left : left + SIZE]
    np.testing.assert_array_equal(pixels("test_HR", name), expected)


@pytest.mark.parametrize("name", ENTRIES)
def test_input_is_the_ground_truth_degraded_with_the_recorded_seed(name: str):
    """Other versions of libjpeg or of the FFT may move single pixels; another seed or parameter moves all of them."""
    seed = ENTRIES[name]["seed"]
    assert seed == seed_for(MANIFEST["degradation"]["seed"], "degrade", Path(name).stem)
    hr = torch.from_numpy(pixels("test_HR", name).copy()).permute(2, 0, 1) / 255
    expected = (degrade(hr, FULL, seed) * 255).round().permute(1, 2, 0).numpy()
    gap = np.abs(expected - pixels("test_LR", name))
    assert gap.mean() < 0.1
    assert (gap > 0).mean() < 0.02


def test_cuts_of_one_photograph_do_not_overlap():
    for name, entry in ENTRIES.items():
        for other, another in ENTRIES.items():
            if name < other and entry["photograph"] == another["photograph"]:
                apart = [abs(a - b) >= SIZE for a, b in zip(entry["corner"], another["corner"], strict=True)]
                assert any(apart), f"{name} and {other} overlap"


def test_every_photograph_is_used_and_its_licence_is_stated():
    text = (COMMITTED / "LICENSE.md").read_text()
    assert {entry["photograph"] for entry in ENTRIES.values()} == {photo["id"] for photo in MANIFEST["photographs"]}
    for photo in MANIFEST["photographs"]:
        assert re.search(r"CC0|CC BY|[Pp]ublic domain|No known copyright", photo["licence"])
        (row,) = [line for line in text.splitlines() if f"`{Path(photo['file']).name}`" in line]
        assert photo["author"] in row
        assert photo["licence"] in row
        for name, entry in ENTRIES.items():
            assert (Path(name).stem in row) == (entry["photograph"] == photo["id"])


@pytest.mark.slow
def test_the_builder_makes_the_committed_set(tmp_path: Path, capsys):
    assert main(["--out", str(tmp_path / "rebuilt")]) == 0
    assert capsys.readouterr().out.endswith(f"0 files with other pixels than {COMMITTED}\n")
    built = json.loads((tmp_path / "rebuilt" / "manifest.json").read_text())
    assert {e["name"]: e["seed"] for e in built["images"]} == {n: e["seed"] for n, e in ENTRIES.items()}
    assert built["degradation"] == MANIFEST["degradation"]
    assert sorted(path.name for path in (tmp_path / "rebuilt").iterdir()) == ["manifest.json", "test_HR", "test_LR"]


def test_the_builder_refuses_a_folder_in_use(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"package": "no_such_package_here"}, "pip install scikit-image"),
        ({"file": "data/absent.png"}, "does not ship it"),
        ({"sha256": "0" * 64}, "another file than the one the set was cut from"),
    ],
)
def test_an_absent_or_changed_photograph_is_explained(
    change: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    astronaut, *others = MANIFEST["photographs"]
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST | {"photographs": [astronaut | change, *others]}))
    monkeypatch.setattr(bench.testsets.mini, "COMMITTED", tmp_path)
    with pytest.raises(bench.testsets.mini.UserError, match=message):
        build(tmp_path / "out")


def test_compare_tells_pixels_from_bytes(tmp_path: Path):
    flat = Image.new("RGB", (8, 8), (10, 20, 30))
    for root in ("new", "old"):
        for side in ("test_LR", "test_HR"):
            (tmp_path / root / side).mkdir(parents=True)
            flat.save(tmp_path / root / side / "same.png")
    flat.save(tmp_path / "new" / "test_LR" / "bytes.png", compress_level=0)
    flat.save(tmp_path / "old" / "test_LR" / "bytes.png", compress_level=9)
    changed = flat.copy()
    changed.putpixel((0, 0), (13, 20, 30))
    changed.save(tmp_path / "new" / "test_LR" / "pixels.png")
    flat.save(tmp_path / "old" / "test_LR" / "pixels.png")
    one_level = Image.new("RGB", (16, 16), (10, 20, 30))
    one_level.save(tmp_path / "old" / "test_LR" / "rounding.png")
    one_level.putpixel((0, 0), (11, 20, 30))
    one_level.save(tmp_path / "new" / "test_LR" / "rounding.png")
    one_level.save(tmp_path / "new" / "test_HR" / "bytes.png")
    Image.new("RGB", (16, 16), (10, 20, 30)).save(tmp_path / "old" / "test_HR" / "bytes.png")
    flat.resize((4, 8)).save(tmp_path / "new" / "test_HR" / "size.png")
    flat.save(tmp_path / "old" / "test_HR" / "size.png")
    flat.save(tmp_path / "old" / "test_HR" / "gone.png")
    assert compare(tmp_path / "new", tmp_path / "old") == [
        "test_HR/bytes.png: 0.39 % of the pixels differ, by 1 level at most",
        f"test_HR/gone.png: only in {tmp_path / 'old'}",
        "test_HR/size.png: 4x8 instead of 8x8",
        "test_LR/bytes.png: same pixels, other bytes",
        "test_LR/pixels.png: 1.56 % of the pixels differ, by 3 levels at most",
        "test_LR/rounding.png: 0.39 % of the pixels differ, by 1 level at most (another processor's rounding)",
    ]
