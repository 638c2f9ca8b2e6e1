import math
import statistics

import numpy as np
import pytest
import torch
from torch import Tensor

from tsd.data.degrade import (
    DEGRADATIONS,
    FULL,
    LIGHT,
    DegradationConfig,
    StageConfig,
    degrade,
    draw_choices,
    jpeg,
    usm_sharpen,
)
from tsd.data.kernels import BlurConfig

PULSE = BlurConfig(sigma=(1e-3, 1e-3), kind_prob=(1, 0, 0, 0, 0, 0), sinc_prob=0.0)


def stage(**changes: object) -> StageConfig:
    """A stage that does nothing but an invisible JPEG, except for `changes`."""
    nothing = {
        "blur_prob": 0.0,
        "blur": PULSE,
        "resize_prob": (0.0, 0.0, 1.0),
        "resize_range": (0.5, 1.5),
        "gaussian_noise_prob": 1.0,
        "noise_range": (0.0, 0.0),
        "poisson_scale_range": (0.0, 0.0),
        "gray_noise_prob": 0.0,
        "jpeg_range": (100.0, 100.0),
    }
    return StageConfig(**(nothing | changes))  # type: ignore[arg-type]


def one_stage(**changes: object) -> DegradationConfig:
    return DegradationConfig("test", stage(**changes), stage(), final_sinc_prob=0.0)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """(3,256,256) in [0,1]: smooth, with an edge and texture."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 256), torch.linspace(0, 1, 256), indexing="ij")
    generator = torch.Generator().manual_seed(7)
    texture = 0.1 * torch.rand(256, 256, generator=generator) * (y > 0.5)
    return torch.stack([0.2 + 0.5 * x, 0.7 - 0.4 * y, 0.3 + 0.4 * (x + y > 1)]).add(texture).clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()) + 1e-12)


def test_parameters_are_those_of_the_protocol():
    """Every number of the two parameter sets."""
    common = {"gaussian_noise_prob": 0.5, "gray_noise_prob": 0.4}
    table = {
        "full": (
            {"resize_prob": (0.2, 0.7, 0.1), "resize_range": (0.15, 1.5), "noise_range": (1, 30),
             "poisson_scale_range": (0.05, 3.0), "jpeg_range": (30, 95), "blur_prob": 1.0},
            {"resize_prob": (0.3, 0.4, 0.3), "resize_range": (0.3, 1.2), "noise_range": (1, 25),
             "poisson_scale_range": (0.05, 2.5), "jpeg_range": (30, 95), "blur_prob": 0.8},
        ),
        "light": (
            {"resize_prob": (0.2, 0.7, 0.1), "resize_range": (0.3, 1.5), "noise_range": (1, 15),
             "poisson_scale_range": (0.05, 2.0), "jpeg_range": (60, 95), "blur_prob": 1.0},
            {"resize_prob": (0.3, 0.4, 0.3), "resize_range": (0.6, 1.2), "noise_range": (1, 12),
             "poisson_scale_range": (0.05, 1.0), "jpeg_range": (60, 100), "blur_prob": 0.5},
        ),
    }  # fmt: skip
    assert set(DEGRADATIONS) == set(table)
    for name, stages in table.items():
        config = DEGRADATIONS[name]
        for actual, expected in zip((config.first, config.second), stages, strict=True):
            assert {key: getattr(actual, key) for key in (common | expected)} == common | expected
            assert actual.blur.kind_prob == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
            assert (actual.blur.sinc_prob, actual.blur.generalized_beta) == (0.1, (0.5, 4.0))
            assert actual.blur.plateau_beta == (1.0, 2.0)
        assert (config.first.blur.sigma, config.second.blur.sigma) == ((0.2, 3.0), (0.2, 1.5))
        assert (config.final_sinc_prob, config.jpeg_last_prob) == (0.8, 0.5)


@pytest.mark.parametrize("config", [FULL, LIGHT], ids=["full", "light"])
def test_drawn_choices_have_the_frequencies_and_ranges_of_their_set(config: DegradationConfig):
    drawn = [draw_choices(config, seed) for seed in range(3000)]

    def near(values: list[bool], expected: float) -> None:
        assert statistics.fmean(values) == pytest.approx(expected, abs=0.03)

    for choices, settings in (
        ([c.first for c in drawn], config.first),
        ([c.second for c in drawn], config.second),
    ):
        near([c.kernel is not None for c in choices], settings.blur_prob)
        up, down, keep = settings.resize_prob
        near([c.resize > 1 for c in choices], up)
        near([c.resize < 1 for c in choices], down)
        near([c.resize == 1 for c in choices], keep)
        near([c.resize_mode == "area" for c in choices], 1 / 3)
        near([c.resize_mode == "bicubic" for c in choices], 1 / 3)
        near([c.gray_noise for c in choices], 0.4)
        near([c.noise == "gaussian" for c in choices], 0.5)

        def spans(values: list[float], interval: tuple[float, float]) -> None:
            low, high = interval
            assert low <= min(values) < low + 0.05 * (high - low)
            assert high - 0.05 * (high - low) < max(values) <= high

        spans([c.resize for c in choices], settings.resize_range)
        spans([c.noise_level for c in choices if c.noise == "gaussian"], settings.noise_range)
        spans([c.noise_level for c in choices if c.noise == "poisson"], settings.poisson_scale_range)
        spans([c.jpeg_quality for c in choices], settings.jpeg_range)
    near([c.final_kernel is not None for c in drawn], 0.8)
    near([c.jpeg_last for c in drawn], 0.5)


def test_result_has_the_promised_shape_range_and_levels(photo: Tensor):
    for size in ((256, 256), (64, 128), (100, 36), (8, 4), (4, 4)):
        for seed in range(6):
            lr = degrade(photo[:, : size[0], : size[1]], FULL, seed)
            assert lr.shape == (3, size[0] // 4, size[1] // 4)
            assert lr.dtype == torch.float32
            levels = lr * 255
            assert 0 <= float(levels.min()) <= float(levels.max()) <= 255
            torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1, 2, 8])
def test_other_scales(photo: Tensor, scale: int):
    assert degrade(photo[:, :64, :96], LIGHT, 3, scale=scale).shape == (3, 64 // scale, 96 // scale)


def test_same_seed_same_bytes_whatever_came_before(photo: Tensor):
    forward = [degrade(photo, FULL, seed) for seed in range(8)]
    torch.rand(5)
    np.random.rand(5)
    backward = [degrade(photo, FULL, seed) for seed in reversed(range(8))]
    for a, b in zip(forward, reversed(backward), strict=True):
        assert torch.equal(a, b)
    assert not any(torch.equal(forward[0], other) for other in forward[1:])


def test_global_random_state_is_left_alone(photo: Tensor):
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    degrade(photo[:, :64, :64], FULL, 0)
    assert (torch.rand(1), np.random.rand()) == expected


def test_number_of_threads_does_not_matter(photo: Tensor):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([degrade(photo, FULL, seed) for seed in range(10)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_half_precision_input_is_accepted(photo: Tensor):
    assert degrade(photo.half(), FULL, 1).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_makes_the_same_choices_and_nearly_the_same_pixels(photo: Tensor):
    for seed in range(20):
        cpu, gpu = degrade(photo, FULL, seed), degrade(photo.cuda(), FULL, seed)
        assert gpu.is_cuda
        assert psnr(cpu, gpu.cpu()) > 35, seed


def test_light_is_milder_than_full(photo: Tensor):
    clean = torch.nn.functional.interpolate(photo[None], scale_factor=0.25, mode="area")[0]
    mean = {
        config.name: statistics.fmean(psnr(degrade(photo, config, seed), clean) for seed in range(40))
        for config in (FULL, LIGHT)
    }
    assert mean["light"] > mean["full"] + 1


def test_a_stage_that_does_nothing_returns_the_image(photo: Tensor):
    out = degrade(photo[:, :64, :64], one_stage(), 0, scale=1)
    assert psnr(out, photo[:, :64, :64]) > 40  # two JPEGs of quality 100, chroma at half resolution


@pytest.mark.parametrize("gray", [0.0, 1.0])
def test_gaussian_noise_has_the_drawn_strength(gray: float):
    flat = torch.full((3, 128, 128), 0.5)
    config = one_stage(noise_range=(20.0, 20.0), gray_noise_prob=gray)
    residual = (degrade(flat, config, 4, scale=1) - 0.5) * 255
    if gray:
        assert float(residual.std()) == pytest.approx(20, rel=0.05)
        assert float((residual[0] - residual[1]).std()) < 2.5  # JPEG rounds chroma, no more
    else:
        # JPEG halves the resolution of chroma, but keeps luma = .299 R + .587 G + .114 B.
        luma = torch.tensor([0.299, 0.587, 0.114])
        strength = (residual * luma[:, None, None]).sum(0).std()
        assert float(strength) == pytest.approx(20 * float(luma.norm()), rel=0.05)


def test_shot_noise_grows_with_the_square_root_of_brightness():
    """Gray ramp of 64 levels: 64 photons at full scale, so σ = sqrt(x / 64) at brightness x."""
    ramp = (torch.arange(64).repeat_interleave(16) / 63 * 0.6 + 0.2).expand(3, 256, 1024)
    config = one_stage(gaussian_noise_prob=0.0, poisson_scale_range=(1.0, 1.0), gray_noise_prob=1.0)
    residual = degrade(ramp, config, 11, scale=1) - ramp
    for block in range(8, 56, 8):  # away from where clipping sets in
        columns = slice(16 * block, 16 * block + 16)
        brightness = float(ramp[0, 0, columns].mean())
        assert float(residual[:, :, columns].mean()) == pytest.approx(0, abs=0.02)
        if brightness < 0.5:
            assert float(residual[1, :, columns].std()) == pytest.approx(math.sqrt(brightness / 64), rel=0.12)


def test_blur_removes_what_its_kernel_removes():
    """Gaussian of σ = 2 on a sine of ω rad per pixel: amplitude times exp(-σ²ω²/2)."""
    omega = 2 * math.pi / 16
    wave = (0.5 + 0.4 * torch.cos(omega * torch.arange(256.0))).expand(3, 256, 256)
    blur = BlurConfig(sigma=(2.0, 2.0), kind_prob=(1, 0, 0, 0, 0, 0), sinc_prob=0.0)
    config = one_stage(blur=blur, blur_prob=1.0)
    seed = next(s for s in range(50) if draw_choices(config, s).first.kernel.shape[0] == 21)
    out = degrade(wave, config, seed, scale=1)
    amplitude = float((out[1, :, 32:-32].max() - out[1, :, 32:-32].min()) / 2)
    assert amplitude == pytest.approx(0.4 * math.exp(-0.5 * (2 * omega) ** 2), abs=0.01)


def test_lower_jpeg_quality_shows_more_blocks(photo: Tensor):
    def blockiness(image: Tensor) -> float:
        """Mean step across 8-pixel block borders over the mean step elsewhere."""
        steps = (image[1, :, 1:] - image[1, :, :-1]).abs().mean(0)
        border = torch.arange(1, image.shape[2]) % 8 == 0
        return float(steps[border].mean() / steps[~border].mean())

    assert blockiness(jpeg(photo, 30)) > blockiness(jpeg(photo, 95)) + 0.1
    assert psnr(jpeg(photo, 30), photo) < psnr(jpeg(photo, 60), photo) < psnr(jpeg(photo, 95), photo)


def test_both_final_orders_occur_and_differ(photo: Tensor):
    last = DegradationConfig("last", FULL.first, FULL.second, jpeg_last_prob=1.0)
    never = DegradationConfig("never", FULL.first, FULL.second, jpeg_last_prob=0.0)
    assert draw_choices(last, 5).jpeg_last
    assert not draw_choices(never, 5).jpeg_last
    assert not torch.equal(degrade(photo, last, 5), degrade(photo, never, 5))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.rand(1, 64, 64), r"\(3, H, W\)"),
        (torch.rand(2, 3, 64, 64), r"\(3, H, W\)"),
        (torch.rand(3, 66, 64), "multiples of the scale 4"),
        (torch.rand(3, 0, 64), "multiples of the scale 4"),
        (torch.rand(3, 64, 64) * 255, r"\[0, 1\]"),
        (torch.full((3, 64, 64), math.nan), r"\[0, 1\]"),
    ],
)
def test_bad_input_is_explained(bad: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        degrade(bad, FULL, 0)


def test_usm_sharpens_edges_and_leaves_flat_parts_alone():
    step = torch.full((3, 128, 128), 0.3)
    step[:, :, 64:] = 0.7
    sharp = usm_sharpen(step)
    edge_before = float(step[0, 64, 64] - step[0, 64, 63])
    assert float(sharp[0, 64, 64] - sharp[0, 64, 63]) > edge_before + 0.1
    flat = torch.full((3, 64, 64), 0.5) + 0.01 * torch.rand(3, 64, 64)
    torch.testing.assert_close(usm_sharpen(flat), flat)
    assert 0 <= float(sharp.min()) <= float(sharp.max()) <= 1


def test_usm_equals_its_definition():
    """Against scipy: Gaussian of 51 taps and σ = 8, weight 0.5, soft mask where the residual exceeds 10 levels."""
    from scipy.ndimage import correlate1d

    image = torch.rand(3, 80, 70, generator=torch.Generator().manual_seed(0)).double().numpy()
    taps = np.exp(-0.5 * (np.arange(-25, 26) / 8.0) ** 2)
    taps /= taps.sum()

    def smooth(channels: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(channels, taps, axis=1, mode="mirror"), taps, axis=2, mode="mirror")

    residual = image - smooth(image)
    mask = smooth((np.abs(residual) * 255 > 10).astype(float))
    expected = mask * np.clip(image + 0.5 * residual, 0, 1) + (1 - mask) * image
    np.testing.assert_allclose(usm_sharpen(torch.from_numpy(image)).numpy(), expected, atol=1e-5)
