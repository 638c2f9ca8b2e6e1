import math

import numpy as np
import pytest
from scipy import special

from tsd.data.kernels import (
    KERNEL_SIZES,
    BlurConfig,
    draw_blur,
    draw_final_sinc,
    gaussian,
    generalized_gaussian,
    plateau,
    sinc,
)

BLUR = BlurConfig(sigma=(0.2, 3.0))


def second_moments(kernel: np.ndarray) -> tuple[float, float, float]:
    """(variance along x, variance along y, covariance) of a kernel read as a density."""
    axis = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return float((kernel * x * x).sum()), float((kernel * y * y).sum()), float((kernel * x * y).sum())


def response(kernel: np.ndarray, omega: float) -> float:
    """Frequency response at `omega` rad per pixel along x."""
    axis = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    return float((kernel.sum(axis=0) * np.cos(omega * axis)).sum())


def test_sizes_are_the_odd_numbers_from_7_to_21():
    assert KERNEL_SIZES == (7, 9, 11, 13, 15, 17, 19, 21)


@pytest.mark.parametrize(
    "kernel",
    [
        gaussian(7, 2.9, 0.2, 0.7),
        generalized_gaussian(15, 1.0, 2.0, -1.0, 0.5),
        plateau(21, 3.0, 1.0, 2.0, 1.7),
        sinc(13, 1.0),
    ],
    ids=["gaussian", "generalized", "plateau", "sinc"],
)
def test_kernels_sum_to_one_and_equal_their_mirror_image(kernel: np.ndarray):
    assert kernel.dtype == np.float64
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-15)


def test_second_moments_of_a_gaussian_are_its_covariance():
    sigma_x, sigma_y, theta = 2.0, 1.2, 0.6
    c, s = math.cos(theta), math.sin(theta)
    rotation = np.array([[c, -s], [s, c]])
    expected = rotation @ np.diag([sigma_x**2, sigma_y**2]) @ rotation.T
    xx, yy, xy = second_moments(gaussian(41, sigma_x, sigma_y, theta))
    np.testing.assert_allclose([xx, yy, xy], [expected[0, 0], expected[1, 1], expected[0, 1]], rtol=1e-6)


def test_beta_one_makes_the_generalized_shape_a_gaussian():
    np.testing.assert_allclose(generalized_gaussian(21, 2.0, 1.0, 0.3, beta=1.0), gaussian(21, 2.0, 1.0, 0.3))


def test_large_beta_flattens_both_families_into_a_box():
    for family in (generalized_gaussian, plateau):
        kernel = family(21, 5.0, 5.0, 0.0, 40.0)
        inside = kernel[10, 6:15]  # |x| <= 4 < sigma
        np.testing.assert_allclose(inside, inside[0], rtol=1e-3)
        assert kernel[10, 17] < 1e-3 * inside[0]


def test_plateau_at_one_sigma_is_half_its_top():
    kernel = plateau(21, 4.0, 2.0, 0.0, 1.5)
    assert kernel[10, 14] == pytest.approx(kernel[10, 10] / 2)  # 4 columns off along x
    assert kernel[12, 10] == pytest.approx(kernel[10, 10] / 2)  # 2 rows off along y


def test_sinc_equals_the_bessel_form_of_scipy():
    omega, size = 1.3, 21
    kernel = sinc(size, omega)
    row = np.arange(1, 11)
    expected = omega * special.j1(omega * row) / (2 * math.pi * row) / (omega**2 / (4 * math.pi))
    np.testing.assert_allclose(kernel[10, 11:] / kernel[10, 10], expected, rtol=1e-6)


@pytest.mark.parametrize("omega", [math.pi / 3, math.pi / 2])
def test_sinc_passes_below_its_cut_off_and_stops_above(omega: float):
    kernel = sinc(101, omega)  # long enough for a steep edge
    assert response(kernel, 0.6 * omega) == pytest.approx(1, abs=0.05)
    assert response(kernel, 1.5 * omega) == pytest.approx(0, abs=0.05)
    assert response(kernel, omega) == pytest.approx(0.5, abs=0.1)
    assert kernel.min() < 0  # it rings


def test_even_size_is_an_error():
    with pytest.raises(ValueError, match="odd size"):
        gaussian(8, 1.0, 1.0)


def test_drawn_kernels_follow_the_table():
    rng = np.random.default_rng(0)
    kernels = [draw_blur(rng, BLUR) for _ in range(4000)]
    sizes = np.array([kernel.shape[0] for kernel in kernels])
    assert set(sizes) == set(KERNEL_SIZES)
    assert np.bincount(sizes)[7::2] == pytest.approx(500, rel=0.2)
    # Only the low-pass has negative weights (nearly always: a cut-off near pi is almost a pulse).
    assert np.mean([kernel.min() < -1e-6 for kernel in kernels]) == pytest.approx(0.1, abs=0.02)
    xx, yy, _ = np.array([second_moments(kernel) for kernel in kernels]).T
    elongated = np.abs(xx - yy) > 1e-9
    assert np.mean(elongated) == pytest.approx(0.9 * 0.31, abs=0.03)  # aniso .25 + .03 + .03, where no sinc


@pytest.mark.parametrize("kind", range(6))
def test_each_kind_can_be_chosen_alone(kind: int):
    prob = tuple(float(i == kind) for i in range(6))
    rng = np.random.default_rng(kind)
    config = BlurConfig(sigma=(1.0, 3.0), kind_prob=prob, sinc_prob=0.0)
    kernels = [draw_blur(rng, config) for _ in range(50)]
    round_ones = [np.allclose(kernel, kernel.T) for kernel in kernels]
    assert all(round_ones) if kind % 2 == 0 else not any(round_ones)
    assert all(kernel.min() >= 0 for kernel in kernels)


def test_half_of_the_plateaus_have_beta_one():
    rng = np.random.default_rng(1)
    config = BlurConfig(sigma=(2.0, 2.0), kind_prob=(0, 0, 0, 0, 1, 0), sinc_prob=0.0)
    kernels = [draw_blur(rng, config) for _ in range(600)]
    plain = [np.allclose(kernel, plateau(kernel.shape[0], 2.0, 2.0, 0.0, 1.0)) for kernel in kernels]
    assert np.mean(plain) == pytest.approx(0.5, abs=0.07)


def test_final_low_pass_never_cuts_below_a_third_of_pi():
    rng = np.random.default_rng(2)
    for _ in range(200):
        kernel = draw_final_sinc(rng)
        assert kernel.shape[0] in KERNEL_SIZES
        lowest = sinc(kernel.shape[0], math.pi / 3)
        # The centre weight grows with the cut-off: it is omega² / (4 pi) before normalisation.
        assert kernel.max() >= lowest.max() - 1e-12
