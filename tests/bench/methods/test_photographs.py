"""Photographs through `bench apply`, with tiny networks of spandrel's own classes."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

from bench import cli
from bench.methods import get_method
from bench.methods.photographs import Photographer
from bench.methods.spandrel.tiling import in_tiles
from bench.options import RunOptions, Tiles
from tsd.errors import UserError
from tsd.images import from_array, read_picture, resized

Apply = Callable[..., tuple[int, str, str]]


@pytest.fixture
def apply(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apply:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(["apply", *map(str, arguments), "--device", "cpu"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def save_network(path: Path, scale: int = 4, channels: int = 3) -> Path:
    """A random Compact of four 3x3 convolutions: no output depends on anything further than 4 pixels away."""
    torch.manual_seed(0)
    network = SRVGGNetCompact(
        num_in_ch=channels, num_out_ch=channels, num_feat=8, num_conv=2, upscale=scale, act_type="prelu"
    )
    torch.save({"params": network.state_dict()}, path)
    return path


def photograph(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return noise[..., 0] if channels == 1 else noise


def restored(path: Path, picture: np.ndarray, tiles: Tiles | None) -> np.ndarray:
    options = RunOptions(tiles=tiles, any_scale=True)
    return Photographer(get_method(f"spandrel:{path}"), options).restore(from_array(picture), 0).color


def test_tiles_are_the_whole_image_where_the_network_looks_no_further_than_their_context(tmp_path: Path) -> None:
    path, picture = save_network(tmp_path / "net.pth"), photograph(61, 97)
    whole = restored(path, picture, None)
    assert whole.shape == (244, 388, 3)
    np.testing.assert_allclose(restored(path, picture, Tiles(26, 4)), whole, atol=1e-6)
    assert np.abs(restored(path, picture, Tiles(26, 0)) - whole).max() > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (7, 30), (16, 16), (17, 33)])
def test_tiles_cover_any_size(size: tuple[int, int]) -> None:
    image, seen = torch.rand(1, 3, *size), []
    found = in_tiles(
        lambda tile: tile.repeat_interleave(2, 2).repeat_interleave(2, 3), image, scale=2, core=8, context=3,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert torch.equal(found, image.repeat_interleave(2, 2).repeat_interleave(2, 3))
    count = -(-size[0] // 8) * -(-size[1] // 8)
    assert seen == [(number, count) for number in range(count + 1)]


def test_a_folder_of_photographs_like_tsd_restore(tmp_path: Path, apply: Apply) -> None:
    """Orientation, gray, alpha, 16 bits, colour profile, sub-folders, hidden files, and a file that is no image."""
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photograph(20, 30)).save(photos / "turned.jpg", exif=turned, icc_profile=srgb)
    Image.fromarray(photograph(20, 30, 1)).save(photos / "sub" / "gray.png")
    Image.fromarray(photograph(20, 30, 4)).save(photos / "alpha.png")
    Image.fromarray(photograph(16, 16, 1).astype(np.uint16) * 256 + 7).save(photos / "deep.png")
    Image.fromarray(photograph(16, 8)).save(photos / "small.png")
    (photos / "torn.png").write_bytes((photos / "alpha.png").read_bytes()[:200])
    (photos / "._turned.jpg").write_bytes(b"of macOS")
    (photos / "notes.txt").write_text("no image")
    network = save_network(tmp_path / "net.pth")
    status, out, err = apply(f"spandrel:{network}", photos, "-o", tmp_path / "out")
    assert status == 1
    assert "spandrel-net enlarges 4 times, on cpu in fp32; photographs larger than 512 pixels in tiles" in err
    assert "passed over what is no image: 1 .txt" in err
    assert "2 of 6 images failed" in err
    assert f"{photos / 'small.png'}: 8x16 pixels: methods take sides of 16 or more" in err
    assert f"{photos / 'torn.png'}: " in err
    assert f"{photos / 'turned.jpg'} -> " in out
    found = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.*")}
    assert sorted(found) == ["alpha.png", "deep.png", "sub/gray.png", "turned.png"]
    pictures = {name: read_picture(path) for name, path in found.items()}
    assert pictures["turned.png"].size == (80, 120)
    assert pictures["turned.png"].icc_profile == srgb
    assert pictures["sub/gray.png"].gray
    assert pictures["deep.png"].depth == 16
    alpha = pictures["alpha.png"].alpha
    assert alpha is not None
    given = read_picture(photos / "alpha.png")
    assert given.alpha is not None
    assert np.abs(alpha - resized(given.alpha, 120, 80)).max() <= 0.5 / 255 + 1e-6
    color = restored(network, given.to_rgb8(), None)
    assert np.abs(pictures["alpha.png"].color - color).max() <= 0.5 / 255 + 1e-6


def test_results_that_exist_are_kept_replaced_or_refused(tmp_path: Path, apply: Apply) -> None:
    for name in ("a", "b"):
        Image.fromarray(photograph(16, 20)).save(tmp_path / f"{name}.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    job = ("bicubic", tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out")
    status, _, err = apply(*job)
    assert status == 2
    assert "--overwrite to replace, --skip-existing" in err
    status, _, err = apply(*job, "--skip-existing")
    assert status == 0
    assert "1 of 2 results exist and are left as they are" in err
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine"
    assert read_picture(tmp_path / "out" / "b.png").size == (80, 64)
    assert apply(*job, "--overwrite")[0] == 0
    assert (tmp_path / "out" / "a.png").read_bytes() == (tmp_path / "out" / "b.png").read_bytes()


def test_time_and_memory_of_large_work_are_told_before_it(tmp_path: Path, apply: Apply) -> None:
    network = save_network(tmp_path / "net.pth")
    Image.fromarray(photograph(96, 96)).save(tmp_path / "a.png")
    job = (f"spandrel:{network}", "a.png", "--context", 2)
    assert "1 image of 384x384 pixels, 0.1 megapixels" in (err := apply(*job, "-o", "b.png", "--tile", 32)[2])
    assert "memory and time show on the way" in err
    err = apply(*job, "-o", "c.png", "--tile", 24)[2]  # 4 x 4 of them
    assert re.search(r"memory about \S+ .?B beside the networks; about 0:00:\d\d, by a piece of 24x24", err)


def test_a_network_of_another_factor_says_so_and_a_smaller_result_may_be_asked(tmp_path: Path, apply: Apply) -> None:
    network = save_network(tmp_path / "net.pth", scale=2)
    Image.fromarray(photograph(40, 60)).save(tmp_path / "a.png")
    status, _, err = apply(f"spandrel:{network}", "a.png", "-o", "b.png", "--tile", 32, "--context", 5)
    assert (status, read_picture(tmp_path / "b.png").size) == (0, (120, 80))
    assert "enlarges 2 times" in err
    assert apply(f"spandrel:{network}", "a.png", "-o", "c.png", "--scale", 1.5)[0] == 0
    assert read_picture(tmp_path / "c.png").size == (90, 60)
    status, _, err = apply(f"spandrel:{network}", "a.png", "-o", "d.png", "--scale", 3)
    assert (status, "enlarges 2 times; expected at most that" in err) == (2, True)
    with pytest.raises(UserError, match=r"expected x4 from RGB to RGB.*`bench apply spandrel:"):
        get_method(f"spandrel:{network}").load(RunOptions()).provenance()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["folder:{tmp}"], "it is images that are finished already"),
        (["sinsr"], "it runs in an environment of its own"),
        (["bicubic", "--tile", "128"], "and resizing needs none"),
        (["python:{tmp}/mine.py:restore", "--tile", "128"], "a function sees the photograph whole"),
        (["tsd-sr-mini", "--context", "8"], "makes its own"),
        (["spandrel:{tmp}/net.pth", "--tile", "40"], "leave less than 16 pixels; expected at least 80"),
        (["spandrel:{tmp}/gray.pth"], "1 input and 1 output channels; expected from RGB to RGB"),
        (["spandrel:{tmp}/none.pth"], "cannot run here"),
        (["bicubic", "--scale", "0"], "expected a number above 0"),
        (["bicubik"], "Did you mean 'bicubic'?"),
    ],
)
def test_what_cannot_be_is_said_before_any_photograph(
    tmp_path: Path, apply: Apply, arguments: list[str], reason: str
) -> None:
    save_network(tmp_path / "net.pth")
    save_network(tmp_path / "gray.pth", channels=1)
    (tmp_path / "mine.py").write_text(
        "def restore(lr, seed):\n    return lr.repeat_interleave(4, 2).repeat_interleave(4, 3)"
    )
    Image.fromarray(photograph(16, 16)).save(tmp_path / "a.png")
    method, *others = [argument.format(tmp=tmp_path) for argument in arguments]
    status, _, err = apply(method, "a.png", "-o", "out", *others)
    assert status == 2
    assert reason in err
    assert not (tmp_path / "out").exists()


def test_a_function_is_a_tool_too_and_its_faults_fail_alone(tmp_path: Path, apply: Apply) -> None:
    (tmp_path / "mine.py").write_text(
        "def restore(lr, seed):\n"
        "    if lr.shape[-1] == 20:\n"
        "        return lr * float('nan')\n"
        "    return lr.repeat_interleave(4, 2).repeat_interleave(4, 3)\n"
    )
    for width in (20, 24):
        Image.fromarray(photograph(16, width)).save(tmp_path / f"w{width}.png")
    status, _, err = apply(f"python:{tmp_path / 'mine.py'}:restore", "w20.png", "w24.png", "-o", "out")
    assert status == 1
    assert "w20.png: ValueError: restore returned (1, 3, 16, 20), expected a tensor of shape" in err
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out" / "w24.png")), photograph(16, 24).repeat(4, 0).repeat(4, 1)
    )


def test_an_interruption_says_what_is_done_and_what_continues(tmp_path: Path, apply: Apply) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, signal\n"
        "def restore(lr, seed):\n"
        "    if lr.shape[-1] == 24:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return lr.repeat_interleave(4, 2).repeat_interleave(4, 3)\n"
    )
    for width in (20, 24):
        Image.fromarray(photograph(16, width)).save(tmp_path / f"w{width}.png")
    status, _, err = apply(f"python:{tmp_path / 'mine.py'}:restore", "w20.png", "w24.png", "-o", "out")
    assert status == 143
    assert "1 of 2 images are done, 0 failed" in err
    assert "bench apply: interrupted; the same command with --skip-existing continues" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["w20.png"]


def test_arguments_are_checked_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from bench.cli import main; main(['apply', 'bicubic', 'none.png']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "no such file or folder: none.png" in done.stderr
    assert done.stdout.strip() == "False"
