import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from tsd.cli import main
from tsd.data.degrade import FULL, LIGHT, degrade
from tsd.seeds import seed_for


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "trip").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (width, height) in {"a.png": (40, 32), "trip/b.png": (36, 48)}.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / name)
    return root


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def run(*args: object) -> int:
    return main(["degrade", *map(str, args)])


def test_results_are_the_library_s_and_sub_folders_are_kept(photos: Path, tmp_path: Path, capsys):
    out = tmp_path / "low"
    assert run(photos, "-o", out, "--seed", 7, "--set", "light") == 0
    for name in ("a", "trip/b"):
        hr = torch.from_numpy(read(photos / f"{name}.png").copy()).permute(2, 0, 1) / 255
        expected = degrade(hr, LIGHT, seed_for(7, "degrade", name)) * 255
        np.testing.assert_array_equal(read(out / f"{name}.png"), expected.round().permute(1, 2, 0).numpy())
    captured = capsys.readouterr()
    assert captured.out == f"2 of 2 images written to {out}, settings to degrade.json\n"


def test_record_states_settings_and_seeds(photos: Path, tmp_path: Path):
    run(photos, "-o", tmp_path / "low")
    record = json.loads((tmp_path / "low" / "degrade.json").read_text())
    assert (record["seed"], record["scale"], record["device"]) == (42, 4, "cpu")
    assert record["degradation"]["name"] == "full"
    assert record["degradation"]["second"]["noise_range"] == list(FULL.second.noise_range)
    assert record["images"] == {
        "a": {"source": "a.png", "seed": seed_for(42, "degrade", "a")},
        "trip/b": {"source": "b.png", "seed": seed_for(42, "degrade", "trip/b")},
    }
    assert record["versions"]["torch"] == torch.__version__


def test_an_image_does_not_depend_on_its_neighbours(photos: Path, tmp_path: Path):
    run(photos, "-o", tmp_path / "all")
    run(photos / "a.png", "-o", tmp_path / "one")
    assert (tmp_path / "all" / "a.png").read_bytes() == (tmp_path / "one" / "a.png").read_bytes()


def test_existing_results_are_refused_skipped_or_replaced(photos: Path, tmp_path: Path, capsys):
    out = tmp_path / "low"
    run(photos / "a.png", "-o", out)
    mark = read(out / "a.png")
    assert run(photos, "-o", out) == 2
    assert "--skip-existing" in capsys.readouterr().err

    assert run(photos, "-o", out, "--skip-existing") == 0
    assert "1 of 2 images written" in capsys.readouterr().out
    assert set(json.loads((out / "degrade.json").read_text())["images"]) == {"a", "trip/b"}

    assert run(photos, "-o", out, "--skip-existing", "--seed", 1) == 2
    assert "another seed" in capsys.readouterr().err
    np.testing.assert_array_equal(read(out / "a.png"), mark)

    assert run(photos, "-o", out, "--overwrite", "--seed", 1) == 0
    assert not np.array_equal(read(out / "a.png"), mark)
    assert set(json.loads((out / "degrade.json").read_text())["images"]) == {"a", "trip/b"}


def test_results_without_a_record_are_not_taken_for_ours(photos: Path, tmp_path: Path, capsys):
    out = tmp_path / "low"
    run(photos, "-o", out)
    (out / "degrade.json").unlink()
    assert run(photos, "-o", out, "--skip-existing") == 2
    assert "by hand" in capsys.readouterr().err
    (out / "degrade.json").write_text("{")
    assert run(photos, "-o", out, "--skip-existing") == 2
    assert "not JSON" in capsys.readouterr().err


def test_odd_sides_are_cut_with_a_warning(tmp_path: Path, capsys):
    Image.new("RGB", (43, 34), (90, 120, 150)).save(tmp_path / "odd.png")
    assert run(tmp_path / "odd.png", "-o", tmp_path / "low") == 0
    assert Image.open(tmp_path / "low" / "odd.png").size == (10, 8)
    assert "cut from 43x34 to 40x32" in capsys.readouterr().err


def test_other_scale_gray_and_alpha(tmp_path: Path):
    Image.new("LA", (16, 12), (90, 120)).save(tmp_path / "gray.png")
    assert run(tmp_path / "gray.png", "-o", tmp_path / "low", "--scale", 2) == 0
    with Image.open(tmp_path / "low" / "gray.png") as result:
        assert (result.size, result.mode) == ((8, 6), "RGB")


def test_unreadable_files_are_listed_and_the_others_done(photos: Path, tmp_path: Path, capsys):
    (photos / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (3, 9)).save(photos / "tiny.png")
    assert run(photos, "-o", tmp_path / "low") == 1
    captured = capsys.readouterr()
    assert "2 of 4 images written" in captured.out
    assert "broken.jpg" in captured.err
    assert "3x9 is smaller than the scale 4" in captured.err
    assert (tmp_path / "low" / "trip" / "b.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photos}/absent", "-o", "{out}"], "no such file or folder"),
        (["{photos}", "-o", "{photos}/a.png"], "is a file"),
        (["{photos}", "-o", "{photos}"], "is one of the inputs"),
        (["{photos}/a.png", "{photos}", "-o", "{out}"], "would both become"),
        (["{photos}", "-o", "{out}", "--scale", "0"], "scale must be 1 or more"),
        (["{photos}", "-o", "{out}", "--device", "tpu"], "expected cpu, cuda"),
        (["{empty}", "-o", "{out}"], "no images in"),
    ],
)
def test_bad_arguments_end_with_one_message_and_status_2(
    photos: Path, tmp_path: Path, capsys, arguments: list[str], message: str
):
    empty = tmp_path / "empty"
    empty.mkdir()
    named = {"photos": photos, "out": tmp_path / "low", "empty": empty}
    assert run(*(argument.format(**named) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "low").exists()


def test_what_restore_takes_for_an_image_is_one_here_too(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """System files are left out, odd names and profiles are handled, and results below the input are no inputs."""
    for name in ("._a.png", "@eaDir/a.png", ".DS_Store", "Thumbs.db"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"metadata")
    shutil.copyfile(photos / "a.png", os.fsencode(photos) + b"/caf\xe9.png")
    (photos / "broken.png").write_bytes(b"no image")
    out = photos / "low"
    assert run(photos, "-o", out) == 1
    said = capsys.readouterr()
    assert "3 of 4 images written" in said.out
    assert "broken.png: not a readable" in said.err
    assert sorted(json.loads((out / "degrade.json").read_text(encoding="utf-8"))["images"]) == [
        "a", "broken", "caf\udce9", "trip/b",
    ]  # fmt: skip
    assert run(photos, "-o", out, "--skip-existing") == 1
    assert "0 of 4 images written" in capsys.readouterr().out


def test_a_colour_profile_is_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (16, 16), (200, 60, 30)).save(tmp_path / "a.png", icc_profile=profile)
    assert run(tmp_path / "a.png", "-o", tmp_path / "low") == 0
    with Image.open(tmp_path / "low" / "a.png") as image:
        assert image.info["icc_profile"] == profile


def test_results_may_lie_above_the_images(photos: Path) -> None:
    assert run(photos / "trip", "-o", photos) == 0
    assert (photos / "b.png").is_file()
