"""LR-PSNR: against closed forms and a second library, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from bench.metrics import get_metric
from tsd.errors import UserError


def save(path: Path, image: np.ndarray) -> Path:
    Image.fromarray(image).save(path)
    return path


def luma(image: np.ndarray) -> np.ndarray:
    """BT.601 luma in 16..235 of 0..255 RGB, unrounded."""
    return 16 + image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255


def test_a_constant_offset_has_the_psnr_of_its_size(tmp_path: Path) -> None:
    """All channels off by 3: luma is off by 3 * 219 / 255."""
    sr = save(tmp_path / "sr.png", np.full((64, 96, 3), 103, np.uint8))
    lr = save(tmp_path / "lr.png", np.full((16, 24, 3), 100, np.uint8))
    expected = 20 * np.log10(255 / (3 * 219 / 255))
    assert get_metric("lr-psnr").load("cpu")(sr, lr) == pytest.approx(expected, abs=1e-3)


def test_the_small_image_is_pillows_bicubic(tmp_path: Path) -> None:
    """Pillow's bicubic has a = -0.5 and antialiasing too, but rounds to 8 bit twice."""
    photo = data.astronaut()[:256, :320]
    sr = save(tmp_path / "sr.png", photo)
    small = np.asarray(Image.fromarray(photo).resize((80, 64), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(0).integers(-8, 9, small.shape)
    lr = np.clip(small + noise, 0, 255).astype(np.uint8)
    expected = 10 * np.log10(255**2 / np.mean((luma(small) - luma(lr)) ** 2))
    score = get_metric("lr-psnr").load("cpu")
    assert score(sr, save(tmp_path / "lr.png", lr)) == pytest.approx(expected, abs=0.05)
    assert score(sr, save(tmp_path / "same.png", small)) > 50, "but for rounding nothing was invented"


@pytest.mark.parametrize("size", [(64, 48), (50, 25), (26, 15)])
def test_an_input_of_another_shape_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    sr = save(tmp_path / "sr.png", np.zeros((100, 200, 3), np.uint8))
    lr = save(tmp_path / "lr.png", np.zeros((size[1], size[0], 3), np.uint8))
    score = get_metric("lr-psnr").load("cpu")
    if size == (50, 25):
        assert score(sr, lr) == pytest.approx(80, abs=1e-3)
        return
    with pytest.raises(UserError, match=rf"sr.png is 200x100, no whole multiple of its input .*{size[0]}x{size[1]}"):
        score(sr, lr)


def test_without_an_input_it_says_so(tmp_path: Path) -> None:
    sr = save(tmp_path / "sr.png", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(UserError, match="LR-PSNR compares with the input"):
        get_metric("lr-psnr").load("cpu")(sr, None)
