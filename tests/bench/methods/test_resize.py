"""Bicubic and Lanczos against torch and Pillow, and the number the README quotes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio

from bench.methods import get_method
from bench.options import RunOptions


def restore(name: str, lr: torch.Tensor) -> torch.Tensor:
    return get_method(name).load(RunOptions()).restore(lr, 0)


def test_bicubic_is_keys_kernel_with_a_075():
    """Against the kernel written out, in the interior: 4 taps around every half-pixel position."""
    lr = torch.rand(1, 3, 9, 11)
    sr = restore("bicubic", lr)
    a, y, x = -0.75, 18, 22  # an output pixel well inside
    rows, row_weights = taps(y, a)
    columns, column_weights = taps(x, a)
    expected = (lr[0][:, rows][:, :, columns].double() * row_weights[:, None] * column_weights).sum((1, 2)).clamp(0, 1)
    assert torch.allclose(sr[0, :, y, x].double(), expected, atol=1e-6)


def taps(position: int, a: float) -> tuple[list[int], torch.Tensor]:
    source = (position + 0.5) / 4 - 0.5
    first = int(np.floor(source)) - 1
    weights = []
    for tap in range(first, first + 4):
        d = abs(source - tap)
        inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
        outer = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        weights.append(inner if d <= 1 else outer)
    return list(range(first, first + 4)), torch.tensor(weights, dtype=torch.float64)


def test_lanczos_equals_pillow_up_to_pillows_own_rounding():
    """On a smooth image, where Pillow's clipping between its two 8-bit passes does not bite."""
    y, x = np.mgrid[0:24, 0:31]
    pixels = np.stack([60 + 4 * x, 70 + 5 * y, 200 - 3 * x], axis=2).astype(np.uint8)
    lr = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    sr = restore("lanczos", lr)[0].permute(1, 2, 0).numpy() * 255
    expected = np.asarray(Image.fromarray(pixels).resize((124, 96), Image.Resampling.LANCZOS))
    assert np.abs(sr - expected).max() <= 1.01


@pytest.mark.parametrize("name", ["bicubic", "lanczos"])
def test_overshoot_is_clamped_and_provenance_names_the_kernel(name: str):
    lr = torch.zeros(1, 3, 16, 16)
    lr[..., 8:] = 1
    sr = restore(name, lr)
    assert sr.min() == 0
    assert sr.max() == 1
    assert "resize" in get_method(name).load(RunOptions()).provenance()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("bicubic", 27.15), ("lanczos", 27.24)])
def test_psnr_on_realsr_is_the_known_figure(shared_dir: Path, name: str, expected: float):
    """The protocol's fact: "Bicubic alone scores PSNR-Y 27.15 dB on RealSR"; other kernels give 27.11."""
    method = get_method(name).load(RunOptions())
    folder = shared_dir / "data" / "realsr"
    values = []
    for path in sorted((folder / "test_LR").glob("*.png")):
        lr = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        sr = (method.restore(lr, 0)[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
        hr = np.array(Image.open(folder / "test_HR" / path.name).convert("RGB"))
        values.append(peak_signal_noise_ratio(luma(hr), luma(sr), data_range=255))
    assert len(values) == 100
    assert np.mean(values) == pytest.approx(expected, abs=0.005)


def luma(pixels: np.ndarray) -> np.ndarray:
    return rgb2ycbcr(pixels)[..., 0]
