"""Blur kernels of Real-ESRGAN's degradation, as closed forms, and the random choice of one.

Six bell shapes and one low-pass (Real-ESRGAN, arXiv 2107.10833, section 3.1 and supplement; the generalised shapes are
from Liu et al., arXiv 1907.06594), with q(x) = xᵀ Σ⁻¹ x and Σ = R(θ) diag(σ₁², σ₂²) R(θ)ᵀ:

    gaussian      exp(−q/2)            generalized   exp(−q^β/2)            plateau   1 / (1 + q^β)
    sinc          ω J₁(ω r) / (2π r)   the ideal circular low-pass of ω rad per pixel, cut off at the kernel's edge

Every kernel is float64, (size, size), size odd, indexed [row, column], and sums to one.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

KERNEL_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
KERNEL_SIZES = tuple(range(7, 22, 2))


@dataclass(frozen=True)
class BlurConfig:
    """How one blur of the degradation is drawn. Ranges are uniform; widths are in pixels.

    kind_prob: chances of `KERNEL_KINDS`, in that order. sinc_prob: chance that the kernel is a low-pass instead.
    sigma: both axes. generalized_beta, plateau_beta: the exponent β of the two families.
    """

    sigma: tuple[float, float]
    kind_prob: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_prob: float = 0.1
    generalized_beta: tuple[float, float] = (0.5, 4.0)
    plateau_beta: tuple[float, float] = (1.0, 2.0)


def gaussian(size: int, sigma_x: float, sigma_y: float, theta: float = 0.0) -> np.ndarray:
    """Bivariate normal density on the pixel grid; `theta` turns the long axis from x (columns) towards y (rows)."""
    return _normalised(np.exp(-0.5 * _quadratic_form(size, sigma_x, sigma_y, theta)))


def generalized_gaussian(size: int, sigma_x: float, sigma_y: float, theta: float, beta: float) -> np.ndarray:
    """Sharper than the normal density for β < 1, flatter for β > 1, equal to it for β = 1."""
    return _normalised(np.exp(-0.5 * _quadratic_form(size, sigma_x, sigma_y, theta) ** beta))


def plateau(size: int, sigma_x: float, sigma_y: float, theta: float, beta: float) -> np.ndarray:
    """A flat top with slowly falling flanks."""
    return _normalised(1.0 / (1.0 + _quadratic_form(size, sigma_x, sigma_y, theta) ** beta))


def sinc(size: int, omega: float) -> np.ndarray:
    """Ideal circular low-pass, truncated so that it rings, as intended. `omega` in (0, π]."""
    rows, columns = _grid(size)
    radius = np.hypot(rows, columns)
    centre = size // 2
    radius[centre, centre] = 1.0  # the limit r → 0 is put in below
    bessel = torch.special.bessel_j1(torch.from_numpy(omega * radius)).numpy()
    kernel = omega * bessel / (2 * math.pi * radius)
    kernel[centre, centre] = omega**2 / (4 * math.pi)
    return _normalised(kernel)


def draw_blur(rng: np.random.Generator, config: BlurConfig) -> np.ndarray:
    """A kernel for one of the two blurs: a low-pass with `sinc_prob`, else one of the six bell shapes."""
    size = int(rng.choice(KERNEL_SIZES))
    if rng.random() < config.sinc_prob:
        # Small kernels cannot hold the wide ripples of a low cut-off.
        return sinc(size, rng.uniform(math.pi / 3 if size < 13 else math.pi / 5, math.pi))
    kind = str(rng.choice(KERNEL_KINDS, p=config.kind_prob))
    sigma_x, sigma_y, theta = rng.uniform(*config.sigma), rng.uniform(*config.sigma), rng.uniform(-math.pi, math.pi)
    if not kind.endswith("aniso"):
        sigma_y, theta = sigma_x, 0.0
    if kind.startswith("generalized"):
        return generalized_gaussian(size, sigma_x, sigma_y, theta, _draw_beta(rng, config.generalized_beta))
    if kind.startswith("plateau"):
        return plateau(size, sigma_x, sigma_y, theta, _draw_beta(rng, config.plateau_beta))
    return gaussian(size, sigma_x, sigma_y, theta)


def draw_final_sinc(rng: np.random.Generator) -> np.ndarray:
    """A kernel for the last low-pass of the degradation; its cut-off is at least π/3 for every size."""
    return sinc(int(rng.choice(KERNEL_SIZES)), rng.uniform(math.pi / 3, math.pi))


def _draw_beta(rng: np.random.Generator, beta: tuple[float, float]) -> float:
    """Draws β below or above 1 with equal chances. Plateaus start at 1, so half of them have β = 1 exactly."""
    low, high = beta
    return rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"a kernel needs an odd size so that it has a centre; got {size}")
    axis = np.arange(size, dtype=np.float64) - size // 2
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    return rows, columns


def _quadratic_form(size: int, sigma_x: float, sigma_y: float, theta: float) -> np.ndarray:
    rows, columns = _grid(size)
    along = math.cos(theta) * columns + math.sin(theta) * rows
    across = -math.sin(theta) * columns + math.cos(theta) * rows
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum()
