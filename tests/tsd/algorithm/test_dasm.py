"""The trajectory of Algorithm 1: where its points lie and which prediction moves which sample."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tsd.algorithm.dasm import Point, trajectory, trajectory_gradient
from tsd.algorithm.objective import tsd_gradient
from tsd.model.process import FlowMatching

PROCESS = FlowMatching(shift=3.0)


def points_of(t: Tensor, points: int = 4, stride: Tensor | float = 50.0):
    z_hat, z, noise = torch.randn(3, len(t), 2, 3, 3).unbind()

    def teacher(z_t: Tensor, at: Tensor, rows: Tensor | None = None) -> Tensor:
        return 0.3 * z_t + at.view(-1, 1, 1, 1) / 1000

    def critic(z_t: Tensor, at: Tensor, rows: Tensor | None = None) -> Tensor:
        return -0.2 * z_t + 0.1

    path = trajectory(PROCESS, teacher, critic, z_hat, z, noise, t, points=points, stride=stride)
    return list(path), (z_hat, z, noise), (teacher, critic)


def test_points_lie_where_algorithm_1_puts_them() -> None:
    t = torch.tensor([900.0, 430.5])
    path, (z_hat, z, noise), (teacher, critic) = points_of(t)
    for index, point in enumerate(path):
        torch.testing.assert_close(point.t, t - 50.0 * index)  # every sample follows its own time
        assert point.inside.all()
    expected_hat, expected_z = PROCESS.add_noise(z_hat, noise, t), PROCESS.add_noise(z, noise, t)
    for index, point in enumerate(path):  # Eq. 6, written out
        torch.testing.assert_close(point.z_hat_t, expected_hat)
        torch.testing.assert_close(point.z_t, expected_z)
        now, following = t - 50.0 * index, t - 50.0 * (index + 1)
        delta = (PROCESS.sigma(following) - PROCESS.sigma(now)).view(-1, 1, 1, 1)
        expected_hat = expected_hat + delta * critic(expected_hat, now)
        expected_z = expected_z + delta * teacher(expected_z, now)


def test_exact_velocities_keep_both_samples_on_their_lines() -> None:
    """With v = ε − z the Euler step is exact: every point is the same pair noised to a lower level."""
    z_hat, z, noise = torch.randn(3, 2, 2, 3, 3).unbind()
    t = torch.tensor([800.0, 500.0])
    path = trajectory(
        PROCESS,
        lambda z_t, at, rows: torch.cat([noise - z_hat, noise - z]),
        lambda z_t, at, rows: noise - z_hat,
        z_hat,
        z,
        noise,
        t,
        points=5,
        stride=40.0,
    )
    for index, point in enumerate(path):
        at = t - 40.0 * index
        torch.testing.assert_close(point.z_hat_t, PROCESS.add_noise(z_hat, noise, at), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(point.z_t, PROCESS.add_noise(z, noise, at), atol=1e-5, rtol=1e-5)


def test_points_beyond_the_end_are_left_out_not_squeezed() -> None:
    path, _, _ = points_of(torch.tensor([120.0, 900.0]), points=4)
    assert [point.inside.tolist() for point in path] == [[True, True]] * 3 + [[False, True]]
    gradient, _ = trajectory_gradient(
        PROCESS, iter(path), point_weights=(0.0, 0.0, 0.0, 1.0), lambda_tsd=0.7, residual="epsilon", weighting="uniform"
    )
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().max() > 0
    (_, point), _, _ = points_of(torch.tensor([50.0, 50.5]), points=2)
    assert point.inside.tolist() == [False, True]  # at t = 0 there is no noise to predict


def test_a_regularisation_of_ones_own_is_added_up_over_the_points() -> None:
    path, _, _ = points_of(torch.tensor([900.0, 430.5]), points=3)
    settings: Any = {"point_weights": (1.0, 0.3, 0.3), "lambda_tsd": 0.4, "residual": "epsilon", "weighting": "sigma2"}
    built_in, _ = trajectory_gradient(PROCESS, iter(path), **settings)

    def own(point: Point, w: Tensor) -> Tensor:
        assert point.teacher_z is not None
        assert point.critic_hat is not None
        return tsd_gradient(point.teacher_hat, point.teacher_z, point.critic_hat, 0.4, w)

    torch.testing.assert_close(trajectory_gradient(PROCESS, iter(path), **settings, regularise=own)[0], built_in)


def test_stride_may_differ_per_sample_and_weights_add_up() -> None:
    stride = torch.tensor([50.0, 62.5])
    path, _, _ = points_of(torch.tensor([900.0, 900.0]), points=3, stride=stride)
    torch.testing.assert_close(path[2].t, torch.tensor([800.0, 775.0]))
    parts = [
        trajectory_gradient(
            PROCESS, iter([point]), point_weights=(w,), lambda_tsd=0.4, residual="velocity", weighting="sigma2"
        )[0]
        for point, w in zip(path, (1.0, 0.3, 0.3), strict=True)
    ]
    whole, logs = trajectory_gradient(
        PROCESS, iter(path), point_weights=(1.0, 0.3, 0.3), lambda_tsd=0.4, residual="velocity", weighting="sigma2"
    )
    torch.testing.assert_close(whole, sum(parts))
    assert float(logs["tsd_rms"]) == pytest.approx(float(whole.square().mean().sqrt()))
    with pytest.raises(ValueError, match="points is 0"):
        points_of(torch.tensor([500.0]), points=0)


def test_in_lockstep_the_networks_are_called_at_every_point_with_the_same_result() -> None:
    """Under FSDP every forward pass needs all processes, so a sample's time must not decide whether one runs."""
    z_hat, z, noise = torch.randn(3, 1, 2, 3, 3).unbind()
    calls: list[str] = []

    def network(name: str):
        def predict(z_t: Tensor, at: Tensor, rows: Tensor) -> Tensor:
            calls.append(name)
            assert len(z_t) == len(at) == len(rows)
            return 0.3 * z_t

        return predict

    def gradient(lockstep: bool) -> Tensor:
        path = trajectory(
            PROCESS, network("teacher"), network("critic"), z_hat, z, noise, torch.tensor([80.0]),
            points=3, stride=50.0, lambda_tsd=0.7, lockstep=lockstep,
        )  # fmt: skip
        weights = {"point_weights": (1.0, 0.3, 0.3), "lambda_tsd": 0.7}
        return trajectory_gradient(PROCESS, path, **weights, residual="epsilon", weighting="sigma2")[0]

    alone = gradient(lockstep=False)
    assert calls == ["teacher", "critic"] * 2  # the third point lies below t = 0
    calls.clear()
    assert torch.equal(gradient(lockstep=True), alone)
    assert calls == ["teacher", "critic"] * 3
