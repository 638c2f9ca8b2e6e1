"""Eq. 3–5 and 7–9 against closed forms, on Gaussian data where the teacher's and the critic's scores are known.

Data z = m + s·η, student ẑ = a + b·ξ, with corr(ξ, η) = ρ. For Gaussians the optimal velocity is affine, so every
expectation below is exact under Gauss–Hermite quadrature in (ξ, η, ε); nothing is Monte Carlo.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from tsd.algorithm.dasm import trajectory, trajectory_gradient
from tsd.algorithm.objective import (
    critic_loss,
    in_residual_form,
    reconstruction_loss,
    student_loss,
    surrogate_loss,
    time_weight,
    tsd_gradient,
    tsm_gradient,
    vsd_gradient,
)
from tsd.config import Residual
from tsd.model.process import DDPM, FlowMatching

PROCESS = FlowMatching(shift=1.0)
M, S, RHO = 0.7, 1.3, 0.6


def gaussian_velocity(mean: float, std: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The optimal velocity E[ε − z | z_t] for data N(mean, std²), by the closed form of Gaussian conditioning."""

    def velocity(z_t: Tensor, t: Tensor) -> Tensor:
        sigma = PROCESS.sigma(t).view(-1, 1, 1, 1)
        variance = (1 - sigma) ** 2 * std**2 + sigma**2
        centred = z_t - (1 - sigma) * mean
        expected_z = mean + (1 - sigma) * std**2 / variance * centred
        expected_noise = sigma / variance * centred
        return expected_noise - expected_z

    return velocity


@dataclass(frozen=True)
class Grid:
    """Quadrature nodes for (ξ, η, ε), each (n, 1, 1, 1), and their weights (n,)."""

    xi: Tensor
    eta: Tensor
    noise: Tensor
    weights: Tensor

    def mean(self, values: Tensor) -> float:
        return float((values.flatten() * self.weights).sum())


@pytest.fixture(scope="module")
def grid() -> Grid:
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    weights = weights / weights.sum()
    axes = np.meshgrid(nodes, nodes, nodes, indexing="ij")
    product = np.prod(np.meshgrid(weights, weights, weights, indexing="ij"), axis=0).ravel()
    xi, rest, noise = (torch.tensor(axis.ravel()).view(-1, 1, 1, 1) for axis in axes)
    return Grid(xi, RHO * xi + (1 - RHO**2) ** 0.5 * rest, noise, torch.tensor(product))


def gradient_on_parameters(
    grid: Grid, a: float, b: float, t: float, *, lambda_tsd: float, residual: Residual, points: int = 1
) -> tuple[float, float]:
    """E[g] and E[g·ξ]: the gradient our code pushes into (a, b), for critic = the student's own exact score."""
    z_hat, z = a + b * grid.xi, M + S * grid.eta
    times = torch.full((len(z),), t, dtype=z.dtype)
    path = trajectory(
        PROCESS,
        lambda z_t, at, rows: gaussian_velocity(M, S)(z_t, at),
        lambda z_t, at, rows: gaussian_velocity(a, b)(z_t, at),
        z_hat,
        z,
        grid.noise,
        times,
        points=points,
        stride=50.0,
    )
    gradient, _ = trajectory_gradient(
        PROCESS, path, point_weights=(1.0,) * points, lambda_tsd=lambda_tsd, residual=residual, weighting="uniform"
    )
    return grid.mean(gradient), grid.mean(gradient * grid.xi)


def kl_of_noised(a: Tensor, b: Tensor, sigma: float) -> Tensor:
    """KL(N(a_t, b_t²) ‖ N(m_t, s_t²)) between the student's and the data's noised marginals."""
    mean_q, mean_p = (1 - sigma) * a, (1 - sigma) * M
    var_q, var_p = (1 - sigma) ** 2 * b**2 + sigma**2, (1 - sigma) ** 2 * S**2 + sigma**2
    return 0.5 * (torch.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1)


@pytest.mark.parametrize("t", [100.0, 500.0, 900.0])
@pytest.mark.parametrize(("a", "b"), [(0.0, 0.5), (2.0, 1.3), (0.7, 2.5)])
def test_vsd_is_the_gradient_of_the_kl(grid: Grid, t: float, a: float, b: float) -> None:
    """E[(ε_ψ − ε_φ) ∂ẑ/∂θ] = σ/(1 − σ) ∇_θ KL(q_t ‖ p_t), with autograd through the closed-form KL as the oracle."""
    sigma = t / 1000
    parameters = torch.tensor([a, b], dtype=torch.float64, requires_grad=True)
    kl_of_noised(parameters[0], parameters[1], sigma).backward()
    expected = sigma / (1 - sigma) * parameters.grad
    found = gradient_on_parameters(grid, a, b, t, lambda_tsd=1.0, residual="epsilon")
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-9)


def test_vsd_in_velocity_form_differs_by_one_minus_sigma(grid: Grid) -> None:
    epsilon = gradient_on_parameters(grid, 0.1, 0.4, 300.0, lambda_tsd=1.0, residual="epsilon")
    velocity = gradient_on_parameters(grid, 0.1, 0.4, 300.0, lambda_tsd=1.0, residual="velocity")
    np.testing.assert_allclose(epsilon, np.multiply(velocity, 0.7), atol=1e-12)


def test_sigma2_one_minus_sigma_makes_of_velocities_what_sigma2_makes_of_noise() -> None:
    """VSD alone; on a DDPM the weight is σ² α."""
    teacher_hat, critic_hat, z_t = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64).unbind()
    t = torch.tensor([100.0, 800.0], dtype=torch.float64)
    process = FlowMatching(shift=3.0)
    on_noise = vsd_gradient(
        process.epsilon(z_t, teacher_hat, t), process.epsilon(z_t, critic_hat, t), time_weight(process, t, "sigma2")
    )
    on_velocities = vsd_gradient(teacher_hat, critic_hat, time_weight(process, t, "sigma2_one_minus_sigma"))
    torch.testing.assert_close(on_velocities, on_noise)
    ddpm = DDPM(torch.linspace(0.999, 0.004, 1000), "epsilon")
    weight = time_weight(ddpm, torch.tensor([250.0]), "sigma2_one_minus_sigma")
    alpha_bar = float(ddpm.alphas_cumprod[250])
    assert float(weight) == pytest.approx((1 - alpha_bar) * alpha_bar**0.5)


@pytest.mark.parametrize("t", [100.0, 500.0, 900.0])
def test_tsm_in_both_forms_follows_its_closed_form(grid: Grid, t: float) -> None:
    """An affine teacher makes Eq. 4 a multiple of ẑ − z: positive for epsilon, negative for velocity at low σ."""
    sigma, a, b = t / 1000, 0.2, 0.9
    variance = (1 - sigma) ** 2 * S**2 + sigma**2
    slopes: dict[Residual, float] = {
        "epsilon": sigma / variance,
        "velocity": (sigma - (1 - sigma) * S**2) / variance,
    }
    for residual, slope in slopes.items():
        found = gradient_on_parameters(grid, a, b, t, lambda_tsd=0.0, residual=residual)
        expected = (1 - sigma) * slope * np.array([a - M, b - RHO * S])
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert slopes["epsilon"] > 0
    assert (slopes["velocity"] < 0) == (sigma < S**2 / (1 + S**2))


def descend(grid: Grid, *, lambda_tsd: float, residual: Residual, points: int, steps: int = 400) -> tuple[float, float]:
    a, b = -1.0, 0.3
    for step in range(steps):
        t = (150.0, 400.0, 650.0, 900.0)[step % 4]
        g_a, g_b = gradient_on_parameters(grid, a, b, t, lambda_tsd=lambda_tsd, residual=residual, points=points)
        a, b = a - 0.5 * g_a, b - 0.5 * g_b
        if abs(a) > 1e3:
            break
    return a, b


@pytest.mark.parametrize("points", [1, 3])
def test_vsd_alone_reaches_the_data_distribution(grid: Grid, points: int) -> None:
    a, b = descend(grid, lambda_tsd=1.0, residual="epsilon", points=points)
    assert (a, b) == pytest.approx((M, S), abs=0.02)


def test_tsm_alone_regresses_to_the_conditional_mean(grid: Grid) -> None:
    """Epsilon-TSM is an MSE pull: the mean is right, but the spread shrinks to ρ·s, the regression of z on ξ."""
    a, b = descend(grid, lambda_tsd=0.0, residual="epsilon", points=1)
    assert (a, b) == pytest.approx((M, RHO * S), abs=0.02)


def test_tsm_alone_in_velocity_form_runs_away_at_low_noise(grid: Grid) -> None:
    a, b = -1.0, 0.3
    for _ in range(50):
        g_a, g_b = gradient_on_parameters(grid, a, b, 200.0, lambda_tsd=0.0, residual="velocity")
        a, b = a - 0.5 * g_a, b - 0.5 * g_b
    assert abs(a - M) > 10 * abs(-1.0 - M)


def test_tsd_rests_between_regression_and_data(grid: Grid) -> None:
    """At one noise level the spread solves (1 − λ)·TSM + λ·VSD = 0 in closed form; the mean is the data's."""
    t, sigma, lam = 500.0, 0.5, 0.7

    def slope(std: float) -> float:
        return sigma / ((1 - sigma) ** 2 * std**2 + sigma**2)

    def balance(b: float) -> float:
        return (1 - lam) * slope(S) * (b - RHO * S) + lam * (slope(S) - slope(b)) * b

    predicted = brentq(balance, RHO * S, S)
    a, b = -1.0, 0.3
    for _ in range(400):
        g_a, g_b = gradient_on_parameters(grid, a, b, t, lambda_tsd=lam, residual="epsilon")
        a, b = a - 0.5 * g_a, b - 0.5 * g_b
    assert a == pytest.approx(M, abs=1e-3)
    assert b == pytest.approx(predicted, abs=1e-3)
    assert RHO * S < predicted < S


def test_tsd_reaches_the_data_where_student_and_data_are_paired() -> None:
    """ρ = 1: the student can reproduce its own ground truth; TSD's fixed point is then exactly the data."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    xi, noise = (torch.tensor(x.ravel()).view(-1, 1, 1, 1) for x in np.meshgrid(nodes, nodes))
    product = torch.tensor(np.outer(weights, weights).ravel() / weights.sum() ** 2)
    paired = Grid(xi, xi, noise, product)
    a, b = descend(paired, lambda_tsd=0.7, residual="epsilon", points=3)
    assert (a, b) == pytest.approx((M, S), abs=0.02)


def test_equation_5_is_the_stated_mixture() -> None:
    teacher_hat, teacher_z, critic_hat = torch.randn(3, 2, 4, 3, 3).unbind()
    w = torch.tensor([0.2, 0.9]).view(-1, 1, 1, 1)
    mixture = 0.3 * tsm_gradient(teacher_hat, teacher_z, w) + 0.7 * vsd_gradient(teacher_hat, critic_hat, w)
    torch.testing.assert_close(tsd_gradient(teacher_hat, teacher_z, critic_hat, 0.7, w), mixture)
    unweighted = tsd_gradient(teacher_hat, teacher_z, critic_hat, 0.7)
    torch.testing.assert_close(w * unweighted, mixture)


def test_surrogate_loss_has_exactly_the_given_gradient() -> None:
    z_hat = torch.randn(2, 3, 4, 4, requires_grad=True)
    g = torch.randn(2, 3, 4, 4)
    surrogate_loss(z_hat, g).backward()
    torch.testing.assert_close(z_hat.grad, g / z_hat.numel())


def test_weights_losses_and_unknown_names() -> None:
    t = torch.tensor([100.0, 1000.0])
    assert time_weight(PROCESS, t, "sigma2").flatten().tolist() == pytest.approx([0.01, 1.0])
    products = time_weight(PROCESS, t, "sigma2_one_minus_sigma").flatten().tolist()
    assert products == pytest.approx([0.1**2 * 0.9, 0.0])
    assert time_weight(PROCESS, t, "uniform").flatten().tolist() == [1.0, 1.0]
    z_hat, z = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0)
    loss, logs = reconstruction_loss(torch.tensor(0.5), z_hat, z, gamma1=2.0, latent_mse=0.25)
    assert float(loss) == pytest.approx(2.0 * 0.5 + 0.25 * 4.0)
    assert float(logs["latent_mse"]) == pytest.approx(4.0)
    assert float(student_loss(loss, torch.tensor(3.0), gamma2=2.0)) == pytest.approx(8.0)
    assert float(critic_loss(z_hat, z)) == pytest.approx(4.0)
    loss, logs = reconstruction_loss(None, z_hat, z, gamma1=0.0, latent_mse=0.25)
    assert (float(loss), logs.keys()) == (pytest.approx(1.0), {"latent_mse"})
    with pytest.raises(ValueError, match="needs the pixel loss"):
        reconstruction_loss(None, z_hat, z, gamma1=0.5, latent_mse=0.25)
    with pytest.raises(ValueError, match="weighting"):
        time_weight(PROCESS, t, "sigma")  # pyright: ignore
    with pytest.raises(ValueError, match="residual"):
        in_residual_form(PROCESS, z, z, t[:1], "noise")  # pyright: ignore


def test_critic_minimises_equation_9_at_the_exact_velocity(grid: Grid) -> None:
    """Of all affine critics, Eq. 9 is smallest at the closed-form velocity of the student's distribution."""
    a, b, t = 0.4, 0.8, torch.full((len(grid.xi),), 350.0, dtype=torch.float64)
    z_hat = a + b * grid.xi
    z_t = PROCESS.add_noise(z_hat, grid.noise, t)
    target = PROCESS.target(z_hat, grid.noise, t)

    def expected_loss(prediction: Tensor) -> float:
        return grid.mean((prediction - target) ** 2)

    best = expected_loss(gaussian_velocity(a, b)(z_t, t))
    for shifted in (gaussian_velocity(a + 0.1, b), gaussian_velocity(a, b * 1.2), gaussian_velocity(a, b * 0.8)):
        assert expected_loss(shifted(z_t, t)) > best + 1e-5
